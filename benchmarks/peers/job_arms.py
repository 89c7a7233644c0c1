"""The arms of the end-to-end benchmark, and their processes: whole jobs, from Parquet files to a written checkpoint.

`python -m peers.job_arms ARM FOLDER ROWS SHAPE` runs one arm. It reads commands from standard input, one per line, and
answers each with a line of JSON:

    time SEED   run a job from scratch, with initial values of this seed:
                {"seconds", "rows", "loss", "checkpoint_bytes"}

A job builds its model, trains on every row of the logs once, and writes parameters and optimizer state to disk (with
fsync). The loss is the mean over all rows, each predicted before it is trained on.
"""

from __future__ import annotations

import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from peers.answers import open_answers
from peers.data import Logs
from peers.step_work import DENSE_ADAGRAD, RawBatch, Shape
from peers.work import RANGES, SCHEMA, config

__all__ = ["JOBS", "SHAPE", "JobArm"]

SHAPE = Shape(sizes=RANGES)


@dataclass(frozen=True)
class JobArm:
    """A loader and a training step.

    Attributes:
        name: Name shown in tables.
        package: Package that must be installed.
        loader: Module and function of this package that create the loader, and settings; None for a job of headrace.
        step: Module of this package with the training step, and settings.
        quick: Whether the arm is measured with `--quick`.
    """

    name: str
    package: str = "torch"
    loader: tuple[str, str, dict[str, Any]] | None = None
    step: tuple[str, dict[str, Any]] = ("", {})
    quick: bool = True

    @property
    def takes_bf16(self) -> bool:
        """Whether matrix products are in bfloat16."""
        return bool(self.step[1].get("bf16"))


_ONE_TABLE = ("step_torch", {"embeddings": "one_table", "bf16": True})
_ONE_TABLE_FP32 = ("step_torch", {"embeddings": "one_table", "bf16": False})
_FBGEMM = ("step_torch", {"embeddings": "fbgemm", "bf16": True})
_FBGEMM_FP32 = ("step_torch", {"embeddings": "fbgemm", "bf16": False})
JOBS = {
    arm.name: arm
    for arm in (
        JobArm("headrace train"),
        JobArm(
            "DataLoader, 2 workers + torch, a table a feature, fp32",
            "torch",
            ("torch_loaders", "dataloader", {"workers": 2}),
            ("step_torch", {"embeddings": "tables", "bf16": False}),
        ),
        JobArm(
            "DataLoader, 1 worker + torch, one table, bf16",
            "torch",
            ("torch_loaders", "dataloader", {"workers": 1}),
            _ONE_TABLE,
        ),
        JobArm(
            "DataLoader, 0 workers + torchrec, FBGEMM, bf16",
            "fbgemm_gpu",
            ("torch_loaders", "dataloader", {"workers": 0}),
            _FBGEMM,
            quick=False,
        ),
        JobArm(
            "DataLoader, 1 worker + torchrec, FBGEMM, bf16",
            "fbgemm_gpu",
            ("torch_loaders", "dataloader", {"workers": 1}),
            _FBGEMM,
        ),
        JobArm(
            "torchdata nodes, 1 thread + torchrec, FBGEMM, bf16",
            "fbgemm_gpu",
            ("torch_loaders", "nodes", {"workers": 1}),
            _FBGEMM,
            quick=False,
        ),
        JobArm(
            "DataLoader, 1 worker + torch, one table, fp32",
            "torch",
            ("torch_loaders", "dataloader", {"workers": 1}),
            _ONE_TABLE_FP32,
            quick=False,
        ),
        JobArm(
            "DataLoader, 0 workers + torchrec, FBGEMM, fp32",
            "fbgemm_gpu",
            ("torch_loaders", "dataloader", {"workers": 0}),
            _FBGEMM_FP32,
        ),
        JobArm(
            "DataLoader, 1 worker + torchrec, FBGEMM, fp32",
            "fbgemm_gpu",
            ("torch_loaders", "dataloader", {"workers": 1}),
            _FBGEMM_FP32,
            quick=False,
        ),
        JobArm(
            "tf.data, AUTOTUNE + Keras, bf16",
            "tensorflow",
            ("tfdata", "from_generator", {"rows": 4096}),
            ("step_keras", {"bf16": True}),
        ),
        JobArm(
            "tf.data, AUTOTUNE + Keras, fp32",
            "tensorflow",
            ("tfdata", "from_generator", {"rows": 4096}),
            ("step_keras", {"bf16": False}),
            quick=False,
        ),
    )
}


