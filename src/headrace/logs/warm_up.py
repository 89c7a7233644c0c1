"""Compiles the kernels of commands that make, look through and rearrange logs."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

from headrace.logs.clustering import ClusterConfig, cluster_log
from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.logs.inspection import inspect_log
from headrace.logs.schema import Schema

__all__ = ["warm_up_logs"]


def warm_up_logs() -> None:
    """Generate a small log, inspect it, and write it with nested columns if DuckDB is installed."""
    with TemporaryDirectory() as folder:
        logs = Path(folder) / "logs"
        generate_logs(GenerateConfig(rows=200, windows=2, users=20, items=20, seed=0), logs)
        inspect_log(logs, num_threads=1)
        if find_spec("duckdb") is not None:
            schema = Schema.from_yaml(logs / "schema.yaml")
            cluster_log(logs, Path(folder) / "nested", schema, ClusterConfig(layout="nested"))
