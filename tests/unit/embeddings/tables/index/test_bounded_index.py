"""The bounded index: keys and rows against a dictionary, through many moves, in memory that does not grow."""

import numpy as np

from headrace.embeddings import Keys
from headrace.embeddings.tables.index.bounded_index import BoundedIndex, num_bytes_of


def keys(pairs: list[tuple[int, int]]) -> Keys:
    tables, ids = zip(*pairs, strict=True)
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(pairs), np.int32))


def test_it_agrees_with_a_dictionary_while_rows_come_and_go() -> None:
    random = np.random.default_rng(1)
    index, known = BoundedIndex(40, 7), dict[tuple[int, int], int]()
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
        assert index.resolve(keys(everything)).tolist() == [known.get(pair, 0) for pair in everything]
        assert index.num_rows == len(known)
        assert index.rows().tolist() == sorted(known.values())
    assert all(7 <= row < 47 for row in known.values())
    assert index.num_bytes == size == num_bytes_of(40)


def test_keys_beyond_the_last_free_row_get_none() -> None:
    index = BoundedIndex(2, 1)
    assert index.allocate(keys([(0, 5), (0, 6), (1, 5)])).tolist() == [1, 2, 0]
    assert index.num_free == 0


def test_the_lowest_free_row_is_given_out_first() -> None:
    index = BoundedIndex(4, 1)
    index.allocate(keys([(0, key) for key in range(4)]))
    index.release(np.array([3, 2]))
    assert index.allocate(keys([(0, 9), (0, 8)])).tolist() == [2, 3]
