"""What the simulator predicts from a recorded window, against what the engine's rules do, both on a virtual clock."""

from dataclasses import replace

import pytest

from headrace.errors import ConfigError
from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, StageSpec, calibrate, published_pipeline
from headrace.testing.virtual_engine import VirtualEngine


def stages(*times: tuple[float, float]) -> PipelineSpec:
    return PipelineSpec(stages=tuple(StageSpec(name=f"s{i}", cpu_s=cpu, io_s=io) for i, (cpu, io) in enumerate(times)))


# (what runs, its workers, CPUs, elements a second by hand); recorded with one worker a stage and a CPU for each.
CASES = {
    "workers limit": (stages((0.02, 0.0), (0.06, 0.0), (0.03, 0.0)), [2, 4, 3], 16, 4 / 0.06),
    "CPUs limit": (published_pipeline(0.3), [6, 6, 6, 6, 6], 6, 6 / 0.3),
    "storage limits": (stages((0.02, 0.1), (0.03, 0.0)), [5, 4], 8, 5 / 0.12),
    "one stage": (stages((0.05, 0.0)), [6], 8, 6 / 0.05),
    "consumer limits": (replace(stages((0.02, 0.0), (0.02, 0.0)), consumer_s=0.03), [4, 4], 8, 1 / 0.03),
}


def recorded(spec: PipelineSpec) -> VirtualEngine:
    engine = VirtualEngine(spec, len(spec.stages) + 1)
    engine.run(60.0)
    return engine


@pytest.mark.parametrize("case", list(CASES))
def test_the_predicted_rate_is_that_of_the_engine_s_rules(case: str) -> None:
    spec, workers, cpus, by_hand = CASES[case]
    engine = recorded(spec)
    simulator = PipelineSimulator(calibrate(engine.counters(50.0)), Machine.fixed(cpus))
    engine.cpus = cpus
    for stage, k in zip(spec.stages, workers, strict=True):
        simulator.set_workers(stage.name, k)
        engine.set_workers(stage.name, k)
    engine.run(10.0)
    simulator.run(10.0)
    measured, predicted = engine.run(40.0) / 40.0, simulator.run(40.0) / 40.0
    assert measured == pytest.approx(by_hand, rel=0.02)
    assert predicted == pytest.approx(measured, rel=0.02)
    assert engine.taken == list(range(len(engine.taken)))


def test_means_of_a_recorded_window_are_those_of_the_pipeline() -> None:
    spec = CASES["storage limits"][0]
    found = calibrate(recorded(replace(spec, consumer_s=0.01)).counters(50.0))
    source, *rest = found.stages
    assert source.name == "source"
    for stage, true in zip(rest, spec.stages, strict=True):
        assert (stage.name, stage.num_inputs, stage.num_outputs) == (true.name, 1, 1)
        assert (stage.cpu_s, stage.io_s) == pytest.approx((true.cpu_s, true.io_s), abs=1e-9)
        assert stage.output_bytes == 1000
    assert found.consumer_s == pytest.approx(0.01)


def test_cpu_seconds_from_elsewhere_replace_those_of_the_thread_clock() -> None:
    engine = recorded(stages((0.05, 0.0)))
    counters = engine.counters(50.0)
    found = calibrate(counters, cpu_s={"s0": counters.stages["s0"].num_elements * 0.01})
    assert (found.stages[1].cpu_s, found.stages[1].io_s) == pytest.approx((0.01, 0.04))


def test_a_window_without_work_is_refused() -> None:
    engine = VirtualEngine(stages((0.01, 0.0)), 1)
    with pytest.raises(ConfigError, match="did nothing"):
        calibrate(engine.counters(1.0))
