"""Draws by popularity follow the Zipf law asked for, whatever the order of the slots."""

import numpy as np
import pytest

from headrace.logs.generate.columns import draw_slots
from headrace.logs.generate.popularity import Popularity, zipf_popularity
from headrace.logs.keyed_random import derive

NUM_DRAWS = 200_000


def draw(popularity: Popularity, column: int) -> np.ndarray:
    keys = np.array([derive(np.uint64(9), i) for i in range(NUM_DRAWS // 100)], np.uint64)
    slots = np.empty((100, len(keys)), np.int64)
    for what in range(100):
        draw_slots(keys, what, popularity, column, slots[what])
    return slots.ravel()


@pytest.mark.parametrize(("size", "exponent"), [(2, 1.0), (10, 0.0), (40, 1.05), (1000, 2.0)])
def test_frequencies_follow_the_zipf_law(size: int, exponent: float) -> None:
    popularity = zipf_popularity([(7, 1.0), (size, exponent)], seed=5)
    counts = np.sort(np.bincount(draw(popularity, 1), minlength=size))[::-1]
    expected = np.arange(1, size + 1) ** -exponent
    expected *= NUM_DRAWS / expected.sum()
    often = expected > 50
    assert np.abs(counts - expected)[often].max() < 6 * np.sqrt(expected[often]).max()
    assert len(counts) == size


def test_alias_tables_carry_exactly_the_probability_of_each_slot() -> None:
    size, exponent = 50, 1.05
    popularity = zipf_popularity([(size, exponent)], seed=5)
    mass = popularity.keep.astype(np.float64)
    np.add.at(mass, popularity.other, 1.0 - popularity.keep)
    expected = np.arange(1, size + 1) ** -exponent
    np.testing.assert_allclose(np.sort(mass / size)[::-1], expected / expected.sum(), rtol=1e-4)


def test_which_slot_is_popular_depends_on_the_seed_and_the_column() -> None:
    tables = zipf_popularity([(1000, 2.0), (1000, 2.0)], seed=5)
    other = zipf_popularity([(1000, 2.0)], seed=6)
    favourites = {int(np.bincount(draw(t, c)).argmax()) for t, c in ((tables, 0), (tables, 1), (other, 0))}
    assert len(favourites) == 3
