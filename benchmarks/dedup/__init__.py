"""Deduplication, measured from file to tower: logs, jobs and arms of `bench_dedup.py`."""
