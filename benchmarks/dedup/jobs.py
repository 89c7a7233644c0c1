"""The jobs: features of RecD's preprocessing (hash, cut, clamp, log), and three models on top."""

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
    """Numbers are filled, limited and go through log1p; lists are cut; ids are hashed into the range of their table."""
    hashed = {"hash": {"range": RANGE}}
    sparse: dict[str, Any] = {column.name: [hashed] for column in schema.ids}
    sparse |= {column.name: [{"first_x": 200}, hashed] for column in schema.id_lists}
    numbers = [{"fill": 0}, {"clamp": {"min": 0}}, "log1p"]
    return {"dense": {column.name: numbers for column in schema.dense}, "sparse": sparse, "dedup": dedup}


def job(path: Path, schema: Schema, run: Path, *, model: str, dedup: str, batch_size: int = BATCH_SIZE) -> JobConfig:
    """A job over a log in any layout.

    Args:
        path: The log.
        schema: Of the log.
        run: Folder of the run.
        model: "dlrm" (sums), or "encoder": histories go through a transformer.
        dedup: As `features.dedup`.
        batch_size: Rows of a step.
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
