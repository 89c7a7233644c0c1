"""Learning-rate schedules: one factor for all rates, by rows trained on, that is the same wherever a run is resumed."""

from __future__ import annotations

import copy
import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from small_batches import make_batch, make_model

from headrace.errors import ConfigError
from headrace.models import DLRM
from headrace.observe.report import render_report
from headrace.observe.run_data import RunData
from headrace.registry import LEARNING_RATE_SCHEDULES
from headrace.training import LearningRateScheduleConfig, Trainer, TrainingStep
from headrace.training.components import build_components
from headrace.training.job import JobConfig, TrainingConfig
from headrace.training.learning_rate import Constant, Cosine, InverseSquareRoot, StepDecay, schedule_messages

OWN = """
from headrace.training import LearningRateScheduleConfig

class Halves(LearningRateScheduleConfig):
    rows: int

    def decay(self, num_rows):
        return 0.5 ** (num_rows / self.rows) if num_rows < 1000 else float("nan")
"""


@pytest.fixture
def own_schedule(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    path = list(sys.path)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_schedules.py").write_text(OWN)
    yield "own_schedules:Halves"
    sys.path[:] = path
    sys.modules.pop("own_schedules", None)


def training(schedule: dict[str, Any]) -> TrainingConfig:
    return TrainingConfig.from_dict({"learning_rate_schedule": schedule}, where="training")


@pytest.mark.parametrize(
    ("schedule", "factors"),
    [
        (Constant(kind="constant"), {0: 1.0, 10**9: 1.0}),
        (
            Constant(kind="constant", warm_up_rows=1000, warm_up_from=0.2),
            {0: 0.2, 500: 0.6, 999: 0.9992, 1000: 1.0, 5000: 1.0},
        ),
        (
            InverseSquareRoot(kind="inverse_square_root", after_rows=100, min_factor=0.3),
            {0: 1.0, 100: 1.0, 400: 0.5, 900: 1 / 3, 10_000: 0.3},
        ),
        (
            StepDecay(kind="step_decay", every_rows=10, decay_factor=0.5, min_factor=0.2),
            {0: 1.0, 9: 1.0, 10: 0.5, 20: 0.25, 30: 0.2, 10**6: 0.2},
        ),
        (
            Cosine(kind="cosine", cycle_rows=100, min_factor=0.0),
            {0: 1.0, 50: 0.5, 75: 0.5 - math.sqrt(0.125), 100: 1.0, 150: 0.5},
        ),
        (
            StepDecay(kind="step_decay", every_rows=10, warm_up_rows=20, warm_up_from=0.5),
            {0: 0.5, 10: 0.5 * 0.75, 20: 0.25},
        ),
    ],
    ids=lambda value: getattr(value, "kind", ""),
)
def test_factors_are_those_of_the_definition(schedule: LearningRateScheduleConfig, factors: dict[int, float]) -> None:
    assert {rows: schedule.factor(rows) for rows in factors} == pytest.approx(factors)


def test_every_kind_is_read_from_a_job_file_and_written_as_it_was_read() -> None:
    needs = {"inverse_square_root": {"after_rows": 5}, "step_decay": {"every_rows": 5}, "cosine": {"cycle_rows": 5}}
    for kind in LEARNING_RATE_SCHEDULES:
        given = {"kind": kind, "warm_up_rows": 10, **needs.get(kind, {})}
        read = training(given)
        assert TrainingConfig.from_dict(read.model_dump(), where="again") == read
    with pytest.raises(ConfigError, match=r"learning_rate_schedule.every_rows: missing"):
        training({"kind": "step_decay"})
    with pytest.raises(ConfigError, match=r"learning_rate_schedule.kind: given 'linear', expected: one of constant"):
        training({"kind": "linear"})


def test_a_schedule_of_ones_own_is_named_by_its_place_and_a_factor_that_is_none_is_refused(own_schedule: str) -> None:
    schedule = training({"kind": own_schedule, "rows": 100, "warm_up_rows": 200}).learning_rate_schedule
    assert schedule is not None
    assert schedule.factor(100) == pytest.approx(0.5 * 0.55)
    with pytest.raises(ConfigError, match=r"own_schedules:Halves gives nan after 1,000 rows, expected a number >= 0"):
        schedule.factor(1000)


def parameters(model: DLRM) -> list[torch.Tensor]:
    assert model.embeddings.table_group is not None
    rows = model.embeddings.table_group.storage.weights
    return [*(each.detach().clone() for each in model.parameters()), torch.from_numpy(rows.copy())]


def same(one: list[torch.Tensor], other: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def test_a_step_has_the_factor_of_the_rows_before_it_in_dense_parameters_and_embeddings() -> None:
    schedule = StepDecay(kind="step_decay", every_rows=40, min_factor=0.0)
    scheduled = make_model({"kind": "sgd", "lr": 0.25})
    step = TrainingStep(scheduled, torch.optim.SGD(scheduled.parameters(), lr=0.5, fused=True), schedule=schedule)
    for number, factor in enumerate((1.0, 1.0, 0.5, 0.5, 0.25)):  # before them: 0, 24, 48, 72, 96 rows
        plain = make_model({"kind": "sgd", "lr": 0.25 * factor})
        plain.load_state_dict(copy.deepcopy(scheduled.state_dict()))
        mine, theirs = scheduled.embeddings.table_group, plain.embeddings.table_group
        assert mine is not None
        assert theirs is not None
        theirs.load_state_dict(mine.state_dict())
        assert step.lr_factor == factor
        step(make_batch(number))
        TrainingStep(plain, torch.optim.SGD(plain.parameters(), lr=0.5 * factor, fused=True))(make_batch(number))
        assert same(parameters(scheduled), parameters(plain)), number


def test_a_constant_schedule_trains_as_none_does_and_a_decaying_one_does_not() -> None:
    found = []
    for schedule in (None, Constant(kind="constant"), Cosine(kind="cosine", cycle_rows=100)):
        model = make_model(
            {"kind": "rowwise_adagrad", "lr": 0.1, "weight_decay": 0.1, "weight_decay_mode": "decoupled"}
        )
        step = TrainingStep(model, torch.optim.AdamW(model.parameters(), lr=0.01), schedule=schedule)
        for seed in range(4):
            step(make_batch(seed))
        found.append(parameters(model))
    assert same(found[0], found[1])
    assert not any(torch.equal(a, b) for a, b in zip(found[0], found[2], strict=True))


def test_micro_batches_count_as_the_rows_of_their_batch() -> None:
    model = make_model({"kind": "sgd", "lr": 0.1})
    schedule = StepDecay(kind="step_decay", every_rows=24)
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1), schedule=schedule)
    for rows in ((0, 10), (10, 24)):
        step.forward_backward(make_batch(0).slice(*rows), num_rows=24)
        assert step.lr_factor == 1.0
    step.push()
    step.update()
    assert (step.num_rows, step.lr_factor) == (24, 0.5)


