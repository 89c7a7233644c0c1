"""A run keeps the precision it began with: written with its reason, kept in checkpoints, bit for bit after a resume."""

from pathlib import Path

import numpy as np
import pytest

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.observe.decisions import read_decisions
from headrace.training import CheckpointFolder, JobConfig, Trainer

PRECISIONS = ("fp32", "bf16")


@pytest.fixture(scope="module")
def logs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("precision") / "logs"
    generate_logs(GenerateConfig(rows=6_000, windows=2, users=300, items=200, seed=5), folder)
    return folder


def make_job(logs: Path, run: Path, precision: str) -> JobConfig:
    values = {
        "run": str(run),
        "data": {"path": str(logs)},
        "pipeline": {"tuner": "none", "workers": 1},
        "model": {"kind": "dlrm", "embedding_dim": 8, "bottom": [64], "top": [64]},
        "training": {"batch_size": 512, "threads": 1, "precision": precision},
    }
    return JobConfig.from_dict(values, where="test").resolve(run)


def reasons(run: Path) -> list[str]:
    return [d.reason for d in read_decisions(run / "decisions.jsonl") if "matrix products" in d.reason]


def dense(run: Path) -> dict[str, np.ndarray]:  # type: ignore[type-arg]
    folder = CheckpointFolder(run / "checkpoints")
    return dict(folder.load(folder.numbers()[-1]).arrays["dense"])


@pytest.mark.parametrize("precision", PRECISIONS)
def test_in_two_parts_a_run_gives_the_same_bits_as_in_one(logs: Path, tmp_path: Path, precision: str) -> None:
    Trainer(make_job(logs, tmp_path / "whole", precision)).run()
    for _ in range(2):
        Trainer(make_job(logs, tmp_path / "parts", precision)).run(windows=1)
    whole, parts = dense(tmp_path / "whole"), dense(tmp_path / "parts")
    assert all(np.array_equal(whole[name], parts[name]) for name in whole)
    assert all(array.dtype == np.float32 for array in whole.values())


def test_what_was_chosen_is_written_and_kept(logs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    Trainer(make_job(logs, run, "bf16")).run(windows=1)
    folder = CheckpointFolder(run / "checkpoints")
    assert folder.load(folder.numbers()[-1]).state["precision"] == "bf16"
    Trainer(make_job(logs, run, "auto")).run(windows=1)  # alone, so small a model would be fp32
    Trainer(make_job(logs, run, "fp32")).run()
    assert reasons(run) == [
        "matrix products in bf16: set by training.precision",
        "matrix products in bf16: decided when the run started",
        "matrix products in fp32: set by training.precision",
    ]
    Trainer(make_job(logs, tmp_path / "fresh", "auto")).run(windows=1)
    assert "forward pass has only" in reasons(tmp_path / "fresh")[0]
