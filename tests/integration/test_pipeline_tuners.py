"""A pipeline that is opened without a word about workers is tuned while it runs, and can say what limits it."""

import gc
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

import headrace.pipeline.engine.tuners as tuners
from headrace.errors import ConfigError
from headrace.pipeline import BatchIterator, Pipeline, from_source
from headrace.resources import Resources, effective_resources
from headrace.testing.pipelines import SyntheticSource, batches_of, rows_of
from headrace.tuning import Observation, Proposal, Space
from headrace.tuning.live import LiveJob


def pipeline(num_splits: int = 10) -> Pipeline:
    def same(rows: pa.RecordBatch) -> pa.RecordBatch:
        return rows

    source = SyntheticSource([[(100, 3, 1)] * 10] * num_splits)
    return from_source(source).map(same).shuffle(num_rows=700, seed=3).batch(64)


def tuner_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("headrace-tuner")]


class Log:
    """Decisions of a tuner, for which a test may wait."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._written = threading.Condition()

    def record(self, who: str, change: Mapping[str, Any], reason: str, snapshot: Any = None) -> None:
        with self._written:
            self.reasons += [reason] if who == "tuner" else []
            self._written.notify_all()

    def wait_for(self, text: str) -> None:
        with self._written:
            self._written.wait_for(lambda: self.has(text))

    def has(self, text: str) -> bool:
        return any(text in reason for reason in self.reasons)

    def read_until(self, text: str, batches: BatchIterator) -> list[list[Any]]:
        """The rows of batches, read for as long as a tuner needs to measure the stages and write this."""
        found = []
        while not self.has(text):
            found.append(rows_of(next(batches)))
        return found


class Restless:
    """A policy that changes everything all the time; a test may wait for its changes."""

    def __init__(self, most: int = 8) -> None:
        self.random, self.most, self.num_changes = np.random.default_rng(0), most, 0
        self._changed = threading.Condition()

    def start(self, space: Space, observation: Observation) -> Proposal:
        self.space = space
        return self.decide(observation)

    def decide(self, observation: Observation) -> Proposal:
        with self._changed:
            self.num_changes += 1
            self._changed.notify_all()
        values = {
            knob.name: int(self.random.integers(1, self.most + 1)) for knob in self.space.knobs if knob.unit != "bytes"
        }
        return Proposal(values, "restless")

    def wait_for(self, num_changes: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self.num_changes >= num_changes)

    def batches_between_changes(self, batches: BatchIterator, every: int) -> list[list[Any]]:
        """The rows of all batches, with at least one change of the settings in every so many."""
        found = []
        for number, batch in enumerate(batches):
            found.append(rows_of(batch))
            if number % every == 0:
                self.wait_for(number // every + 1)
        return found


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tuners that begin at once and look often."""
    monkeypatch.setattr(tuners, "AFTER_S", 0.0)
    monkeypatch.setattr("headrace.tuning.loop.WINDOW_S", 0.02)


def test_the_sequence_of_batches_is_the_same_with_and_without_tuning(quick: None) -> None:
    pipe, policy = pipeline(), Restless()
    expected = batches_of(pipe, executor="inline")
    with pipe.open(tuner=policy) as batches:
        assert policy.batches_between_changes(batches, every=10) == expected
    assert batches_of(pipe) == expected  # the default is "auto"
    assert batches_of(pipe, tuner="none") == expected


def test_the_sequence_of_batches_is_the_same_while_processes_come_and_go(quick: None) -> None:
    pipe, policy = pipeline(), Restless(most=3)
    with pipe.open(tuner=policy, executor="process") as batches:
        assert policy.batches_between_changes(batches, every=50) == batches_of(pipe, executor="inline")


