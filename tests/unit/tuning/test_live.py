"""Counters of the engine as a policy sees them."""

from types import SimpleNamespace
from typing import Any, cast

import pytest

from headrace.pipeline import ConsumerReading, PipelineCounters, StageReading
from headrace.resources import Resources
from headrace.tuning.live import observation_of


def reading(name: str, group: str, **values: Any) -> StageReading:
    zero = dict.fromkeys(StageReading.__dataclass_fields__, 0)
    return StageReading(**{**zero, "name": name, "group": group, **values})


def machine(cpus: float, limit_bytes: int) -> Resources:
    return cast(
        Resources, SimpleNamespace(cpus=SimpleNamespace(count=cpus), memory=SimpleNamespace(limit_bytes=limit_bytes))
    )


def test_stages_that_run_together_become_one_with_the_group_s_workers() -> None:
    shared = {"num_workers": 3, "queue_depth": 2, "wait_input_s": 0.5, "num_elements": 10}
    counters = PipelineCounters(
        window_s=2.0,
        stages={
            "source": reading("source", "source", num_elements=20, cpu_s=0.2, wall_s=0.3, num_workers=1),
            "map": reading("map", "map+transform", cpu_s=1.0, wall_s=1.5, queued_s=0.1, **shared),
            "transform": reading(
                "transform", "map+transform", cpu_s=2.0, wall_s=2.5, queued_s=0.2, num_bytes_out=70, **shared
            ),
        },
        consumer=ConsumerReading(num_batches=10, num_rows=1000, wait_s=0.4, busy_s=1.6),
    )
    seen = observation_of(counters, {"workers": 4}, machine(8, 1000), time_s=7.0, memory_used_bytes=250)
    source, group = seen.stages
    assert (source.name, source.services, source.workers, source.left) == ("source", 20, 1, 0)
    assert group.left is None
    assert (group.name, group.services, group.workers, group.queue_depth) == ("map+transform", 10, 3, 2)
    assert (group.busy_s, group.wall_s, group.bytes_out, group.wait_input_s) == (3.0, 4.0, 70, 0.5)
    assert group.queued_s == pytest.approx(0.3)
    assert (seen.rate_per_s, seen.consumer_rate_per_s, seen.memory_ratio) == (5.0, 6.25, 0.25)
    assert (seen.cpus, seen.values, seen.starved_s) == (8, {"workers": 4}, 0.4)
