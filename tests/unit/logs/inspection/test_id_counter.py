"""Counting ids: exact while they fit, within the stated errors beyond."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.inspection.hashing import Hashes, _mix
from headrace.logs.inspection.id_counter import MAX_SLOTS, IdCounter


def hashed(ids: np.ndarray) -> Hashes:
    return _mix(ids.astype(np.int64).view(np.uint64))


def counted(ids: np.ndarray, max_slots: int = MAX_SLOTS) -> IdCounter:
    counter = IdCounter(max_slots)
    for start in range(0, len(ids), 10_000):
        counter.add(hashed(ids[start : start + 10_000]))
    return counter


def true_top_share(ids: np.ndarray, ratio: float) -> float:
    counts = np.sort(np.unique(ids, return_counts=True)[1])[::-1]
    return float(counts[: math.ceil(ratio * len(counts) - 1e-9)].sum() / len(ids))


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 400), min_size=1, max_size=3000), st.sampled_from([0.01, 0.1, 0.5]))
def test_few_ids_are_counted_exactly(ids: list[int], ratio: float) -> None:
    array = np.array(ids)
    counter = counted(array)
    assert counter.is_exact
    assert counter.num_distinct() == len(set(ids))
    assert counter.num_values == len(ids)
    assert counter.top_share(ratio) == pytest.approx(true_top_share(array, ratio))


def test_a_hundred_thousand_ids_are_still_exact() -> None:
    counter = counted(np.tile(np.arange(100_000), 2))
    assert counter.is_exact
    assert counter.num_distinct() == 100_000
    assert counter.top_share() == pytest.approx(0.01)


def test_millions_of_ids_are_estimated_within_the_stated_error_in_bounded_memory() -> None:
    counter = counted(np.arange(3_000_000))
    assert not counter.is_exact
    assert abs(counter.num_distinct() / 3_000_000 - 1) < 3 * 0.0055
    assert counter.top_share() == pytest.approx(0.01, abs=0.003)
    assert len(counter._keys) == MAX_SLOTS


def test_the_error_of_the_estimate_is_as_stated_over_many_streams() -> None:
    # A table of 2^12 slots samples 512 to 1024 ids: a standard error of at most 1/sqrt(512) = 4.4 %.
    errors = [counted(np.arange(50_000) + 10**6 * seed, 1 << 12).num_distinct() / 50_000 - 1 for seed in range(40)]
    assert np.sqrt(np.mean(np.square(errors))) < 1.25 / math.sqrt(512)
    assert abs(np.mean(errors)) < 0.02


@pytest.mark.parametrize("exponent", [0.7, 1.1])
def test_the_share_of_the_top_ids_is_within_two_hundredths(exponent: float) -> None:
    random = np.random.default_rng(int(10 * exponent))
    weights = np.cumsum(np.arange(1, 2_000_001) ** -exponent)
    ids = np.searchsorted(weights / weights[-1], np.sort(random.random(1_500_000)))
    random.shuffle(ids)
    counter = counted(ids)
    assert counter.top_share() == pytest.approx(true_top_share(ids, 0.01), abs=0.02)
    assert counter.num_distinct() == pytest.approx(len(np.unique(ids)), rel=3 * 0.0055)


def test_frequent_ids_that_come_late_are_found() -> None:
    ids = np.concatenate([np.arange(1_000_000), np.repeat(np.arange(100) + 2_000_000, 5_000)])
    share = counted(ids).top_share()
    assert share == pytest.approx(true_top_share(ids, 0.01), abs=0.02)


def test_nothing_counted_has_no_share() -> None:
    assert IdCounter().top_share() == 0.0
    assert IdCounter().num_distinct() == 0.0
