"""Starting trainers and shards: local processes, torchrun, Ray."""

from headrace.cluster.training import train_job

__all__ = ["train_job"]
