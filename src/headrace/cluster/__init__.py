"""Starts trainers and shards, as local processes, with torchrun, or on Ray."""

from headrace.cluster.training import train_job

__all__ = ["train_job"]
