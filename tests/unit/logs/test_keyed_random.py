"""Keyed draws: evenly spread, of the stated mean and variance, and a function of the key alone."""

import numpy as np
import pytest

from headrace.logs.keyed_random import derive, gaussian, mix, uniform

KEYS = [np.uint64(derive(np.uint64(3), i)) for i in range(20_000)]


def test_mix_agrees_with_the_published_first_value_of_splitmix64() -> None:
    # The generator seeded with 0 adds the golden ratio, then applies this finaliser.
    assert int(mix(np.uint64(0x9E3779B97F4A7C15))) == 0xE220A8397B1DCDAF


def test_uniform_numbers_are_spread_evenly_over_0_to_1() -> None:
    values = np.array([uniform(key) for key in KEYS])
    assert values.min() >= 0
    assert values.max() < 1
    counts = np.histogram(values, bins=20, range=(0, 1))[0]
    assert np.abs(counts - 1000).max() < 5 * np.sqrt(1000)


def test_gaussian_numbers_have_mean_0_and_variance_1() -> None:
    values = np.array([gaussian(key) for key in KEYS])
    assert values.mean() == pytest.approx(0, abs=5 / np.sqrt(len(KEYS)))
    assert values.var() == pytest.approx(1, abs=0.05)


def test_keys_derived_for_different_things_have_nothing_in_common() -> None:
    assert len({int(key) for key in KEYS}) == len(KEYS)
    neighbours = np.array([uniform(key) for key in KEYS])
    assert abs(np.corrcoef(neighbours[:-1], neighbours[1:])[0, 1]) < 0.03
    assert derive(np.uint64(1), 2) != derive(np.uint64(2), 1)
