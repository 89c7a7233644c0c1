"""What the simulator predicts after a recorded run, against what the engine then does."""

import time
from dataclasses import replace

import pytest

from headrace.errors import ConfigError
from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, StageSpec, calibrate, published_pipeline
from headrace.tuning.emulation import EmulatedCpus, emulated_pipeline, open_emulated
from headrace.tuning.space import workers_of


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


def predicted_and_measured(spec: PipelineSpec, workers: list[int], count: int) -> tuple[float, float]:
    cpus = EmulatedCpus(len(spec.stages))
    with open_emulated(emulated_pipeline(spec, cpus, 10_000)) as batches:

        def consume(seconds: float) -> float:
            taken, began = 0, time.monotonic()
            while time.monotonic() - began < seconds:
                next(batches)
                taken += 1
                time.sleep(spec.consumer_s)
            return taken / (time.monotonic() - began)

        consume(0.5)
        before = cpus.busy_s()
        consume(1.5)
        busy = {name: seconds - before[name] for name, seconds in cpus.busy_s().items()}
        recorded = calibrate(batches.counters(1.5), cpu_s=busy)
        cpus.resize(count)
        batches.tunables["workers"].set(64)
        for stage, k in zip(spec.stages, workers, strict=True):
            batches.tunables[workers_of(stage.name)].set(k)
        consume(1.0)
        measured = consume(2.0)
    simulator = PipelineSimulator(recorded, Machine.fixed(count))
    for stage, k in zip(spec.stages, workers, strict=True):
        simulator.set_workers(stage.name, k)
    simulator.run(5)
    return simulator.run(50) / 50, measured


@pytest.mark.parametrize("case", list(CASES))
def test_predicted_rate_is_within_15_percent_of_the_engine(case: str) -> None:
    for _ in range(3):  # a machine that is busy with something else for a second spoils an attempt
        predicted, measured = predicted_and_measured(*CASES[case])
        if predicted == pytest.approx(measured, rel=0.15):
            return
    pytest.fail(f"predicted {predicted:.4g} a second, the engine delivered {measured:.4g}")


def test_a_window_without_work_is_refused() -> None:
    spec = stages((0.01, 0.0))
    with (
        emulated_pipeline(spec, EmulatedCpus(1), 10).open() as batches,
        pytest.raises(ConfigError, match="did nothing"),
    ):
        calibrate(batches.counters(1.0))