def peer_job(arm: JobArm, logs: Logs, shape: Shape, target: Path) -> tuple[float, int]:
    """Run a job with a peer's loader and step; return the mean loss and the number of rows."""
    assert arm.loader is not None
    module, function, settings = arm.loader
    start: Callable[[], Any] = getattr(import_module(f"peers.{module}"), function)(logs, "modulo", **settings)
    code = import_module(f"peers.{arm.step[0]}").make(shape, **arm.step[1])
    total, rows = 0.0, 0
    for batch in start():
        ids = np.asarray(batch.ids)
        ids = ids if ids.shape[0] == shape.num_tables else ids.T
        labels = np.asarray(batch.labels)
        offsets = np.arange(ids.size + 1)
        raw = RawBatch(np.ascontiguousarray(batch.dense), np.ascontiguousarray(ids).reshape(-1), offsets, labels)
        total += code.run(code.prepare(raw)) * len(labels)
        rows += len(labels)
    assert code.save is not None
    code.save(str(target / "checkpoint"))
    for path in target.rglob("*"):
        with path.open("rb") as file:
            os.fsync(file.fileno())
    return total / rows, rows


def our_job(logs: Logs, shape: Shape, target: Path) -> tuple[float, int]:
    """Run the same job with headrace, whose checkpoints are atomic and have checksums."""
    from headrace.training import JobConfig, Trainer
    from peers.step_ours import model_config, tables

    job = JobConfig.from_dict(
        {
            "run": str(target),
            "data": {"path": str(logs.folder), "schema": SCHEMA | {"labels": [{"name": "label", "allowed": [0, 1]}]}},
            "features": config("modulo"),
            "embeddings": tables(shape),
            "model": model_config(shape).model_dump(),
            "training": {
                "batch_size": shape.batch_size,
                "seed": shape.seed,
                "dense_optimizer": {"kind": "adagrad", **DENSE_ADAGRAD},
            },
        },
        where="bench",
    )
    result = Trainer(job.resolve(Path.cwd())).run()
    (window,) = result.windows
    return window.scores["label"].log_loss, window.rows.num_used


def main() -> None:
    """Run jobs as requested until the input ends."""
    name, folder, num_rows, text = sys.argv[1:]
    answer = open_answers()
    if name.startswith("tf.data"):
        import_module("peers.step_keras").use_threads(2)  # must precede the operations of its loader
    arm, logs, shape = JOBS[name], Logs(Path(folder), int(num_rows)), Shape.from_json(text)

    def job(seed: int) -> dict[str, float]:
        seeded = replace(shape, seed=seed)
        target = Path(tempfile.mkdtemp(prefix="headrace-bench-job-"))
        begin = time.perf_counter()
        loss, rows = our_job(logs, seeded, target) if arm.loader is None else peer_job(arm, logs, seeded, target)
        seconds = time.perf_counter() - begin
        written = sum(path.stat().st_size for path in target.rglob("*") if path.is_file())
        shutil.rmtree(target)
        gc.collect()
        return {"seconds": seconds, "rows": rows, "loss": loss, "checkpoint_bytes": written}

    answer({"ready": True})
    for line in sys.stdin:
        answer(job(int(line.split()[1])))


if __name__ == "__main__":
    main()
