"""Rates that the simulator predicts from one recorded second, compared with the engine's; and the CPU use of a tuner.

The engine runs on virtual CPUs (see `tuning_emulated.py`). It is recorded three times with one worker and one CPU per
stage, and then measured with the workers and CPUs of the case. Other load on the machine lengthens the sleeps that
stand for work, so predictions are corrected by the measured length of sleeps. The goal is a prediction within 15 % of
the engine.
"""

from __future__ import annotations

import statistics
import time
from dataclasses import replace
from typing import Any

import harness

from headrace.pipeline import PipelineCounters
from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, StageSpec, calibrate, published_pipeline
from headrace.tuning import Tuner
from headrace.tuning.emulation import EmulatedCpus, EmulatedJob, emulated_pipeline, open_emulated
from headrace.tuning.space import workers_of

GOAL_ERROR = 0.15
GOAL_CPU_RATIO = 0.01
METRIC = "batches a second"


def stages(*times: tuple[float, float]) -> PipelineSpec:
    """Return a pipeline whose stages take these (CPU seconds, blocking seconds)."""
    return PipelineSpec(stages=tuple(StageSpec(name=f"s{i}", cpu_s=cpu, io_s=io) for i, (cpu, io) in enumerate(times)))


CASES: dict[str, tuple[PipelineSpec, list[int], int]] = {
    "workers limit": (stages((0.02, 0.0), (0.06, 0.0), (0.03, 0.0)), [2, 4, 3], 16),
    "CPUs limit": (published_pipeline(0.3), [6, 6, 6, 6, 6], 6),
    "storage limits": (stages((0.02, 0.1), (0.03, 0.0)), [5, 4], 8),
    "one stage": (stages((0.05, 0.0)), [6], 8),
    "consumer limits": (replace(stages((0.02, 0.0), (0.02, 0.0)), consumer_s=0.03), [4, 4], 8),
}


def run(report: harness.Report, quick: bool) -> None:
    """Compare simulator and engine in every case, and measure the CPU time of a tuner."""
    rounds = 1 if quick else 5
    errors = []
    for case, (spec, workers, cpus) in CASES.items():
        found = [predicted_and_measured(spec, workers, cpus) for _ in range(rounds)]
        predicted, measured = zip(*found, strict=True)
        report.add(f"calibration: {case}", "simulator", METRIC, "1/s", predicted)
        report.add(f"calibration: {case}", "engine", METRIC, "1/s", measured)
        errors.append(abs(statistics.median(p / m for p, m in found) - 1.0))
    worst = max(errors)
    report.goal(
        "rates predicted from a recorded run are those of the engine",
        f"within {GOAL_ERROR:.0%}",
        f"{worst:.1%}",
        met=worst < GOAL_ERROR,
    )
    ratios = [tuner_cpu_ratio(4.0) for _ in range(rounds)]
    report.add("tuner", "auto", "CPU", "%", [100 * ratio for ratio in ratios])
    ratio = statistics.median(ratios)
    report.goal("CPU of a running tuner", f"below {GOAL_CPU_RATIO:.0%}", f"{ratio:.2%}", met=ratio < GOAL_CPU_RATIO)


def predicted_and_measured(spec: PipelineSpec, workers: list[int], cpus: int) -> tuple[float, float]:
    """Return batches per second of the calibrated simulator and of the engine, with the same workers and CPUs."""
    emulated = EmulatedCpus(len(spec.stages))
    with open_emulated(emulated_pipeline(spec, emulated, 10_000)) as batches:

        def consume(seconds: float) -> list[float]:
            times, until = [time.monotonic()], time.monotonic() + seconds
            while times[-1] < until:
                next(batches)
                times.append(time.monotonic())
                time.sleep(spec.consumer_s)
            return times

        def watch(seconds: float) -> tuple[PipelineCounters, dict[str, float], float, list[float]]:
            """Return counters, seconds that each stage held a CPU, how much longer sleeps took, and delivery times."""
            before = emulated.busy_s()
            times = consume(seconds)
            busy = {name: after - before.get(name, 0.0) for name, after in emulated.busy_s().items()}
            counters = batches.counters(seconds)
            asked = sum(counters.stages[stage.name].num_elements * stage.cpu_s for stage in spec.stages)
            return counters, busy, sum(busy.values()) / asked, times

        consume(0.5)
        recordings = [watch(1.0) for _ in range(3)]
        emulated.resize(cpus)
        batches.tunables["workers"].set(64)
        for stage, k in zip(spec.stages, workers, strict=True):
            batches.tunables[workers_of(stage.name)].set(k)
        consume(1.5)
        *_, later, times = watch(3.0)
    predictions = []
    for counters, busy, then, _ in recordings:
        simulator = PipelineSimulator(slower(calibrate(counters, cpu_s=busy), later / then), Machine.fixed(cpus))
        for stage, k in zip(spec.stages, workers, strict=True):
            simulator.set_workers(stage.name, k)
        simulator.run(5)
        predictions.append(simulator.run(50) / 50)
    return statistics.median(predictions), rate_of(times)


def slower(spec: PipelineSpec, factor: float) -> PipelineSpec:
    """Return the same pipeline with all times multiplied by the factor."""
    longer = tuple(replace(each, cpu_s=each.cpu_s * factor, io_s=each.io_s * factor) for each in spec.stages)
    return replace(spec, stages=longer, consumer_s=spec.consumer_s * factor)


def rate_of(times: list[float]) -> float:
    """Return deliveries per second: the median over stretches of a third of the time, so one pause hardly matters."""
    stretch = len(times) // 3
    return statistics.median(stretch / (end - start) for start, end in zip(times, times[stretch:], strict=False))


def tuner_cpu_ratio(seconds: float) -> float:
    """Return the CPU seconds that a tuner takes per second of a running pipeline."""
    spec: Any = published_pipeline(0.3)
    cpus = EmulatedCpus(8)
    with (
        open_emulated(emulated_pipeline(spec, cpus, 100_000)) as batches,
        Tuner(EmulatedJob(batches, cpus, spec), "auto") as tuner,
    ):
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            next(batches)
        return tuner.cpu_ratio


if __name__ == "__main__":
    raise SystemExit("run it with: python benchmarks/bench_tuning.py --calibration")
