"""A run with rows in files reads them ahead, resumes, and ends with the checkpoint of a run in memory."""

import json
from pathlib import Path
from typing import Any

import numpy as np

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.training import JobConfig, Trainer
from headrace.training.checkpoint import CheckpointFolder


def train(folder: Path, run: str, storage: dict[str, Any]) -> None:
    """Train on the next window, in a new trainer."""
    job = {
        "run": run,
        "data": {"path": "logs"},
        "model": {"kind": "deepfm", "embedding_dim": 16, "deep": [8]},
        "embeddings": {
            "default": {"kind": "collisionless", "num_embeddings": 64, "evict_after": 2},
            "storage": storage,
        },
        "training": {"batch_size": 128, "threads": 1, "log_every_steps": 5},
    }
    Trainer(JobConfig.from_dict(job, where="job").resolve(folder)).run(windows=1)


def columns_by_key(run: Path) -> dict[str, np.ndarray]:
    """The rows of the newest checkpoint in the order of their keys."""
    snapshot, _ = CheckpointFolder(run / "checkpoints").load_latest()
    assert snapshot is not None
    columns = {}
    for group, state in snapshot.columns.items():
        order = np.lexsort((state["ids"], state["tables"]))
        columns |= {f"{group}.{name}": np.asarray(state[name])[order] for name in ("ids", "weights", "version")}
    return columns | {f"dense.{name}": array for name, array in snapshot.arrays["dense"].items()}


def test_rows_in_files_are_read_ahead_and_change_no_bit(tmp_path: Path) -> None:
    generate_logs(GenerateConfig(rows=6_000, windows=3, users=3_000, items=3_000, seed=5), tmp_path / "logs")
    for _ in range(3):
        train(tmp_path, "memory", {"kind": "memory"})
        train(tmp_path, "tiered", {"kind": "tiered", "memory": "300KiB", "path": str(tmp_path)})
    ours, theirs = columns_by_key(tmp_path / "tiered"), columns_by_key(tmp_path / "memory")
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        np.testing.assert_array_equal(ours[name], column, err_msg=name)
    lines = [json.loads(line) for line in (tmp_path / "tiered" / "metrics.jsonl").read_text().splitlines()]
    counts = [line["storage"] for line in lines if line["kind"] == "step"]
    read, late = (sum(each[name] for each in counts) for name in ("num_read_rows", "num_late_rows"))
    assert read > 300
    assert late < 0.1 * read
