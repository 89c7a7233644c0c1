"""Peers of the benchmarks of loaders, training steps and whole jobs: common work and logs, arms and their processes."""
