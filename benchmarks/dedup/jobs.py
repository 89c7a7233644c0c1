"""Jobs of `bench_dedup.py`: features like RecD's preprocessing (hash, truncate, clamp, log) and two models."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from headrace.logs import Schema
from headrace.training import JobConfig

__all__ = ["BATCH_SIZE", "RANGE", "features", "job"]

BATCH_SIZE = 4096
RANGE = 100_000
DIM = 16


def features(schema: Schema, dedup: str) -> dict[str, Any]:
    """Return the section `features` of a job: log1p of dense columns, and hashed ids of lists of at most 200."""
    hashed = {"hash": {"range": RANGE}}
    sparse: dict[str, Any] = {column.name: [hashed] for column in schema.ids}
    sparse |= {column.name: [{"first_x": 200}, hashed] for column in schema.id_lists}
    numbers = [{"fill": 0}, {"clamp": {"min": 0}}, "log1p"]
    return {"dense": {column.name: numbers for column in schema.dense}, "sparse": sparse, "dedup": dedup}


def job(path: Path, schema: Schema, run: Path, *, model: str, dedup: str, batch_size: int = BATCH_SIZE) -> JobConfig:
    """Return a job on a log in any layout.

    Args:
        path: Folder of the log.
        schema: Schema of the log.
        run: Folder of the run.
        model: "dlrm", which sums histories, or "encoder", which encodes them with a transformer.
        dedup: Value of `features.dedup`: "auto" or "off".
        batch_size: Rows per step.
    """
    config: dict[str, Any] = {"kind": "dlrm", "embedding_dim": DIM, "bottom": [512, 256], "top": [512, 256]}
    if model == "encoder":
        lists = [column.name for column in schema.id_lists]
        config["encoder"] = {"features": [name for name in lists if not name.startswith("item")]}
    values = {
        "run": str(run),
        "data": {"path": str(path), "schema": schema.model_dump(mode="json", by_alias=True)},
        "features": features(schema, dedup),
        "embeddings": {"default": {"kind": "direct", "num_embeddings": RANGE}},
        "model": config,
        "training": {"batch_size": batch_size, "dense_optimizer": {"kind": "adam", "lr": 0.001}},
    }
    return JobConfig.from_dict(values, where="bench").resolve(Path.cwd())
