"""Weights of labels count in the loss, and nowhere else."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from headrace.errors import ConfigError
from headrace.training import JobConfig, Trainer
from headrace.training.components import build_components

ROWS = 300


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("weights")
    rng = np.random.default_rng(3)
    columns = {
        "click": rng.integers(0, 2, ROWS).astype(np.float32),
        "buy": rng.integers(0, 2, ROWS).astype(np.float32),
        "item": rng.integers(0, 20, ROWS),
    }
    (folder / "logs").mkdir()
    pq.write_table(pa.table(columns), folder / "logs" / "a.parquet")
    return folder


def job_of(folder: Path, run: str, **training: Any) -> JobConfig:
    values = {
        "run": run,
        "data": {"path": "logs", "schema": {"labels": ["click", "buy"], "ids": ["item"]}},
        "pipeline": {"workers": 1, "tuner": "none", "executor": "inline"},
        "model": {"kind": "deepfm", "embedding_dim": 4, "deep": [4]},
        "training": {"batch_size": 64, "threads": 1, **training},
    }
    return JobConfig.from_dict(values, where="job").resolve(folder)


def trained(folder: Path, run: str, **training: Any) -> tuple[dict[str, torch.Tensor], Any]:
    trainer = Trainer(job_of(folder, run, **training))
    (window,) = trainer.run().windows
    return trainer.components.model.state_dict(), window


def test_weights_of_one_change_nothing_and_others_change_the_loss_but_no_metric(folder: Path) -> None:
    plain, window = trained(folder, "plain")
    ones, _ = trained(folder, "ones", label_weights={"buy": 1, "click": 1.0})
    assert all(torch.equal(plain[name], ones[name]) for name in plain)
    heavy, heavier = trained(folder, "heavy", label_weights={"buy": 7})
    assert not all(torch.equal(plain[name], heavy[name]) for name in plain)
    assert heavier.scores["buy"].rows == window.scores["buy"].rows == ROWS
    assert heavier.scores["buy"].log_loss < 2 * window.scores["buy"].log_loss  # not seven times


def test_a_label_of_weight_0_is_scored_and_not_trained_on(folder: Path) -> None:
    job = job_of(folder, "zero", label_weights={"buy": 0})
    trainer = Trainer(job)
    before = trainer.components.model.head.weight.detach().clone()  # type: ignore[union-attr, operator]
    (window,) = trainer.run().windows
    after = trainer.components.model.head.weight.detach()  # type: ignore[union-attr, operator]
    assert torch.equal(before[1], after[1])
    assert (before[0] != after[0]).any()
    assert np.isfinite(window.scores["buy"].auc)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ({"purchase": 2.0}, "training.label_weights.purchase: unknown, expected one of: click, buy"),
        ({"click": 0, "buy": 0}, "training.label_weights: all labels have weight 0, expected one above 0"),
    ],
)
def test_weights_are_checked_against_the_labels(folder: Path, weights: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_components(job_of(folder, "wrong", label_weights=weights))


@pytest.mark.parametrize("weight", [-1, "inf", "much"])
def test_a_weight_is_a_finite_number_of_0_or_more(folder: Path, weight: Any) -> None:
    with pytest.raises(ConfigError, match=r"training.label_weights.click: given .*, expected"):
        job_of(folder, "wrong", label_weights={"click": weight})
