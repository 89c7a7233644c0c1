"""The closed forms against a solver, brute force and the simulator."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.simulation import Machine, PipelineSimulator, PipelineSpec, StageSpec
from headrace.tuning.policies.plumber import linear_program
from headrace.tuning.rates import StageRate, fluid_rate, integer_split, pipeline_rate

costs = st.floats(0.001, 1.0)


@st.composite
def linear_stages(draw: st.DrawFn) -> list[StageRate]:
    return [
        StageRate(f"s{i}", draw(costs), max_workers=draw(st.sampled_from([1, 1 << 30])))
        for i in range(draw(st.integers(1, 6)))
    ]


@settings(max_examples=50, deadline=None)
@given(stages=linear_stages(), cores=st.integers(1, 128))
def test_closed_form_agrees_with_a_solver(stages: list[StageRate], cores: int) -> None:
    optimize = pytest.importorskip("scipy.optimize")
    n = len(stages)
    # Variables X, theta_1 .. theta_n: maximise X with X <= theta_i / cost_i, sum of theta <= cores.
    rows = np.zeros((n + 1, n + 1))
    for i, stage in enumerate(stages):
        rows[i, 0], rows[i, i + 1] = stage.cpu_s, -1.0
    rows[n, 1:] = 1.0
    bounds = [(0, None), *((0, None if stage.max_workers > 1 else 1) for stage in stages)]
    solved = optimize.linprog([-1.0] + [0.0] * n, A_ub=rows, b_ub=[0.0] * n + [cores], bounds=bounds, method="highs")
    rate, shares = linear_program(stages, cores)
    assert rate == pytest.approx(-solved.fun, rel=1e-6)
    assert sum(shares) <= cores * (1 + 1e-9)


@settings(max_examples=60, deadline=None)
@given(
    stages=st.lists(
        st.tuples(costs, st.sampled_from([0.0, 0.05, 0.3]), st.sampled_from([0.0, 0.2])), min_size=1, max_size=3
    ),
    total=st.integers(3, 9),
)
def test_integer_split_is_the_best_of_all_splits(stages: list[tuple[float, float, float]], total: int) -> None:
    rates = [StageRate(f"s{i}", c, blocking_s=b, contention=a) for i, (c, a, b) in enumerate(stages)]
    splits = itertools.product(range(1, total + 1), repeat=len(rates))
    best = max(min(r.rate(k) for r, k in zip(rates, split, strict=True)) for split in splits if sum(split) <= total)
    workers, rate = integer_split(rates, total)
    assert sum(workers) <= total
    assert rate == pytest.approx(best, rel=1e-9)


def test_a_rate_that_needs_exactly_some_workers_is_not_rounded_up() -> None:
    assert integer_split([StageRate("a", 0.5), StageRate("b", 0.25)], 6) == ([4, 2], 8.0)


def test_contention_makes_more_workers_cost_more_cpu() -> None:
    stage = StageRate("a", 0.1, contention=0.1)
    assert stage.rate(11) == pytest.approx(11 / 0.2)
    assert stage.workers_for(stage.rate(11)) == pytest.approx(11)
    assert stage.workers_for(200) == float("inf")  # 1 / (0.1 * 0.1) = 100 a second is the asymptote
    assert fluid_rate([stage], 11) == pytest.approx(11 / 0.2)


@pytest.mark.parametrize("cpus", [2, 5, 30])
def test_predicted_rate_is_what_the_simulator_delivers(cpus: int) -> None:
    stages = (
        StageSpec(name="a", cpu_s=0.02, contention=0.05),
        StageSpec(name="b", cpu_s=0.05, io_s=0.1),
        StageSpec(name="c", cpu_s=0.03),
    )
    rates = [StageRate(s.name, s.cpu_s, s.io_s, s.contention) for s in stages]
    simulator = PipelineSimulator(PipelineSpec(stages=stages), Machine.fixed(cpus))
    workers = [6, 12, 7]
    for stage, k in zip(stages, workers, strict=True):
        simulator.set_workers(stage.name, k)
    simulator.run(20)
    assert simulator.run(100) / 100 == pytest.approx(pipeline_rate(rates, workers, cpus), rel=0.03)
