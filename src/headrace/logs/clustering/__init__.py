"""Clusters a log by session: rows of a session are adjacent, and repeated values are stored once."""

from headrace.logs.clustering.cluster import ClusteredLog, ClusteredWindow, cluster_log
from headrace.logs.clustering.config import ClusterConfig

__all__ = ["ClusterConfig", "ClusteredLog", "ClusteredWindow", "cluster_log"]
