"""Parts of `bench_storage.py`."""
