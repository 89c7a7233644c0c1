"""The tuner on the real engine, with emulated CPUs."""

import itertools
import threading
from typing import Any

from headrace.logs.source import ROW_ID
from headrace.simulation import published_pipeline
from headrace.tuning.emulation import EmulatedCpus, EmulatedJob, emulated_pipeline, open_emulated
from headrace.tuning.loop import Tuner
from headrace.tuning.observation import Observation
from headrace.tuning.policies import Proposal
from headrace.tuning.space import Space

SPEC = published_pipeline(0.05)


class Log:
    """Keeps decisions, and wakes up who waits for one that says something."""

    def __init__(self) -> None:
        self.reasons: list[str] = []
        self._written = threading.Condition()

    def record(self, who: str, change: object, reason: str, snapshot: object = None) -> None:
        assert who in ("tuner", "explain")
        with self._written:
            self.reasons.append(reason)
            self._written.notify_all()

    def wait_for(self, text: str) -> None:
        with self._written:
            self._written.wait_for(lambda: any(text in reason for reason in self.reasons))


def test_auto_measures_the_stages_and_follows_a_resize_without_touching_the_order() -> None:
    cpus, log, ids = EmulatedCpus(4), Log(), []

    def take(until: str, batches: Any) -> None:
        while not any(until in reason for reason in log.reasons):
            ids.append(next(batches)[ROW_ID][0].as_py())

    with (
        open_emulated(emulated_pipeline(SPEC, cpus, 100_000)) as batches,
        Tuner(EmulatedJob(batches, cpus, SPEC), "auto", decisions=log, window_s=0.25) as tuner,
    ):
        take("all stages measured", batches)
        cpus.resize(12)
        take("CPUs 4 -> 12", batches)
        ids += [batch[ROW_ID][0].as_py() for batch in itertools.islice(batches, 20)]
        assert tuner.failure is None
        assert tuner.explain().rate_per_s > 0
    assert ids == list(range(len(ids)))


class Broken:
    def start(self, space: Space, observation: Observation) -> Proposal:
        return Proposal(reason="this is the start")

    def decide(self, observation: Observation) -> Proposal:
        raise RuntimeError("no idea")


def test_a_policy_that_raises_is_switched_off_and_the_job_goes_on() -> None:
    cpus, log = EmulatedCpus(4), Log()
    with (
        open_emulated(emulated_pipeline(SPEC, cpus, 1000)) as batches,
        Tuner(EmulatedJob(batches, cpus, SPEC), Broken(), decisions=log, window_s=0.05) as tuner,
    ):
        next(batches)
        log.wait_for("disabled")
        assert isinstance(tuner.failure, RuntimeError)
        assert log.reasons[-1] == "disabled, because it raised RuntimeError: no idea"
        assert next(batches) is not None


def test_closing_leaves_no_thread_behind() -> None:
    cpus = EmulatedCpus(2)
    before = threading.active_count()
    with (
        open_emulated(emulated_pipeline(SPEC, cpus, 100)) as batches,
        Tuner(EmulatedJob(batches, cpus, SPEC), window_s=0.05) as tuner,
    ):
        next(batches)
    tuner.close()
    assert threading.active_count() == before
