"""Quantiles and moments of numbers, to the width of a bucket."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs.inspection.number_sketch import NumberSketch

WIDTH = 1 / 32


def sketch_of(*batches: np.ndarray) -> NumberSketch:
    sketch = NumberSketch()
    for batch in batches:
        sketch.add(batch)
    return sketch


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.integers(-5, 70) | st.floats(1e-30, 1e30) | st.floats(-1e30, -1e-30), min_size=1, max_size=60),
    st.sampled_from([0.0, 0.001, 0.1, 0.3, 0.5]),
)
def test_bounds_leave_out_no_more_than_they_may_and_are_values_to_the_width_of_a_bucket(
    numbers: list[float], share: float
) -> None:
    values = np.array(numbers, np.float64)
    low, high = sketch_of(values).bounds(share, share)
    assert (values < low - 1e-6 * abs(low)).mean() <= share
    assert (values > high + 1e-6 * abs(high)).mean() <= share
    for bound in (low, high):
        near = np.abs(values - bound) <= WIDTH * np.abs(values) + 1e-30
        assert near.any()
    exact = np.sort(values)[int(share * len(values))]
    assert abs(low - exact) <= WIDTH * abs(exact) + 1e-30


def test_small_integers_have_buckets_of_their_own() -> None:
    counts = np.arange(-64, 64).repeat(np.arange(128))
    assert sketch_of(counts.astype(np.int8)).bounds(0.5, 0.5)[0] == np.median(counts)
    low, high = sketch_of(np.array([0, 0, 3, 12])).bounds(0, 0)
    assert low == 0
    assert int(high) == 12


def test_batches_in_any_order_and_type_give_the_same() -> None:
    numbers = np.random.default_rng(0).lognormal(3, 2, 3000).astype(np.float32)
    whole = sketch_of(numbers)
    parts = sketch_of(numbers[::-1][:1000].astype(np.float64), numbers[:2000], np.zeros(0, np.float32))
    assert parts.num_values == 3000
    assert parts.bounds(0.01, 0.02) == whole.bounds(0.01, 0.02)
    assert parts.moments(np.log) == whole.moments(np.log)


def test_moments_are_those_of_the_numbers() -> None:
    numbers = np.random.default_rng(1).lognormal(1, 1.5, 20_000)
    mean, std = sketch_of(numbers, -numbers).moments(lambda values: np.sign(values) * np.log1p(np.abs(values)))
    squashed = np.log1p(np.abs(numbers))
    assert mean == pytest.approx(0, abs=1e-9)
    assert std == pytest.approx(np.sqrt((squashed**2).mean()), rel=0.01)


def test_numbers_beyond_float32_count_as_its_largest() -> None:
    sketch = sketch_of(np.array([1e300, -1e300, 2**64 - 1]))
    assert sketch.bounds(0, 0) == (-float(np.finfo(np.float32).max), float(np.finfo(np.float32).max))
    assert sketch.num_values == 3
