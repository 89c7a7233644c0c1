"""The index of keys, of fixed size and growing: against a dictionary, in memory that grows by a little."""

import numpy as np
import pytest

from headrace.embeddings import Keys
from headrace.embeddings.tables.index import key_index
from headrace.embeddings.tables.index.key_index import SEGMENT_SLOTS, KeyIndex, bytes_of_fixed_size
from headrace.errors import HeadraceError


def keys(pairs: list[tuple[int, int]]) -> Keys:
    tables, ids = [table for table, _ in pairs], [key for _, key in pairs]
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(pairs), np.int32))


def many(first: int, last: int) -> Keys:
    ids = np.arange(first, last, dtype=np.int64) << 32  # equal low halves
    return Keys(np.full(len(ids), 7, np.int32), ids, np.ones(len(ids), np.int32))


@pytest.mark.parametrize("num_rows", [40, None])
def test_it_agrees_with_a_dictionary_while_rows_come_and_go(num_rows: int | None) -> None:
    random = np.random.default_rng(1)
    index, known = KeyIndex(7, num_rows=num_rows), dict[tuple[int, int], int]()
    size = index.num_bytes
    everything = [(table, key) for table in range(3) for key in range(-20, 20)]
    for _ in range(300):
        missing = [pair for pair in everything if pair not in known]
        chosen = [missing[i] for i in random.permutation(len(missing))[: random.integers(1, 12)]]
        rows = index.allocate(keys(chosen))
        known |= {pair: row for pair, row in zip(chosen, rows.tolist(), strict=True) if row}
        held = list(known)
        gone = [held[i] for i in random.permutation(len(held))[: random.integers(0, 12)]]
        index.release(np.array([known.pop(pair) for pair in gone], dtype=np.int64))
        losers = [pair for pair in known if random.random() < 0.2]
        missing = [pair for pair in everything if pair not in known]
        winners = [missing[i] for i in random.permutation(len(missing))[: len(losers)]]
        moved = [known.pop(pair) for pair in losers[: len(winners)]]
        had = index.replace(np.array(moved, dtype=np.int64), keys(winners))
        assert list(zip(*(each.tolist() for each in had), strict=True)) == losers[: len(winners)]
        known |= dict(zip(winners, moved, strict=True))
        assert index.resolve(keys(everything)).tolist() == [known.get(pair, 0) for pair in everything]
        assert index.num_rows == len(known)
        assert index.rows().tolist() == sorted(known.values())
    if num_rows is not None:
        assert all(7 <= row < 47 for row in known.values())
        assert index.num_bytes == size == bytes_of_fixed_size(40) + 4


def test_keys_beyond_the_last_free_row_get_none() -> None:
    index = KeyIndex(1, num_rows=2)
    assert index.allocate(keys([(0, 5), (0, 6), (1, 5)])).tolist() == [1, 2, 0]
    assert index.num_free == 0


@pytest.mark.parametrize("num_rows", [4, None])
def test_the_lowest_free_row_is_given_out_first(num_rows: int | None) -> None:
    index = KeyIndex(1, num_rows=num_rows)
    index.allocate(keys([(0, key) for key in range(4)]))
    index.release(np.array([3, 2]))
    assert index.allocate(keys([(0, 9), (0, 8)])).tolist() == [2, 3]


def test_a_full_index_finds_all_keys_and_no_others() -> None:
    index = KeyIndex(1, num_rows=1000)
    index.allocate(many(0, 1000))
    assert index.resolve(many(0, 2000)).tolist() == [*range(1, 1001), *[0] * 1000]


def test_an_index_grows_by_a_segment_at_a_time_and_takes_at_most_28_bytes_per_key() -> None:
    with_rows, waiting = KeyIndex(1), KeyIndex(1)
    for first in range(0, 60_000, 500):
        before = with_rows.arrays.num_segments
        with_rows.allocate(many(first, first + 500))
        waiting.add_waiting(many(first, first + 500))
        assert with_rows.arrays.num_segments - before <= 1
        if first > 20_000:
            assert with_rows.num_bytes < 23 * with_rows.num_rows
            assert waiting.num_bytes < 29 * waiting.num_waiting
    assert with_rows.arrays.num_segments > 30
    assert with_rows.resolve(many(0, 61_000)).tolist() == [*range(1, 60_001), *[0] * 1000]
    assert not waiting.resolve(many(0, 60_000)).any()
    assert np.count_nonzero(waiting.values(many(0, 61_000))) == 60_000


def test_segments_are_filled_evenly() -> None:
    index = KeyIndex(1)
    index.allocate(many(0, 100_000))
    slots = index.arrays.slots.array[: index.arrays.num_segments * SEGMENT_SLOTS].reshape(-1, SEGMENT_SLOTS)
    loads = np.count_nonzero(slots, axis=1) / SEGMENT_SLOTS
    assert loads.max() < 0.95
    assert loads.min() > 0.3


def test_tags_give_way_to_places_that_need_more_bits() -> None:
    index = KeyIndex(1)
    index.allocate(many(0, 1000))  # at most 2002, 11 bits
    assert index.arrays.place_bits.array[0] == 11
    far = KeyIndex(1)
    far.insert(many(0, 1000), np.arange(1, 1001))
    far.insert(many(1000, 1001), np.array([1 << 16]))
    assert far.arrays.place_bits.array[0] == 18
    assert far.resolve(many(0, 1002)).tolist() == [*range(1, 1001), 1 << 16, 0]


def test_more_keys_than_a_slot_can_number_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_index, "MAX_KEYS", 3)
    index = KeyIndex(1)
    index.allocate(many(0, 3))
    with pytest.raises(HeadraceError, match="given more ids of collisionless tables than 3, use more shards"):
        index.allocate(many(3, 4))
    assert index.resolve(many(0, 4)).tolist() == [1, 2, 3, 0]
