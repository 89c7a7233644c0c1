"""Feature work under a scheduler is a stage like those of the pipeline, on a clock that only the work moves."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.models import WideDeepConfig
from headrace.pipeline import BatchIterator, read_arrow
from headrace.scheduling.config import SchedulerConfig
from headrace.training.step import TrainingStep
from headrace.training.stepping import Scheduling, StepRunner
from headrace.tuning.space import Space

NUM_BATCHES, BATCH_SIZE = 5, 16
SCHEMA = Schema.from_dict({"labels": ["click"], "dense": ["age"], "ids": ["user"]}, where="schema")


class Clock:
    """Seconds that pass when work says so."""

    now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "monotonic", clock)
    for module in ("scheduling.work", "scheduling.runtime", "training.stepping"):
        monkeypatch.setattr(f"headrace.{module}.perf_counter", clock)
    monkeypatch.setattr("headrace.scheduling.work.thread_time", clock)
    return clock


@contextmanager
def job(
    monkeypatch: pytest.MonkeyPatch, clock: Clock, *, features_s: float, dense_s: float
) -> Iterator[tuple[BatchIterator, StepRunner]]:
    """A job under `recs` in the caller's thread, whose features and dense work take this long a batch."""
    rng = np.random.default_rng(0)
    num_rows = NUM_BATCHES * BATCH_SIZE
    users, clicks = rng.integers(0, 50, num_rows), rng.integers(0, 2, num_rows).astype(float)
    table = pa.table({"click": clicks, "age": rng.random(num_rows), "user": users})
    plan = FeaturePlan.default(SCHEMA).keep_plain("for this test")
    embeddings = EmbeddingsConfig.from_dict({"default": {"num_embeddings": 64}}, where="embeddings")
    model = WideDeepConfig().build(
        num_dense=1, sparse_keys=plan.sparse_keys, num_labels=1, embeddings=embeddings, seed=0
    )
    step = TrainingStep(model, torch.optim.SGD(model.parameters(), lr=0.1))

    def slow(seconds: float, function: Any) -> Any:
        def call(*arguments: Any, **options: Any) -> Any:
            clock.now_s += seconds
            return function(*arguments, **options)

        return call

    monkeypatch.setattr(FeaturePlan, "apply", slow(features_s, FeaturePlan.apply))
    monkeypatch.setattr(TrainingStep, "forward_backward", slow(dense_s, TrainingStep.forward_backward))
    scheduling = Scheduling(SchedulerConfig(policy="recs", threads=1), model)
    with (
        read_arrow(table).batch(BATCH_SIZE).open(executor="inline", tuner="none") as batches,
        scheduling.open(batches, step, lambda segment: plan, budget_bytes=1 << 30) as steps,
    ):
        yield batches, steps


def run(steps: StepRunner) -> int:
    num_steps = 0
    while steps.run_step() is not None:
        num_steps += 1
    return num_steps


def test_features_that_dominate_a_scheduled_job_are_its_limit(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with job(monkeypatch, clock, features_s=8.0, dense_s=1.0) as (batches, steps):
        run(steps)
        found = batches.explain()
    assert found.stage == "features"
    assert found.limit in ("workers", "CPUs")
    assert found.rate_per_s == pytest.approx(1 / 9)
    assert "limit: " in str(found)
    assert "at stage features" in str(found)
    assert found.help.endswith("fixed by the job: scheduler.threads")


def test_dense_work_that_dominates_a_scheduled_job_is_its_limit(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    with job(monkeypatch, clock, features_s=0.05, dense_s=1.0) as (batches, steps):
        run(steps)
        found = batches.explain()
    assert found.limit == "consumer"


def test_the_stage_counts_batches_seconds_and_rows_and_the_trainer_is_the_consumer(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with job(monkeypatch, clock, features_s=2.0, dense_s=3.0) as (_, steps):
        assert run(steps) == NUM_BATCHES
        seen = steps.counters(float("inf"))
    features = seen.stages["features"]
    assert list(seen.stages)[-1] == "features"
    assert (features.num_elements, features.num_rows_out) == (NUM_BATCHES, NUM_BATCHES * BATCH_SIZE)
    assert (features.cpu_s, features.wall_s) == (2.0 * NUM_BATCHES, 2.0 * NUM_BATCHES)
    assert features.num_bytes_out > 0
    assert (features.queue_depth, features.visit_ratio) == (0, 1.0)
    assert seen.consumer.num_batches == NUM_BATCHES
    assert seen.consumer.num_rows == NUM_BATCHES * BATCH_SIZE
    assert seen.consumer.wait_s == pytest.approx(2.0 * NUM_BATCHES)
    assert seen.consumer.busy_s == pytest.approx(3.0 * NUM_BATCHES)


def test_the_tuner_sees_the_threads_of_features_and_cannot_change_them(
    monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    with job(monkeypatch, clock, features_s=1.0, dense_s=1.0) as (batches, _):
        knob = Space.from_tunables(batches.tunables.values())["features.workers"]
        assert (knob.min, knob.max, knob.clip(8)) == (1, 1, 1)
