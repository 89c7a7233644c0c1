"""The jobs of headrace: as `headrace init` writes them, of two keys, and points of a grid."""

from __future__ import annotations

import gc
import random
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import yaml

from headrace.logs import schema_beside
from headrace.training import JobConfig, Trainer

__all__ = ["GRID", "grid_points", "init_job", "job_of_init", "job_of_two_keys", "predict_then_learn"]

GRID: dict[str, tuple[Any, ...]] = {
    "model": ("dlrm", "dcnv2", "deepfm"),
    "embedding_dim": (8, 16, 32),
    "batch_size": ("auto", 128, 256, 512, 1024),
    "embedding_lr": (0.03, 0.05, 0.1, 0.2),
    "initial_accumulator": (0.0, 0.003, 0.03),
    "dense_lr": (0.0005, 0.001, 0.002, 0.004),
}


def init_job(log: Path, out: Path) -> Path:
    """Run `headrace init`; returns the job file."""
    command = [sys.executable, "-m", "headrace", "init", str(log), "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"headrace init {log}: {done.stderr.strip()}")
    return out / "job.yaml"


def job_of_init(job_file: Path, run: Path, seed: int, change: dict[str, Any] | None = None) -> JobConfig:
    """A job file with another seed and run, and maybe a point of the grid."""
    values = yaml.safe_load(job_file.read_text(encoding="utf-8"))
    values["run"] = str(run)
    training = values.setdefault("training", {})
    training["seed"] = seed
    if change is not None:
        model = {"kind": change["model"], "embedding_dim": change["embedding_dim"]}
        proposed = values["model"]
        values["model"] = (proposed if proposed["kind"] == change["model"] else {}) | model
        if change["model"] == "dlrm":  # has no linear part
            values.get("embeddings", {}).pop("linear_optimizer", None)
        training["batch_size"] = change["batch_size"]
        if change["batch_size"] != "auto":
            training.pop("first_batch_size", None)
        training["dense_optimizer"] = {"kind": "adam", "lr": change["dense_lr"]}
        default = values.setdefault("embeddings", {}).setdefault("default", {})
        rates = {"lr": change["embedding_lr"], "initial_accumulator": change["initial_accumulator"]}
        default["optimizer"] = default["optimizer"] | rates
    return JobConfig.from_dict(values, where=str(job_file)).resolve(job_file.parent)


def job_of_two_keys(job_file: Path, log: Path, run: Path, seed: int) -> JobConfig:
    """A job with nothing but the log and the run; its schema is that of `headrace init` if none lies beside the log."""
    data = {"path": str(log)}
    beside = schema_beside(str(log))
    if beside is None or not beside.is_file():
        data["schema"] = str(job_file.parent / "schema.yaml")
    values = {"run": str(run), "data": data, "training": {"seed": seed}}
    return JobConfig.from_dict(values, where="two keys").resolve(Path.cwd())


def grid_points(count: int, seed: int = 5) -> list[dict[str, Any]]:
    """Points of the grid, drawn without repetition."""
    points = [dict(zip(GRID, values, strict=True)) for values in product(*GRID.values())]
    return random.Random(seed).sample(points, min(count, len(points)))


def predict_then_learn(job: JobConfig) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float32], float]:
    """Train a job; log-odds [N] of the first label before each row was learned, labels [N], and seconds of training."""
    logits, labels, seconds = _train(job)
    gc.collect()  # trainers are in cycles of references; their tables would add up to gigabytes over some passes
    return np.concatenate(logits).astype(np.float64), np.concatenate(labels), seconds


def _train(job: JobConfig) -> tuple[list[npt.NDArray[np.float32]], list[npt.NDArray[np.float32]], float]:
    trainer = Trainer(job)
    logits: list[npt.NDArray[np.float32]] = []
    labels: list[npt.NDArray[np.float32]] = []
    update = trainer.state.update_metrics

    def keep(predicted: Any, known: Any, weights: Any) -> None:
        logits.append(predicted[:, 0].copy())
        labels.append(known[:, 0].copy())
        update(predicted, known, weights)

    trainer.state.update_metrics = keep  # type: ignore[method-assign]
    trainer.run()
    return logits, labels, trainer.state.seconds
