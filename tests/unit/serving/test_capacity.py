"""How many rows a batch may have, and how many may wait, for a time that is promised."""

import pytest

from headrace.serving.capacity import FIRST_ROWS, LEAST_WAITING, Cost, plan_capacity


def measured(per_batch_s: float, per_row_s: float, sizes: tuple[int, ...] = (1, 10, 40, 7)) -> Cost:
    cost = Cost()
    for batches, rows in enumerate(sizes * 10):
        batches = 1 + batches % 3
        cost = cost.add(batches, batches * rows, batches * (per_batch_s + rows * per_row_s))
    return cost


def test_costs_of_batches_and_rows_are_told_apart() -> None:
    cost = measured(0.002, 0.0001)
    assert cost.fit() == pytest.approx((0.002, 0.0001))


def test_batches_of_one_size_say_nothing_of_a_cost_per_row() -> None:
    cost = measured(0.002, 0.0001, (10,))
    assert cost.fit() == pytest.approx((0.003, 0.0))


def test_recent_batches_count_more() -> None:
    cost = measured(0.001, 0.0001)
    for rows in (1, 10, 40, 7) * 100:
        cost = cost.add(2, rows, 2 * 0.004 + rows * 0.0002)
    assert cost.fit() == pytest.approx((0.004, 0.0002), rel=0.01)


def test_a_batch_takes_at_most_half_of_the_promise() -> None:
    capacity = plan_capacity(measured(0.002, 0.0001), 0.020, most_rows=10_000)
    assert capacity.most_rows == 80
    assert capacity.reason == "2.00 ms per batch and 100.0 us per row: 80 rows take 10.0 of 20 ms"


def test_rows_wait_only_if_they_can_be_answered_in_time() -> None:
    capacity = plan_capacity(measured(0.0, 0.0001), 0.100, most_rows=100)  # batches of 100 rows last 10 ms
    assert capacity.most_rows == 100
    assert capacity.most_waiting_rows == 900  # 90 of 100 ms, with those that are being scored


def test_a_promise_that_cannot_be_kept_still_answers_one_by_one() -> None:
    capacity = plan_capacity(measured(0.050, 0.001), 0.020, most_rows=100)
    assert (capacity.most_rows, capacity.most_waiting_rows) == (1, LEAST_WAITING)


def test_before_anything_is_measured_batches_are_small() -> None:
    assert plan_capacity(Cost(), 0.020, most_rows=1000).most_rows == FIRST_ROWS
    assert plan_capacity(Cost(), 0.020, most_rows=10).most_rows == 10
