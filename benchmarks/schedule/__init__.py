"""Parts of `bench_schedule.py`: workloads, the network link, processes at both of its ends, goals and peers."""
