"""The processes and logs of `bench_placement.py`."""
