"""The simulator against answers that can be worked out by hand."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import ConfigError
from headrace.simulation import Distribution, Drift, Machine, PipelineSimulator, PipelineSpec, StageSpec


def stage(name: str = "work", cpu_s: float = 0.01, **options: object) -> StageSpec:
    return StageSpec(name=name, cpu_s=cpu_s, **options)  # type: ignore[arg-type]


def rate(simulator: PipelineSimulator, duration_s: float = 50.0, warm_up_s: float = 5.0) -> float:
    simulator.run(warm_up_s)
    return simulator.run(duration_s) / duration_s


def simulate(
    *stages: StageSpec, cpus: int = 64, workers: dict[str, int] | None = None, **spec: object
) -> PipelineSimulator:
    simulator = PipelineSimulator(PipelineSpec(stages=stages, **spec), Machine.fixed(cpus))  # type: ignore[arg-type]
    for name, number in (workers or {}).items():
        simulator.set_workers(name, number)
    return simulator


def test_rate_is_that_of_the_slowest_stage() -> None:
    simulator = simulate(stage("a", 0.01), stage("b", 0.04), stage("c", 0.02), workers={"a": 2, "b": 3, "c": 4})
    assert rate(simulator) == pytest.approx(3 / 0.04, rel=0.01)


def test_rate_is_limited_by_cpus_when_workers_are_plenty() -> None:
    simulator = simulate(stage("a", 0.03), stage("b", 0.05), cpus=4, workers={"a": 8, "b": 8})
    assert rate(simulator) == pytest.approx(4 / 0.08, rel=0.01)


def test_contention_makes_the_rate_concave_in_workers() -> None:
    for workers in (1, 4, 16):
        simulator = simulate(stage(cpu_s=0.01, contention=0.1), workers={"work": workers})
        assert rate(simulator) == pytest.approx(workers / (0.01 * (1 + 0.1 * (workers - 1))), rel=0.01)


def test_blocking_input_and_output_does_not_hold_a_cpu() -> None:
    simulator = simulate(stage(cpu_s=0.001, io_s=0.009), cpus=1, workers={"work": 5})
    assert rate(simulator) == pytest.approx(5 / 0.010, rel=0.01)
    more = simulate(stage(cpu_s=0.001, io_s=0.009), cpus=1, workers={"work": 40})
    assert rate(more) == pytest.approx(1 / 0.001, rel=0.01)


def test_consumer_limits_the_rate_and_is_accounted() -> None:
    simulator = simulate(stage(cpu_s=0.01), workers={"work": 2}, consumer_s=0.02)
    assert rate(simulator) == pytest.approx(50, rel=0.01)
    totals = simulator.totals()
    assert totals.consumer_s == pytest.approx(55, rel=0.01)
    assert totals.starved_s == pytest.approx(0.01, abs=0.001)


def test_batches_take_and_give_their_ratio() -> None:
    stages = (stage("read", 0.002, num_outputs=4), stage("batch", 0.01, num_inputs=8), stage("map", 0.001))
    simulator = simulate(*stages)
    assert simulator.spec.visit_ratios() == [2, 1, 1]
    assert rate(simulator) == pytest.approx(100, rel=0.01)
    totals = simulator.totals()
    assert totals.stages[0].services == pytest.approx(2 * totals.delivered, abs=12)


@pytest.mark.parametrize(("slow", "buffer"), [(0.8, 3), (1.25, 3), (0.5, 0)])
def test_two_exponential_stages_agree_with_the_finite_queue(slow: float, buffer: int) -> None:
    """The second stage is an M/M/1/K queue, K = buffer + 4: two before it, one finished more, one in service."""
    exponential = {"distribution": Distribution.EXPONENTIAL, "max_workers": 1}
    simulator = simulate(stage("a", 0.01, buffer=buffer, **exponential), stage("b", 0.01 * slow, **exponential))
    places, load = buffer + 4, slow
    empty = (1 - load) / (1 - load ** (places + 1))
    assert rate(simulator, 2000) == pytest.approx((1 - empty) / (0.01 * slow), rel=0.01)


@pytest.mark.parametrize(
    ("distribution", "spread"),
    [(Distribution.EXPONENTIAL, 0.0), (Distribution.LOGNORMAL, 1.5), (Distribution.PARETO, 3.0)],
)
def test_every_distribution_has_the_mean_it_was_given(distribution: Distribution, spread: float) -> None:
    assert rate(simulate(stage(distribution=distribution, spread=spread)), 2000) == pytest.approx(100, rel=0.02)


def test_a_heavy_tail_costs_ordered_stages_their_lead() -> None:
    """One slow element holds back the finished ones behind it; buffers hide some of that."""
    heavy = {"distribution": Distribution.PARETO, "spread": 1.3}
    tight = rate(simulate(stage(buffer=0, **heavy), workers={"work": 8}), 500)
    wide = rate(simulate(stage(buffer=64, **heavy), workers={"work": 8}), 500)
    assert tight < 0.8 * wide


def test_drift_changes_the_rate_when_it_is_due() -> None:
    simulator = simulate(stage(cpu_s=0.01, drift=Drift(factor=2.0, start_s=10, end_s=20)))
    assert simulator.run(10) == pytest.approx(1000, abs=2)
    assert simulator.run(10) == pytest.approx(1000 * math.log(2), rel=0.01)  # integral of 1 / (1 + t)
    assert simulator.run(10) == pytest.approx(500, abs=2)


def test_resizes_take_effect_at_their_moment() -> None:
    spec = PipelineSpec(stages=(stage(cpu_s=0.1),))
    simulator = PipelineSimulator(spec, Machine.schedule([2, 4, 1], phase_s=10))
    simulator.set_workers("work", 8)
    assert [simulator.run(10) for _ in range(3)] == pytest.approx([200, 400, 100], abs=8)


def test_workers_change_in_mid_run_without_losing_elements() -> None:
    simulator = simulate(stage("a", 0.01), stage("b", 0.01))
    delivered = 0
    for workers in (1, 8, 2, 16, 1):
        simulator.set_workers("a", workers)
        simulator.set_workers("b", workers)
        simulator.run(0.5)
        delivered = simulator.run(2)
        assert delivered == pytest.approx(200 * workers, rel=0.05)
    totals = simulator.totals()
    held = totals.stages[0].services - totals.delivered
    assert 0 <= held <= 8


def test_threads_limit_all_stages_together_and_the_last_stage_goes_first() -> None:
    simulator = simulate(stage("a", 0.02), stage("b", 0.02), workers={"a": 8, "b": 8})
    simulator.set_threads(4)
    assert rate(simulator) == pytest.approx(4 / 0.04, rel=0.01)
    assert simulator.totals().stages[0].wait_thread_s > 0


def test_waits_and_work_add_up_to_worker_time() -> None:
    simulator = simulate(stage("a", 0.01, io_s=0.01), stage("b", 0.03), workers={"a": 4, "b": 2}, cpus=3)
    simulator.run(100)
    for spent, workers in zip(simulator.totals().stages, (4, 2), strict=True):
        waits = spent.wait_input_s + spent.wait_output_s + spent.wait_memory_s + spent.wait_thread_s
        assert waits + spent.wall_s == pytest.approx(100 * workers, rel=0.01)


def test_memory_that_runs_out_stops_the_job_until_it_is_relaunched() -> None:
    spec = PipelineSpec(stages=(stage(output_bytes=100, buffer=20),), consumer_s=1.0, base_bytes=50)
    simulator = PipelineSimulator(spec, Machine.fixed(4, memory_bytes=1000))
    simulator.set_workers("work", 4)
    assert simulator.run(10) < 10
    assert simulator.out_of_memory
    assert simulator.run(10) == 0
    simulator.set_buffer("work", 0)
    simulator.relaunch(downtime_s=5)
    assert not simulator.out_of_memory
    assert simulator.run(5) == 0
    assert simulator.run(10) == pytest.approx(10, abs=1)


def test_a_ledger_bounds_memory_where_the_same_pipeline_runs_out_without() -> None:
    stages = (stage("a", 0.001, output_bytes=100, buffer=50), stage("b", 0.002, output_bytes=100, buffer=50))
    spec = PipelineSpec(stages=stages, consumer_s=0.01, base_bytes=50)
    without = PipelineSimulator(spec, Machine.fixed(8, memory_bytes=2000))
    without.run(10)
    assert without.out_of_memory
    within = PipelineSimulator(spec.with_ledger(1000), Machine.fixed(8, memory_bytes=2000))
    assert within.run(10) == pytest.approx(1000, rel=0.01)
    assert within.totals().peak_bytes <= 1050
    assert within.totals().stages[0].wait_memory_s > 0


def test_a_batch_is_gathered_although_no_element_fits_the_ledger() -> None:
    stages = [
        stage(name, 0.01, buffer=0, output_bytes=10, num_inputs=taken) for name, taken in (("a", 1), ("b", 1), ("c", 2))
    ]
    simulator = PipelineSimulator(PipelineSpec(stages=tuple(stages), ledger_bytes=1), Machine.fixed(1))
    assert simulator.run(10) > 0


def test_a_relaunch_keeps_what_was_delivered_and_does_work_in_flight_anew() -> None:
    simulator = simulate(stage("a", 0.01), stage("b", 0.01))
    simulator.run(10)
    before = simulator.totals().delivered
    simulator.relaunch(downtime_s=3)
    assert simulator.run(3) == 0
    assert simulator.run(10) == pytest.approx(1000, abs=5)
    assert simulator.totals().delivered == pytest.approx(before + 1000, abs=5)


def test_runs_are_reproducible_and_do_not_depend_on_how_time_is_cut() -> None:
    spec = PipelineSpec(stages=(stage("a", 0.01, distribution=Distribution.PARETO, spread=1.5), stage("b", 0.01)))
    whole, cut, other = (PipelineSimulator(spec, Machine.fixed(2), seed=seed) for seed in (1, 1, 2))
    whole.run(20)
    for _ in range(40):
        cut.run(0.5)
    other.run(20)
    assert whole.totals().delivered == cut.totals().delivered
    assert whole.totals().stages[0].busy_s == cut.totals().stages[0].busy_s
    assert whole.totals().stages[0].busy_s != other.totals().stages[0].busy_s


@st.composite
def pipelines(draw: st.DrawFn) -> PipelineSpec:
    numbers = st.integers(1, 4)
    stages = [
        StageSpec(
            name=f"s{i}",
            cpu_s=draw(st.floats(0.001, 0.02)),
            io_s=draw(st.sampled_from([0.0, 0.005])),
            distribution=draw(st.sampled_from([Distribution.CONSTANT, Distribution.EXPONENTIAL])),
            contention=draw(st.sampled_from([0.0, 0.05])),
            num_inputs=draw(numbers),
            num_outputs=draw(numbers),
            buffer=draw(st.integers(0, 3)),
            output_bytes=10.0,
        )
        for i in range(draw(numbers))
    ]
    return PipelineSpec(stages=tuple(stages), ledger_bytes=draw(st.sampled_from([None, 1.0, 100.0, 1000.0])))


@settings(max_examples=60, deadline=None)
@given(spec=pipelines(), cpus=st.integers(1, 8), workers=st.integers(1, 8), seed=st.integers(0, 1000))
def test_no_pipeline_stands_still_or_beats_its_cpus(spec: PipelineSpec, cpus: int, workers: int, seed: int) -> None:
    simulator = PipelineSimulator(spec, Machine.fixed(cpus), seed=seed)
    for each in spec.stages:
        simulator.set_workers(each.name, workers)
    seconds = 4 * sum(
        4 * v * (each.cpu_s + each.io_s) for v, each in zip(spec.visit_ratios(), spec.stages, strict=True)
    )
    assert simulator.run(5 * seconds) > 0
    totals = simulator.totals()
    assert sum(each.busy_s for each in totals.stages) <= cpus * totals.time_s + 1e-6


def test_mistakes_are_named() -> None:
    with pytest.raises(ConfigError, match="given cpu_s 0 and io_s 0"):
        stage(cpu_s=0.0)
    with pytest.raises(ConfigError, match=r"given tail index 1\.0, expected > 1"):
        stage(distribution=Distribution.PARETO, spread=1.0)
    with pytest.raises(ConfigError, match="each name once"):
        PipelineSpec(stages=(stage(), stage()))
    with pytest.raises(ConfigError, match="given 2 workers, expected 1 to 1"):
        simulate(stage(max_workers=1), workers={"work": 2})
    with pytest.raises(ConfigError, match="expected one of work"):
        simulate(stage()).set_buffer("other", 1)
