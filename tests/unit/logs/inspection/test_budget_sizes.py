"""What tables of a budget hold of the ids of a log, against counts in plain Python."""

from collections import Counter

import numpy as np
import pytest

from headrace.logs.inspection import IdCounter, budget_sizes
from headrace.logs.inspection.budget_sizes import ROW_COST
from headrace.logs.inspection.hashing import _mix


def counter_of(ids: np.ndarray, max_slots: int = 1 << 18) -> IdCounter:
    counter = IdCounter(max_slots)
    counter.add(_mix(ids.astype(np.uint64)))
    return counter


def test_the_most_frequent_ids_of_all_columns_have_rows() -> None:
    random = np.random.default_rng(3)
    columns = [random.zipf(1.3, 3000) % 500, random.integers(0, 300, 2000)]
    counted = [Counter(column.tolist()) for column in columns]
    (size,) = budget_sizes([counter_of(column) for column in columns], [4])
    num_rows = int(sum(map(len, counted)) / 4 / ROW_COST)
    top = sorted(((count, -number) for number, each in enumerate(counted) for count in each.values()), reverse=True)
    held = top[:num_rows]
    assert size.num_rows == num_rows
    assert size.share == pytest.approx(sum(count for count, _ in held) / 5000)
    of_first = sum(count for count, number in held if number == 0)
    assert size.shares == pytest.approx(
        (of_first / 3000, sum(count for count, _ in held) / 2000 - of_first / 2000), abs=0.02
    )


def test_smaller_tables_hold_less_and_more_ids_than_fit_are_estimated() -> None:
    ids = np.random.default_rng(3).zipf(1.2, 200_000)
    exact, estimated = (budget_sizes([counter_of(ids, slots)]) for slots in (1 << 18, 1 << 13))
    shares = [size.share for size in exact]
    assert shares == sorted(shares, reverse=True)
    for one, other in zip(exact, estimated, strict=True):
        assert other.share == pytest.approx(one.share, abs=0.1)


def test_no_columns_of_ids_have_no_sizes() -> None:
    assert budget_sizes([]) == []
