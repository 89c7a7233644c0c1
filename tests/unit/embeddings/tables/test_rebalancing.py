"""How a budget is divided between partitions: a decision on histograms, checked by hand."""

import numpy as np
import pytest

from headrace.embeddings.tables.lifecycle.rebalancing import Rebalancing, rebalance
from headrace.embeddings.tables.lifecycle.row_retention import NUM_BUCKETS, ZERO_BUCKET, Demand

BUDGETS, FIXED = [11_000, 11_000], [1_000, 1_000]


def demand(num_rows: int, **by_importance: int) -> Demand:
    """Numbers of ids of importance 1, 16 and 256, which are in buckets 64, 80 and 96."""
    importance = np.repeat([1.0, 16.0, 256.0], [by_importance.get(name, 0) for name in ("one", "more", "most")])
    return Demand.of(num_rows, importance.astype(np.float32))


def test_buckets_of_importance() -> None:
    histogram = Demand.of(1, np.array([0, 2.0**-20, 1, 1.18, 1.19, 16, 2.0**40], np.float32)).histogram
    assert histogram is not None
    assert {b: n for b, n in enumerate(histogram) if n} == {0: 2, 64: 2, 65: 1, 80: 1, NUM_BUCKETS - 1: 1}
    assert ZERO_BUCKET == 64


def test_equal_partitions_stay() -> None:
    decision = rebalance(BUDGETS, FIXED, [demand(100, one=300, more=60), demand(100, one=310, more=60)])
    assert decision.budgets == (11_000, 11_000)
    assert decision.reason == "nothing to move: all partitions have the rows that they need within 0.7%"


def test_rows_go_where_ids_above_the_common_threshold_are() -> None:
    """Of 200 rows, 150 go to ids of importance 16 (110 and 40), the other 50 half and half, as ids of 1 are."""
    decision = rebalance(BUDGETS, FIXED, [demand(100, one=80, more=110), demand(100, one=80, more=40)])
    assert decision.budgets == (1_000 + 12_500, 1_000 + 7_500)  # 125 and 75 rows: at most a quarter moves at once
    assert "partition 0 has 110 ids of an importance above" in decision.reason
    assert "for 100 rows; it gets +22.7% bytes" in decision.reason


def test_a_change_is_bounded_and_keeps_the_sum() -> None:
    demands = [demand(100, most=500), demand(100), demand(100)]
    decision = rebalance([11_001, 11_000, 11_002], [1_000] * 3, demands)
    assert sum(decision.budgets) == 33_003
    shares = np.array([125, 75, 75]) / 275
    np.testing.assert_allclose(np.array(decision.budgets) - 1_000, 30_003 * shares, atol=1.5)


def test_spare_rows_are_lent_where_ids_have_none() -> None:
    decision = rebalance(BUDGETS, FIXED, [demand(100, one=115), demand(100, one=20)])
    assert decision.budgets[0] > 11_000 > decision.budgets[1]


@pytest.mark.parametrize(
    ("demands", "reason"),
    [
        ([demand(100, most=500)], "there is one partition"),
        ([demand(100, most=500), Demand(100, None)], "the policy has partitions of fixed size"),
        ([demand(3, most=50), demand(3)], "a partition would be left with hardly any rows"),
    ],
)
def test_why_nothing_moves(demands: list[Demand], reason: str) -> None:
    budgets = [1_300, 1_300][: len(demands)]
    expected = Rebalancing(tuple(budgets), f"nothing to move: {reason}")
    assert rebalance(budgets, FIXED[: len(demands)], demands) == expected
