"""A pipeline that is opened without a word about workers is tuned while it runs, and can say what limits it."""

import itertools
import threading
import time
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace.pipeline.tuners as tuners
from headrace.errors import ConfigError
from headrace.pipeline import Pipeline, from_source, read_arrow
from headrace.resources import Resources, effective_resources
from headrace.testing.pipelines import SyntheticSource, batches_of, rows_of
from headrace.tuning import Observation, Proposal, Space
from headrace.tuning.live import LiveJob
from headrace.tuning.loop import Tuner


def pipeline(seconds: float = 0.0) -> Pipeline:
    def work(rows: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(seconds)
        return rows

    source = SyntheticSource([[(100, 3, 1)] * 10] * 10)
    return from_source(source).map(work).shuffle(num_rows=700, seed=3).batch(64)


def tuner_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-tuner")]


class Restless:
    """A policy that changes everything all the time."""

    def __init__(self, most: int = 8, changes: int = 1000) -> None:
        self.random, self.most, self.changes = np.random.default_rng(0), most, changes
        self.num_changes = 0

    def start(self, space: Space, observation: Observation) -> Proposal:
        self.space = space
        return self.decide(observation)

    def decide(self, observation: Observation) -> Proposal:
        self.num_changes += 1
        if self.num_changes > self.changes:
            return Proposal(reason="nothing, because it has had enough")
        values = {
            knob.name: int(self.random.integers(1, self.most + 1)) for knob in self.space.knobs if knob.unit != "bytes"
        }
        return Proposal(values, "restless")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuners that begin at once and look often."""
    monkeypatch.setattr(tuners, "AFTER_S", 0.0)
    monkeypatch.setattr("headrace.tuning.loop.WINDOW_S", 0.05)


def test_the_sequence_of_batches_is_the_same_with_and_without_tuning(quick: None) -> None:
    pipe, policy = pipeline(seconds=0.01), Restless()
    expected = batches_of(pipe, executor="inline")
    assert batches_of(pipe, tuner=policy) == expected
    assert policy.num_changes > 3
    assert batches_of(pipe) == expected  # the default is "auto"
    assert batches_of(pipe, tuner="none") == expected


def test_the_sequence_of_batches_is_the_same_while_processes_come_and_go(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.tuning.loop.WINDOW_S", 0.5)
    pipe, policy = pipeline(seconds=0.03), Restless(most=3, changes=3)
    assert batches_of(pipe, tuner=policy, executor="process") == batches_of(pipe, executor="inline")
    assert policy.num_changes > 1


def test_a_resize_in_mid_stream_changes_no_batch(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, counts = pipeline(seconds=0.01), iter([2] * 3 + [7] * 4 + [1] * 1000)

    def resized() -> Resources:
        now = effective_resources()
        return Resources(cpus=FakeCpus(next(counts)), memory=now.memory)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveJob.__init__, "__kwdefaults__", {"resources": resized})
    with pipe.open() as batches:
        seen = [rows_of(batch) for batch in batches]
        changed = [decision.reason for decision in batches.decisions if "CPUs 2 -> 7" in decision.reason]
    assert seen == batches_of(pipe, executor="inline")
    assert changed


class FakeCpus:
    def __init__(self, count: int) -> None:
        self.count = count
        self.num_threads = count


def test_auto_is_the_default_unless_workers_are_set_and_decisions_are_kept(quick: None) -> None:
    def whose(**options: Any) -> set[str]:
        with pipeline(seconds=0.004).open(**options) as batches:
            for _ in batches:
                pass
            return {decision.who for decision in batches.decisions}

    assert "tuner" in whose()
    assert "tuner" in whose(workers=2, tuner="auto")
    assert "tuner" not in whose(workers=2)
    assert "tuner" not in whose(workers={"map": 2})
    assert "tuner" not in whose(executor="inline")
    assert "tuner" not in whose(tuner="none")


def test_no_tuner_breaks_the_memory_budget(quick: None) -> None:
    budget = 128 << 10
    policy = Restless()
    with pipeline(seconds=0.01).open(tuner=policy, memory_bytes=budget) as batches:
        for _ in batches:
            pass
        assert batches.counters(60).peak_bytes <= budget
        assert not [each for each in batches.decisions if each.who == "memory ledger"]  # nothing went above it
    assert policy.num_changes > 3


def test_an_unknown_tuner_is_refused_when_the_pipeline_is_opened() -> None:
    with pytest.raises(ConfigError, match="tuner: given 'autp', expected one of auto, one_per_stage"):
        pipeline().open(tuner="autp")


def test_a_short_job_neither_loads_nor_runs_a_tuner(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str) -> Any:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(tuners, "provider", loaded)
    with pipeline().open() as batches:
        assert tuner_threads() == []  # not before the first batch is asked for
        assert sum(len(rows_of(batch)) for batch in batches) > 0
        assert tuner_threads() == []  # and no longer than there are batches


@pytest.mark.parametrize("left", ["closed", "forgotten", "reloaded"])
def test_no_tuner_outlives_its_batches(quick: None, left: str) -> None:
    batches = pipeline(seconds=0.002).open()
    next(batches)
    time.sleep(0.2)
    assert tuner_threads()
    if left == "closed":
        batches.close()
    elif left == "forgotten":
        del batches
    else:
        batches.load_state_dict(batches.state_dict())
    deadline = time.monotonic() + 3
    while tuner_threads() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert tuner_threads() == []


def test_batches_explain_themselves_with_and_without_a_tuner(quick: None) -> None:
    for options in ({}, {"workers": 2}):
        with pipeline(seconds=0.05).open(**options) as batches:
            with pytest.raises(ConfigError, match="nothing has been delivered yet"):
                batches.explain()
            for _ in range(60):
                next(batches)
            found = batches.explain()
        assert (found.limit, found.stage) == ("storage", "map"), found
        assert [stage.name for stage in found.stages] == ["source", "map", "shuffle", "batch"]
        assert bool(found.tuner) == (not options)


def test_what_limits_a_running_job_is_written_down_when_it_changes(
    quick: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("headrace.tuning.loop.EXPLAIN_EVERY_S", 0.1)
    with pipeline(seconds=0.02).open() as batches:
        for number, _ in enumerate(batches):
            time.sleep(0.0 if number < 60 else 0.05)
        found = [decision for decision in batches.decisions if decision.who == "explain"]
    limits = [(each.snapshot["limit"], each.snapshot["stage"]) for each in found]
    assert ("storage", "map") in limits
    assert limits[-1][0] == "consumer"
    assert all(a != b for a, b in itertools.pairwise(limits))
    assert str(found[0].snapshot["text"]).startswith("limit: ")


def test_a_pipeline_explains_itself_without_a_trainer() -> None:
    found = pipeline(seconds=0.03).explain(seconds=0.5, workers=2)
    assert (found.limit, found.stage) == ("storage", "map"), found


def test_a_slow_trainer_and_a_small_budget_are_named() -> None:
    table = pa.table({"x": np.arange(2_000_000)})
    with read_arrow(table).batch(10_000).open(workers=2) as batches:
        for _ in range(150):
            next(batches)
            time.sleep(0.01)
        found = batches.explain()
    assert (found.limit, found.worker_gain) == ("consumer", 0.0), found
    assert 50 < found.consumer_per_s < 105

    def slow(rows: pa.RecordBatch) -> pa.RecordBatch:
        time.sleep(0.01)
        return rows

    with read_arrow(table).map(slow).batch(10_000).open(workers=4, memory_bytes="1200KiB") as batches:
        for _ in range(100):
            next(batches)
        found = batches.explain()
    assert found.limit == "memory", found


def test_python_that_holds_the_interpreter_is_named() -> None:
    def hold(rows: pa.RecordBatch) -> pa.RecordBatch:
        end = time.thread_time() + 0.02
        while time.thread_time() < end:
            pass
        return rows

    with from_source(SyntheticSource([[(100, 0, 0)] * 40] * 10)).map(hold).prefetch(99).open(workers=4) as batches:
        for _ in range(4):  # on a machine that is busy with other tests, waits for a CPU may hide those for the lock
            for _ in range(40):
                next(batches)
            found = batches.explain()
            if found.limit == "GIL":
                break
    assert (found.limit, found.stage) == ("GIL", "map"), found
    assert 'executor="process"' in found.help


def test_the_tuner_of_a_pipeline_costs_less_than_a_hundredth_of_a_core() -> None:
    with pipeline(seconds=0.09).open(workers=2) as batches, Tuner(LiveJob(batches), "auto") as tuner:
        end = time.monotonic() + 4.5
        for _ in batches:
            if time.monotonic() > end:
                break
        assert tuner.failure is None
        assert 0.0 < tuner.cpu_ratio < 0.01