def test_a_resize_in_mid_stream_changes_no_batch(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    pipe, log, cpus = pipeline(num_splits=20_000), Log(), FakeCpus(2)  # more than is ever read

    def resized() -> Resources:
        return Resources(cpus=cpus, memory=effective_resources().memory)  # type: ignore[arg-type]

    monkeypatch.setattr(LiveJob.__init__, "__kwdefaults__", {"resources": resized, "measures_machine": False})
    with pipe.open(decisions=log) as batches:
        seen = log.read_until("2 CPUs divided evenly", batches)
        cpus.count = cpus.num_threads = 7
        seen += log.read_until("CPUs 2 -> 7", batches)
        seen += [rows_of(next(batches)) for _ in range(100)]
    with pipe.open(executor="inline") as batches:
        assert seen == [rows_of(next(batches)) for _ in seen]


class FakeCpus:
    def __init__(self, count: int) -> None:
        self.count = count
        self.num_threads = count


@pytest.mark.parametrize(
    ("options", "tuned"),
    [
        ({}, True),
        ({"workers": 2, "tuner": "auto"}, True),
        ({"workers": 2}, False),
        ({"workers": {"map": 2}}, False),
        ({"executor": "inline"}, False),
        ({"tuner": "none"}, False),
    ],
)
def test_auto_is_the_default_unless_workers_are_set_and_decisions_are_kept(
    quick: None, options: dict[str, Any], tuned: bool
) -> None:
    log = Log()
    with pipeline().open(decisions=log, **options) as batches:
        next(batches)
        if tuned:
            log.wait_for("divided evenly")
        for _ in batches:
            pass
        assert ("tuner" in {decision.who for decision in batches.decisions}) is tuned


def test_no_tuner_breaks_the_memory_budget(quick: None) -> None:
    budget = 128 << 10
    policy = Restless()
    with pipeline().open(tuner=policy, memory_bytes=budget) as batches:
        policy.batches_between_changes(batches, every=10)
        assert batches.counters(60).peak_bytes <= budget
        assert not [each for each in batches.decisions if each.who == "memory ledger"]  # nothing went above it


def test_an_unknown_tuner_is_refused_when_the_pipeline_is_opened() -> None:
    with pytest.raises(ConfigError, match="given tuner 'autp', expected one of auto, one_per_stage"):
        pipeline().open(tuner="autp")


def test_a_job_that_ends_before_its_tuner_begins_loads_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(name: str) -> Any:
        raise AssertionError(f"{name} was loaded")

    monkeypatch.setattr(tuners, "provider", loaded)
    monkeypatch.setattr(tuners, "AFTER_S", 1e6)
    with pipeline().open() as batches:
        assert tuner_threads() == []  # not before the first batch is asked for
        assert sum(len(rows_of(batch)) for batch in batches) > 0
        assert tuner_threads() == []  # and no longer than there are batches


@pytest.mark.parametrize("left", ["closed", "forgotten", "reloaded"])
def test_no_tuner_outlives_its_batches(quick: None, left: str) -> None:
    log = Log()
    batches = pipeline().open(decisions=log)
    next(batches)
    log.wait_for("divided evenly")
    assert tuner_threads()
    if left == "closed":
        batches.close()
    elif left == "forgotten":
        del batches
        gc.collect()
    else:
        batches.load_state_dict(batches.state_dict())
    assert tuner_threads() == []


class Watching:
    """A policy that changes nothing, and knows whether it has seen batches delivered."""

    saw_batches = False

    def start(self, space: Space, observation: Observation) -> Proposal:
        return self.decide(observation)

    def decide(self, observation: Observation) -> Proposal:
        self.saw_batches |= observation.delivered > 0
        return Proposal(reason="it only watches")


@pytest.mark.parametrize("tuned", [True, False])
def test_batches_explain_themselves_with_and_without_a_tuner(quick: None, tuned: bool) -> None:
    policy = Watching()
    with pipeline(num_splits=1000).open(tuner=policy if tuned else "none") as batches:
        with pytest.raises(ConfigError, match="nothing has been delivered yet"):
            batches.explain()
        for number, _ in enumerate(batches):
            if number >= 60 and (policy.saw_batches or not tuned):
                break
        found = batches.explain()
    assert [stage.name for stage in found.stages] == ["source", "map", "shuffle", "batch"]
    assert found.rate_per_s > 0
    assert ("it only watches" in found.tuner) is tuned


def test_a_pipeline_explains_itself_without_a_trainer() -> None:
    found = pipeline(num_splits=1000).explain(seconds=0.2, workers=2)
    assert [stage.name for stage in found.stages] == ["source", "map", "shuffle", "batch"]
    assert found.limit
