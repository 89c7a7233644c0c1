"""What `bench_schedule.py` is made of: workloads, links between namespaces, the processes at both ends, peers."""
