"""Visit ratios are known while a pipeline still fills."""

from collections.abc import Iterable

import pytest

from headrace.simulation import Machine, PipelineSpec, StageSpec
from headrace.tuning.job import SimulatedJob
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.visits import VisitRatios


def window(services: Iterable[tuple[str, int, int]], delivered: int) -> Observation:
    stages = tuple(
        StageObservation(name=name, workers=workers, services=count, busy_s=1.0, wall_s=1.0)
        for name, workers, count in services
    )
    return Observation(time_s=1.0, window_s=1.0, stages=stages, delivered=delivered)


def test_elements_on_their_way_are_not_taken_for_visits() -> None:
    visits = VisitRatios()
    visits.add(window([("read", 100, 120), ("map", 100, 40)], delivered=5))
    assert visits.ratios() == {"read": 1.0, "map": 1.0}


def test_a_ratio_is_found_once_more_has_passed_than_can_be_on_its_way() -> None:
    visits = VisitRatios()
    for _ in range(200):
        visits.add(window([("read", 4, 80), ("batch", 2, 10)], delivered=10))
    assert visits.ratios()["batch"] == pytest.approx(1.0)
    assert visits.ratios()["read"] == pytest.approx(8.0, rel=0.05)


def test_a_ratio_below_one_is_found() -> None:
    visits = VisitRatios()
    for _ in range(200):
        visits.add(window([("read", 2, 5), ("split", 4, 20)], delivered=20))
    assert visits.ratios()["read"] == pytest.approx(0.25, rel=0.05)


def test_a_ratio_that_changes_is_followed() -> None:
    visits = VisitRatios()
    for per_batch in (8, 2):
        for _ in range(400):
            visits.add(window([("read", 4, 10 * per_batch), ("batch", 2, 10)], delivered=10))
    assert visits.ratios()["read"] == pytest.approx(2.0, rel=0.1)


def test_nothing_is_known_before_every_stage_has_served_and_something_was_delivered() -> None:
    visits = VisitRatios()
    assert not visits.known
    visits.add(window([("read", 1, 3), ("map", 1, 0)], delivered=0))
    assert not visits.known
    visits.add(window([("read", 1, 3), ("map", 1, 2)], delivered=1))
    assert visits.known


def test_ratios_of_a_simulated_pipeline_are_right_from_its_first_seconds() -> None:
    slow_read = StageSpec(name="read", cpu_s=0.1, io_s=5.0)
    spec = PipelineSpec(stages=(slow_read, StageSpec(name="map", cpu_s=0.5)))
    job, visits = SimulatedJob(spec, Machine.fixed(32)), VisitRatios()
    job.apply({"read.workers": 200, "map.workers": 30})
    for second in range(30):
        job.run(1.0)
        visits.add(job.observe())
        if visits.known:
            assert visits.ratios() == {"read": 1.0, "map": 1.0}, second
    assert visits.known
