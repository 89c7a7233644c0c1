"""Logs and passes of `bench_budget`."""
