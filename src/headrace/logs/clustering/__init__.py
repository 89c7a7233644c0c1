"""Clustering a log by session: rows of a session side by side, each distinct value stored once."""

from headrace.logs.clustering.cluster import ClusteredLog, ClusteredWindow, cluster_log
from headrace.logs.clustering.config import ClusterConfig

__all__ = ["ClusterConfig", "ClusteredLog", "ClusteredWindow", "cluster_log"]
