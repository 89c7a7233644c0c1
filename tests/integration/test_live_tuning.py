"""The tuner on the real engine, with emulated CPUs."""

import itertools
import threading
import time

import pytest

from headrace.logs.pieces import ROW_ID
from headrace.simulation import published_pipeline
from headrace.tuning.emulation import EmulatedCpus, EmulatedJob, emulated_pipeline, open_emulated
from headrace.tuning.loop import Tuner
from headrace.tuning.observation import Observation
from headrace.tuning.policies import Proposal
from headrace.tuning.policies.oracle import true_rates
from headrace.tuning.rates import fluid_rate
from headrace.tuning.space import Space

SPEC = published_pipeline(0.25)


class Log:
    def __init__(self) -> None:
        self.reasons: list[str] = []

    def record(self, who: str, change: object, reason: str, snapshot: object = None) -> None:
        assert who == "tuner"
        self.reasons.append(reason)


def test_auto_finds_the_rate_of_the_cpus_and_follows_a_resize_without_touching_the_order() -> None:
    cpus, log = EmulatedCpus(4), Log()
    ids, rates = [], {}
    with (
        open_emulated(emulated_pipeline(SPEC, cpus, 10_000)) as batches,
        Tuner(EmulatedJob(batches, cpus, SPEC), "auto", decisions=log, window_s=0.5) as tuner,
    ):
        for count in (4, 12):
            cpus.resize(count)
            taken, warm = [], time.monotonic() + 3.0
            for batch in batches:
                now = time.monotonic()
                ids.append(batch[ROW_ID][0].as_py())
                taken.append(now)
                if now > warm + 3.0:
                    break
            rates[count] = sum(at > warm for at in taken) / 3.0
        assert tuner.failure is None
        assert tuner.explain().rate_per_s > 0
        assert tuner.cpu_ratio < 0.02  # twice the promise: half a second is half the usual window
    for count, rate in rates.items():
        assert rate > 0.7 * fluid_rate(true_rates(SPEC), count), log.reasons  # what a busy test machine leaves of it
    assert ids == list(range(len(ids)))
    assert any("CPUs 4 -> 12" in reason for reason in log.reasons)


class Broken:
    def start(self, space: Space, observation: Observation) -> Proposal:
        return Proposal(reason="nothing, because this is the start")

    def decide(self, observation: Observation) -> Proposal:
        raise RuntimeError("no idea")


def test_a_policy_that_raises_is_switched_off_and_the_job_goes_on() -> None:
    cpus, log = EmulatedCpus(4), Log()
    with (
        open_emulated(emulated_pipeline(SPEC, cpus, 1000)) as batches,
        Tuner(EmulatedJob(batches, cpus, SPEC), Broken(), decisions=log, window_s=0.05) as tuner,
    ):
        for _ in itertools.islice(batches, 10):
            pass
        assert isinstance(tuner.failure, RuntimeError)
        assert log.reasons[-1] == "switched off, because it raised RuntimeError: no idea"
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


@pytest.mark.parametrize("count", [1, 3])
def test_emulated_cpus_are_held_by_no_more_than_there_are(count: int) -> None:
    cpus = EmulatedCpus(count)

    def work() -> None:
        for _ in range(5):
            cpus.sleep("work", 0.005)

    threads = [threading.Thread(target=work) for _ in range(6)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert time.monotonic() - began >= 30 * 0.005 / count
    assert cpus.busy_s()["work"] >= 30 * 0.005
