"""The logs and arms of `bench_quality.py`, which compares the quality of the default job with that of its peers."""
