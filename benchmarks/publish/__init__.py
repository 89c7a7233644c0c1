"""Parts of `bench_publish.py`: a star of network namespaces, and the processes at its ends."""
