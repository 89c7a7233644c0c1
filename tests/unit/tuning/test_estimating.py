"""What a stage needs, seen through windows that mislead."""

import pytest

from headrace.tuning.estimating import StageEstimate
from headrace.tuning.observation import StageObservation


def window(services: int, busy_s: float, wall_s: float) -> StageObservation:
    return StageObservation(name="map", workers=4, services=services, busy_s=busy_s, wall_s=wall_s)


def test_the_start_of_a_worker_process_is_not_taken_for_blocking() -> None:
    estimate = StageEstimate()
    estimate.add(window(2, 0.02, 8.0), 1.0, saturated=False)
    assert not estimate.believable
    for _ in range(3):
        estimate.add(window(100, 1.0, 1.1), 1.0, saturated=False)
    assert estimate.believable
    assert estimate.blocking_s == pytest.approx(0.001)


def test_waiting_for_a_busy_cpu_is_not_taken_for_blocking() -> None:
    estimate = StageEstimate()
    estimate.add(window(100, 1.0, 1.5), 1.0, saturated=False)
    estimate.add(window(100, 1.0, 9.0), 1.0, saturated=True)
    assert estimate.blocking_s == pytest.approx(0.005)
    estimate.add(window(100, 1.0, 1.2), 1.0, saturated=True)
    assert estimate.blocking_s == pytest.approx(0.002)


def test_a_few_very_long_services_are_not_taken_for_contention() -> None:
    estimate = StageEstimate()
    for number in range(24):
        long = 20.0 if number % 6 == 3 else 0.0  # counted in the window it ends in, in busy and in CPU time alike
        estimate.add(window(20, 4.0 + long, 4.0 + long), 1.0, saturated=False)
    assert estimate.contention == 0.0


def test_contention_is_found_where_the_number_of_busy_workers_varied() -> None:
    estimate = StageEstimate()
    for number in range(24):
        busy = 2.0 + 2.0 * (number // 3)
        cpu_s = 0.1 * (1 + 0.02 * (busy - 1))
        estimate.add(window(round(busy / cpu_s), busy, busy), 1.0, saturated=False)
    assert estimate.contention == pytest.approx(0.02, rel=0.5)


def test_each_drift_noticed_makes_the_next_one_harder_to_believe() -> None:
    estimate, noticed = StageEstimate(), 0
    for number in range(40):
        long = 30.0 if number % 5 == 4 else 0.0
        before = estimate.caution
        if estimate.add(window(20, 4.0 + long, 4.0 + long), 1.0, saturated=False):
            noticed += 1
            assert estimate.caution > 1.5 * before
    assert 0 < noticed <= 4  # of 8 long services, each as long as everything else in 7 windows


def test_real_drift_is_noticed_at_once() -> None:
    estimate = StageEstimate()
    for _ in range(10):
        assert not estimate.add(window(50, 5.0, 5.0), 1.0, saturated=False)
    assert estimate.add(window(50, 12.5, 12.5), 1.0, saturated=False)
    assert estimate.cpu_s == pytest.approx(0.25)