def test_rows_of_all_trainers_count() -> None:
    model = make_model({"kind": "sgd", "lr": 0.1})
    schedule = StepDecay(kind="step_decay", every_rows=72)
    step = TrainingStep(
        model, torch.optim.SGD(model.parameters(), lr=0.1), schedule=schedule, average=lambda _, rows: 3 * rows
    )
    step(make_batch(0))
    assert (step.num_rows, step.lr_factor) == (72, 0.5)


def test_an_optimizer_whose_rate_cannot_change_is_refused_with_a_schedule() -> None:
    job: dict[str, Any] = {
        "run": "unused",
        "data": {"path": "unused", "schema": {"labels": ["click"], "ids": ["item", "user"]}},
        "embeddings": {"tables": {"item": {"optimizer": {"kind": "ftrl"}}}, "default": {"optimizer": {"kind": "ftrl"}}},
        "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
    }
    build_components(JobConfig.from_dict(job, where="test"))
    job["training"] = {"learning_rate_schedule": {"kind": "constant"}}
    with pytest.raises(ConfigError, match=r"table item: optimizer ftrl: rows .* expected another optimizer with a"):
        build_components(JobConfig.from_dict(job, where="test"))
    job |= {"embeddings": {"linear_optimizer": {"kind": "ftrl"}}, "model": {"kind": "wide_deep", "deep": [8]}}
    with pytest.raises(ConfigError, match=r"embeddings.linear_optimizer: optimizer ftrl: rows .* expected another"):
        build_components(JobConfig.from_dict(job, where="test"))


def test_a_start_says_the_factor_and_a_changed_schedule_says_both() -> None:
    decay = StepDecay(kind="step_decay", every_rows=10)
    before = decay.model_dump(mode="json")
    assert schedule_messages(None, None, 50) == []
    (line,) = schedule_messages(decay, None, 0)
    assert line.startswith('learning rates are 1 times the job\'s after 0 rows: {"kind":"step_decay"')
    assert len(schedule_messages(decay, before, 10)) == 1
    changed, now = schedule_messages(Constant(kind="constant"), before, 10)
    assert changed.startswith('training.learning_rate_schedule was {"kind":"step_decay"')
    assert 'is now {"kind":"constant"' in changed
    assert now.startswith("learning rates are 1 times")
    (line,) = schedule_messages(None, before, 10)
    assert line.endswith("is now none; rows still count from the first of the run")


def test_a_run_goes_on_at_the_rows_of_its_checkpoint_and_reports_the_factor(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    columns = {"click": rng.integers(0, 2, 300), "item": rng.integers(0, 9, 300), "user": rng.integers(0, 9, 300)}
    (tmp_path / "logs").mkdir()
    pq.write_table(pa.table(columns), tmp_path / "logs" / "a.parquet")
    said: list[str] = []

    def train(schedule: dict[str, Any] | None) -> None:
        values = {
            "run": "run",
            "data": {
                "path": "logs",
                "schema": {"labels": ["click"], "ids": ["item", "user"]},
                "window": {"kind": "rows", "num_rows": 100},
            },
            "pipeline": {"workers": 1, "tuner": "none", "executor": "inline"},
            "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [4], "top": [4]},
            "training": {"batch_size": 50, "threads": 1, "log_every_steps": 1, "learning_rate_schedule": schedule},
        }
        Trainer(JobConfig.from_dict(values, where="job").resolve(tmp_path), on_message=said.append).run(windows=1)

    train(None)
    assert not any("learning" in line for line in said)
    train({"kind": "step_decay", "every_rows": 100})
    assert "training.learning_rate_schedule was none, is now" in said[-2]
    assert said[-1].startswith("learning rates are 0.5 times the job's after 100 rows")
    said.clear()
    train({"kind": "step_decay", "every_rows": 100})
    assert [line for line in said if "learning_rate_schedule was" in line] == []
    records = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    factors = [record.get("lr_factor") for record in records if record["kind"] == "step"]
    assert factors == [None, None, 0.5, 0.25, 0.25, 0.125]
    assert "Learning rates" in render_report(RunData.read(tmp_path / "run"), made="now")


def test_a_first_factor_without_a_warm_up_is_refused() -> None:
    Constant(kind="constant", warm_up_rows=10, warm_up_from=0.5)
    with pytest.raises(ConfigError, match=r"warm_up_from is only for schedules with warm_up_rows, given none"):
        Constant(kind="constant", warm_up_from=0.5)
