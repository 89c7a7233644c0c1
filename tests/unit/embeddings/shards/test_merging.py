"""Merged updates equal the gradients of one process on all rows."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys
from headrace.embeddings.shards.merging import PlacedUpdate, TrainerUpdate, merge_placed, merge_updates

PAIRS = st.lists(st.tuples(st.integers(0, 2), st.integers(-3, 8)), unique=True, max_size=20)


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(PAIRS, st.integers(1, 100)), min_size=1, max_size=4), seed=st.integers(0, 99))
def test_the_merge_is_the_weighted_mean_of_the_trainers_gradients(
    parts: list[tuple[list[tuple[int, int]], int]], seed: int
) -> None:
    rng = np.random.default_rng(seed)
    total = sum(rows for _, rows in parts)
    expected: dict[tuple[int, int], np.ndarray] = {}
    counts: dict[tuple[int, int], int] = {}
    updates = []
    for pairs, rows in parts:
        gradients = rng.normal(size=(len(pairs), 3)).astype(np.float32)
        table = np.array(pairs, np.int64).reshape(-1, 2)
        keys = Keys(table[:, 0].astype(np.int32), table[:, 1].copy(), np.full(len(pairs), 2, np.int32))
        updates.append(TrainerUpdate(keys, gradients, rows))
        for pair, gradient in zip(pairs, gradients, strict=True):
            expected[pair] = expected.get(pair, np.zeros(3)) + gradient.astype(np.float64) * rows / total
            counts[pair] = counts.get(pair, 0) + 2
    keys, gradients = merge_updates(updates)
    found = list(zip(keys.tables.tolist(), keys.ids.tolist(), strict=True))
    assert found == list(expected), "keys come in trainer order, each once"
    assert keys.counts.tolist() == list(counts.values())
    if found:
        np.testing.assert_allclose(gradients, np.stack(list(expected.values())), rtol=1e-5, atol=1e-6)


def test_one_update_is_passed_through_bit_for_bit() -> None:
    keys = Keys(np.zeros(2, np.int32), np.arange(2), np.ones(2, np.int32))
    gradients = np.array([[0.1], [0.3]], np.float32)
    assert merge_updates([TrainerUpdate(keys, gradients, 7)])[1] is gradients


@settings(max_examples=60, deadline=None)
@given(parts=st.lists(st.tuples(PAIRS, st.integers(0, 100)), min_size=2, max_size=4), seed=st.integers(0, 99))
def test_updates_of_numbered_keys_have_the_same_bits(parts: list[tuple[list[tuple[int, int]], int]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    order = rng.permutation(40).tolist()
    numbers: dict[tuple[int, int], int] = {}
    for pairs, _ in parts:
        for pair in pairs:
            numbers.setdefault(pair, len(numbers))
    shuffled = {pair: order[number] for pair, number in numbers.items()}
    dense = {old: new for new, old in enumerate(sorted(shuffled.values()))}
    updates, placed = [], []
    for pairs, rows in parts:
        gradients = rng.normal(size=(len(pairs), 3)).astype(np.float32)
        table = np.array(pairs, np.int64).reshape(-1, 2)
        counts = rng.integers(1, 9, len(pairs)).astype(np.int32)
        updates.append(TrainerUpdate(Keys(table[:, 0].astype(np.int32), table[:, 1].copy(), counts), gradients, rows))
        places = np.array([dense[shuffled[pair]] for pair in pairs], dtype=np.int64)
        placed.append(PlacedUpdate(places, counts, gradients, rows))
    keys, expected = merge_updates(updates)
    counts, gradients = merge_placed(placed, len(numbers))
    where = [dense[shuffled[pair]] for pair in zip(keys.tables.tolist(), keys.ids.tolist(), strict=True)]
    assert counts[where].tolist() == keys.counts.tolist()
    assert gradients[where].tobytes() == expected.tobytes()
