"""What the simulator predicts after a recorded run, against what the engine then does."""

import contextlib
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest

from headrace.errors import ConfigError
from headrace.pipeline import PipelineCounters
from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, StageSpec, calibrate, published_pipeline
from headrace.tuning.emulation import EmulatedCpus, emulated_pipeline, open_emulated
from headrace.tuning.space import workers_of

MOST_WAITING = 0.5
"""Seconds that all threads together may wait for a CPU in a second: of about 30 that sleep, 2 %."""


def stages(*times: tuple[float, float]) -> PipelineSpec:
    named = (StageSpec(name=f"s{i}", cpu_s=cpu, io_s=io) for i, (cpu, io) in enumerate(times))
    return PipelineSpec(stages=tuple(named))


# (what runs, its workers, CPUs); recorded with one worker a stage and a CPU for each.
CASES = {
    "workers limit": (stages((0.02, 0.0), (0.06, 0.0), (0.03, 0.0)), [2, 4, 3], 16),
    "CPUs limit": (published_pipeline(0.3), [6, 6, 6, 6, 6], 6),
    "storage limits": (stages((0.02, 0.1), (0.03, 0.0)), [5, 4], 8),
    "one stage": (stages((0.05, 0.0)), [6], 8),
    "consumer limits": (replace(stages((0.02, 0.0), (0.02, 0.0)), consumer_s=0.03), [4, 4], 8),
}


def rate_of(times: list[float]) -> float:
    """Deliveries a second, from when each came: the median over stretches of a third, so one pause counts little."""
    stretch = len(times) // 3
    return statistics.median(stretch / (end - start) for start, end in zip(times, times[stretch:], strict=False))


def slower(spec: PipelineSpec, factor: float) -> PipelineSpec:
    """The same pipeline where everything takes longer."""
    stages = tuple(replace(each, cpu_s=each.cpu_s * factor, io_s=each.io_s * factor) for each in spec.stages)
    return replace(spec, stages=stages, consumer_s=spec.consumer_s * factor)


def predicted_and_measured(spec: PipelineSpec, workers: list[int], count: int) -> tuple[float, float]:
    cpus = EmulatedCpus(len(spec.stages))
    with open_emulated(emulated_pipeline(spec, cpus, 10_000)) as batches:

        def consume(seconds: float) -> list[float]:
            times, until = [time.monotonic()], time.monotonic() + seconds
            while times[-1] < until:
                next(batches)
                times.append(time.monotonic())
                time.sleep(spec.consumer_s)
            return times

        def watch(seconds: float) -> tuple[PipelineCounters, dict[str, float], float, list[float]]:
            """Counters, seconds CPUs were held, by how much sleeps were longer than asked for, deliveries."""
            before = cpus.busy_s()
            times = consume(seconds)
            busy = {name: after - before.get(name, 0.0) for name, after in cpus.busy_s().items()}
            counters = batches.counters(seconds)
            asked = sum(counters.stages[stage.name].num_items * stage.cpu_s for stage in spec.stages)
            return counters, busy, sum(busy.values()) / asked, times

        consume(0.5)
        recordings = [watch(1.0) for _ in range(3)]
        cpus.resize(count)
        batches.tunables["workers"].set(64)
        for stage, k in zip(spec.stages, workers, strict=True):
            batches.tunables[workers_of(stage.name)].set(k)
        consume(1.5)
        *_, later, times = watch(3.0)
    predictions = []
    for counters, busy, then, _ in recordings:
        # What else the machine does lengthens sleeps. By how much is known, so it need not spoil the comparison.
        recorded = slower(calibrate(counters, cpu_s=busy), later / then)
        simulator = PipelineSimulator(recorded, Machine.fixed(count))
        for stage, k in zip(spec.stages, workers, strict=True):
            simulator.set_workers(stage.name, k)
        simulator.run(5)
        predictions.append(simulator.run(50) / 50)
    return statistics.median(predictions), rate_of(times)


def waited_for_a_cpu_s() -> float:
    """Seconds in which threads of this process could have run and did not, by the kernel's account; 0 without one."""
    waited_ns = 0
    for account in Path("/proc/self/task").glob("*/schedstat"):
        with contextlib.suppress(OSError):  # a thread that has just ended
            waited_ns += int(account.read_text().split()[1])
    return waited_ns / 1e9


@pytest.fixture(scope="module")
def rates() -> dict[str, tuple[float, float]]:
    """All cases at the same time: they sleep. Measured again if the machine had no time for them; else not."""
    for _ in range(3):
        began, before = time.monotonic(), waited_for_a_cpu_s()
        with ThreadPoolExecutor(len(CASES)) as pool:
            running = {case: pool.submit(predicted_and_measured, *what) for case, what in CASES.items()}
            waiting = 0.0
            while not all(each.done() for each in running.values()):
                waiting = max(waiting, waited_for_a_cpu_s() - before)  # the account of a thread ends with it
                time.sleep(0.25)
        if waiting < MOST_WAITING * (time.monotonic() - began):
            return {case: each.result() for case, each in running.items()}
    pytest.skip(f"the machine is busy: threads that could run waited {waiting:.1f} s for a CPU, in all")


@pytest.mark.parametrize("case", list(CASES))
def test_predicted_rate_is_within_15_percent_of_the_engine(case: str, rates: dict[str, tuple[float, float]]) -> None:
    predicted, measured = rates[case]
    assert predicted == pytest.approx(measured, rel=0.15)


def test_a_window_without_work_is_refused() -> None:
    spec = stages((0.01, 0.0))
    with (
        emulated_pipeline(spec, EmulatedCpus(1), 10).open() as batches,
        pytest.raises(ConfigError, match="did nothing"),
    ):
        calibrate(batches.counters(1.0))
