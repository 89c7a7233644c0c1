"""The arms, and the process in which they run: `python -m quality.arms`, asked by lines of JSON on its input.

    {"arm", "log", "job", "seed", "change"}    one pass: {"ne", "auc", "seconds", "rows", "note"}, or {"error"}

`log` is the folder of the log, `job` the file that `headrace init` wrote for it, `change` a point of the grid or null.
Every library has a process of its own, as each decides for itself how its threads wait.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
import traceback
from dataclasses import dataclass, field
from functools import lru_cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from peers.answers import open_answers

from headrace.training import Trainer
from quality import ours
from quality.columns import Columns, read_columns
from quality.linear import DEFAULT_RATE, RATES
from quality.scores import score

__all__ = ["ARMS", "BEST_OF_RATES", "DEFAULT_JOB", "QualityArm"]

DEFAULT_JOB = "headrace init"
BEST_OF_RATES = f"online LR, best of {len(RATES)} rates"


@dataclass(frozen=True)
class QualityArm:
    """Something that predicts the rows of a log, and learns them.

    Attributes:
        key: Its name on the command line.
        name: As shown.
        package: The package that must be installed, which names its process too.
        takes_seed: Whether a seed changes anything.
        is_default: Whether it is what a user gets without tuning.
        settings: Arguments of a peer's function beside columns and seed.
        max_rows: Rows of the longest log that it is tried on, if it is slow.
    """

    key: str
    name: str
    package: str
    takes_seed: bool = True
    is_default: bool = True
    settings: dict[str, Any] = field(default_factory=dict)
    max_rows: int | None = None


ARMS = {
    arm.key: arm
    for arm in (
        QualityArm("init", DEFAULT_JOB, "headrace"),
        QualityArm("two-keys", "headrace, job of two keys", "headrace"),
        QualityArm("lr", f"online LR, rate {DEFAULT_RATE}", "numba", takes_seed=False),
        QualityArm("lr-best", BEST_OF_RATES, "numba", takes_seed=False, is_default=False),
        QualityArm("lightgbm", "LightGBM", "lightgbm", takes_seed=False),
        QualityArm("deepfm", "torch-rechub DeepFM", "torch_rechub", settings={"model": "DeepFM"}),
        QualityArm("dcnv2", "torch-rechub DCN-v2", "torch_rechub", settings={"model": "DCN-v2"}),
        QualityArm(
            "deepfm-16",
            "torch-rechub DeepFM, batches of 16",
            "torch_rechub",
            settings={"model": "DeepFM", "batch_size": 16},
            max_rows=10_000,
        ),
    )
}


@lru_cache(maxsize=1)
def _warm_up(job_file: str) -> None:
    """Train on the first window of a log, so that no pass over it compiles or loads kernels."""
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
        Trainer(ours.job_of_init(Path(job_file), Path(folder) / "run", 0)).run(windows=1)


@lru_cache(maxsize=1)
def _columns(job_file: str) -> Columns:
    return read_columns(ours.job_of_init(Path(job_file), Path(job_file).parent / "run", 0))


def run(asked: dict[str, Any]) -> dict[str, Any]:
    """One pass of an arm over a log."""
    arm, job_file = ARMS[asked["arm"]], Path(asked["job"])
    columns, seed = _columns(asked["job"]), asked["seed"]
    begin, note = time.perf_counter(), ""
    if arm.package == "headrace":
        _warm_up(asked["job"])
        with tempfile.TemporaryDirectory(prefix="headrace-bench-") as folder:
            if arm.key == "init":
                job = ours.job_of_init(job_file, Path(folder) / "run", seed, asked.get("change"))
            else:
                job = ours.job_of_two_keys(job_file, Path(asked["log"]), Path(folder) / "run", seed)
            logits, labels, seconds = ours.predict_then_learn(job)
        if not np.array_equal(labels, columns.labels):
            raise ValueError(f"{asked['log']}: the job trained on other rows, or in another order")
        scores = score(logits, labels)
    elif arm.package == "numba":
        learn = import_module("quality.linear").predict_then_learn
        rates = RATES if arm.name == BEST_OF_RATES else (DEFAULT_RATE,)
        found = {rate: score(learn(columns, rate), columns.labels) for rate in rates}
        best = min(found, key=lambda rate: found[rate]["ne"][0])
        scores, seconds, note = found[best], time.perf_counter() - begin, f"rate {best}" if len(found) > 1 else ""
    else:
        module = import_module("quality.trees" if arm.package == "lightgbm" else "quality.rechub")
        scores = score(module.predict_then_learn(columns, seed, **arm.settings), columns.labels)
        seconds = time.perf_counter() - begin
    return {**scores, "seconds": seconds, "rows": len(columns.labels), "note": note}


def main() -> None:
    answer = open_answers()
    answer({"ready": True})
    for line in sys.stdin:
        try:
            answer(run(json.loads(line)))
        except Exception as error:  # the process goes on with the next log
            traceback.print_exc()
            answer({"error": f"{type(error).__name__}: {error}"})


if __name__ == "__main__":
    main()
