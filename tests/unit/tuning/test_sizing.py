"""From a rate to a setting: enough workers, no more memory than there is, what is spare given up first."""

import math
from dataclasses import replace

import pytest

from headrace.simulation import Machine, published_pipeline
from headrace.tuning.estimating import Estimator
from headrace.tuning.job import SimulatedJob
from headrace.tuning.observation import Observation
from headrace.tuning.policies.sizing import Sizing
from headrace.tuning.space import PREFETCH, workers_of


def measured(output_bytes: float = 1e6, cpus: int = 32) -> tuple[Sizing, Observation]:
    names = ("load", "batch", "shuffle", "map", "prefetch")
    job = SimulatedJob(
        published_pipeline(0.5, **{name: {"output_bytes": output_bytes} for name in names}), Machine.fixed(cpus)
    )
    job.apply({workers_of(name): 6 for name in names})
    estimator = Estimator()
    for _ in range(10):
        job.run(1.0)
        seen = job.observe()
        estimator.add(seen)
    return Sizing(job.space, estimator), seen


def test_every_stage_gets_what_the_rate_needs_and_the_target_is_what_the_cpus_allow() -> None:
    sizing, seen = measured()
    target, limit = sizing.target(seen)
    assert target == pytest.approx(64.0, rel=0.02)
    assert limit == "32 CPUs"
    values = sizing.setting(seen, target, prefetch=2)
    for rate in sizing.estimator.rates(sizing.space):
        assert rate.rate(values[workers_of(rate.name)]) >= 1.2 * target


def test_room_to_be_ahead_is_given_up_before_prefetch_and_rate() -> None:
    sizing, seen = measured()
    sizing.ahead["map"] = 400
    target, _ = sizing.target(seen)
    roomy = sizing.setting(seen, target, prefetch=8)
    assert roomy[workers_of("map")] == 400
    plain = dict(sizing.setting(replace(seen, memory_limit_bytes=math.inf), target, prefetch=8))
    tight = sizing.setting(replace(seen, memory_limit_bytes=4e8, memory_used_bytes=0.0), target, prefetch=8)
    assert tight[workers_of("map")] < 100
    assert tight[PREFETCH] == plain[PREFETCH] == 8
    assert tight[workers_of("load")] == plain[workers_of("load")]


def test_a_setting_never_holds_more_than_its_share_of_the_memory() -> None:
    sizing, seen = measured(output_bytes=20e6)
    target, _ = sizing.target(seen)
    limit = 4e9
    values = sizing.setting(replace(seen, memory_limit_bytes=limit, memory_used_bytes=0.0), target, prefetch=64)
    held = sum(values[workers_of(name)] + 2 for name in ("load", "batch", "shuffle", "map", "prefetch"))
    assert 2.0 * 20e6 * (held + values[PREFETCH]) <= 0.7 * limit


def test_more_workers_than_are_worth_having_are_bounded() -> None:
    sizing, seen = measured()
    target, _ = sizing.target(seen)
    assert sizing.most("map", seen, target) == pytest.approx(16 * 64 * 0.423 * 0.5, rel=0.05)
