"""Parts of `bench_checkpoints.py`."""
