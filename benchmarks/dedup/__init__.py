"""Logs, jobs and training steps of `bench_dedup.py`."""
