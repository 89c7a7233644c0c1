from collections import Counter

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings.ops.accumulation import merge_keys
from headrace.embeddings.ops.unique import DIRECT, EXACT, HASHED, TableLayout, UniqueIds, unique_keys
from headrace.embeddings.tables.index.hashed import hashed_row
from headrace.tensors import KeyedJaggedTensor, Keys
from headrace.tensors.jagged_ids import collect_ids

SIZE = 5
SALTS = np.array([1, 2, 3], dtype=np.uint64)
# Features 0 and 2 share table 1 (exact), feature 1 has table 0 (hashed), feature 3 has table 2 (direct).
LAYOUT = TableLayout(
    kinds=np.array([HASHED, EXACT, DIRECT]),
    sizes=np.array([SIZE, 0, SIZE]),
    salts=SALTS,
    feature_starts=np.array([0, 1, 3, 4]),
    features=np.array([1, 0, 2, 3]),
)
TABLE_OF_FEATURE = [1, 0, 1, 2]
ANY_ID = st.one_of(st.integers(-3, 3), st.integers(-(2**63), 2**63 - 1))


def run(lists: list[list[list[int]]], columns: list[int]) -> UniqueIds:
    """`lists[column]` holds an id list per row; feature f is in column `columns[f]`."""
    kjt = KeyedJaggedTensor.from_lists({str(c): rows for c, rows in enumerate(lists)})
    return unique_keys(LAYOUT, collect_ids((kjt,), [str(column) for column in columns]))


def expected_keys(lists: list[list[list[int]]], columns: list[int]) -> tuple[list[tuple[int, int]], Counter]:
    found: dict[tuple[int, int], None] = {}
    counts: Counter = Counter()
    for table in range(3):
        for f in [f for f in range(4) if TABLE_OF_FEATURE[f] == table]:
            for key in [key for ids in lists[columns[f]] for key in ids]:
                pair = (table, int(hashed_row(key, SALTS[0], SIZE)) if table == 0 else key)
                found[pair] = None
                counts[pair] += 1
    return list(found), counts


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[list[list[int]]], list[int]]:
    stride = draw(st.integers(0, 5))
    columns = draw(st.permutations(range(5)))[:4]  # the batch has a column that nobody looks up
    direct = columns[3]
    lists = [
        draw(
            st.lists(
                st.lists(st.integers(0, SIZE - 1) if c == direct else ANY_ID, max_size=4),
                min_size=stride,
                max_size=stride,
            )
        )
        for c in range(5)
    ]
    return lists, columns


@given(batches())
@settings(max_examples=60, deadline=None)
def test_keys_are_unique_counted_and_in_order_of_first_occurrence(batch: tuple) -> None:
    lists, columns = batch
    unique = run(lists, columns)
    pairs = list(zip(unique.keys.tables.tolist(), unique.keys.ids.tolist(), strict=True))
    expected, counts = expected_keys(lists, columns)
    assert pairs == expected
    assert unique.keys.counts.tolist() == [counts[pair] for pair in pairs]
    assert unique.key_starts.tolist() == [sum(s < table for s, _ in pairs) for table in range(4)]
    assert unique.bad_value == -1


@given(batches())
@settings(max_examples=40, deadline=None)
def test_inverse_leads_from_each_id_to_its_key(batch: tuple) -> None:
    lists, columns = batch
    unique = run(lists, columns)
    starts = np.concatenate([[0], np.cumsum([sum(map(len, rows)) for rows in lists])])
    for f, column in enumerate(columns):
        ids = [key for row in lists[column] for key in row]
        keys = unique.inverse[starts[column] : starts[column] + len(ids)]
        assert (unique.keys.tables[keys] == TABLE_OF_FEATURE[f]).all()
        if TABLE_OF_FEATURE[f] != 0:
            assert unique.keys.ids[keys].tolist() == ids


def test_keys_do_not_depend_on_the_number_of_threads() -> None:
    rng = np.random.default_rng(0)
    lists = [[rng.integers(0, SIZE, rng.integers(0, 9)).tolist() for _ in range(200)] for _ in range(5)]
    results = []
    for threads in (1, numba.config.NUMBA_NUM_THREADS):
        numba.set_num_threads(threads)
        unique = run(lists, [0, 1, 2, 3])
        used = sum(len(ids) for rows in lists[:4] for ids in rows)
        results.append((unique.keys.tables, unique.keys.ids, unique.keys.counts, unique.inverse[:used]))
    for one, many in zip(*results, strict=True):
        np.testing.assert_array_equal(one, many)


@pytest.mark.parametrize("bad", [-1, SIZE, 2**62, -(2**63)])
def test_the_first_id_out_of_range_in_a_direct_table_is_reported(bad: int) -> None:
    unique = run([[[1], [1]], [[2], [2]], [[3], []], [[0], [4, bad, SIZE + 1]], [[], []]], [0, 1, 2, 3])
    assert (unique.bad_value, unique.bad_table) == (7, 2)


def test_merged_parts_sum_gradients_of_equal_keys() -> None:
    def keys(pairs: list[tuple[int, int]], counts: list[int]) -> Keys:
        tables, ids = (np.array(column) for column in zip(*pairs, strict=True))
        return Keys(tables.astype(np.int32), ids.astype(np.int64), np.array(counts, dtype=np.int32))

    first = keys([(0, 7), (1, 7)], [1, 2]), np.array([[1, 1], [2, 2]], dtype=np.float32)
    second = keys([(0, -1), (1, 7)], [3, 4]), np.array([[4, 4], [8, 8]], dtype=np.float32)
    merged, gradients = merge_keys([first, second])
    assert list(zip(merged.tables.tolist(), merged.ids.tolist(), strict=True)) == [(0, 7), (0, -1), (1, 7)]
    assert merged.counts.tolist() == [1, 3, 6]
    assert gradients[:, 0].tolist() == [1, 4, 10]
    assert merge_keys([first])[0] is first[0]


def test_merged_parts_without_a_common_table_come_in_the_order_of_tables() -> None:
    def part(tables: list[int]) -> tuple[Keys, np.ndarray]:
        ids = 10 * np.array(tables, dtype=np.int64) + np.arange(len(tables))
        keys = Keys(np.array(tables, dtype=np.int32), ids, np.arange(len(tables), dtype=np.int32))
        return keys, np.repeat(ids.astype(np.float32)[:, None], 3, axis=1)

    parts = [part([1, 1, 4]), part([]), part([0, 3, 3, 3]), part([2])]
    merged, gradients = merge_keys(parts)
    assert merged.tables.tolist() == [0, 1, 1, 2, 3, 3, 3, 4]
    assert merged.ids.tolist() == [0, 10, 11, 20, 31, 32, 33, 42]
    assert merged.counts.tolist() == [0, 0, 1, 0, 1, 2, 3, 2]
    np.testing.assert_array_equal(gradients, np.repeat(merged.ids.astype(np.float32)[:, None], 3, axis=1))
