import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.index.row_index import RowIndex
from headrace.embeddings.tables.lifecycle.count_admission import CountAdmission
from headrace.embeddings.tables.lifecycle.policies import IdHistory
from headrace.errors import ConfigError

FIRST_ROW = 10
# Table 0 is fixed with rows from 1 on, tables 1 and 2 are collisionless and admit at the first and third sighting.
SIZES = np.array([9, -1, -1])
THRESHOLDS = [1, 1, 3]


def index(capacity: int = 1) -> RowIndex:
    return RowIndex(SIZES, CountAdmission(THRESHOLDS), capacity=capacity)


def keys_of(pairs: list[tuple[int, int]], counts: list[int] | None = None) -> Keys:
    tables = np.array([table for table, _ in pairs], dtype=np.int32)
    ids = np.array([key for _, key in pairs], dtype=np.int64)
    return Keys(tables, ids, np.array(counts or [1] * len(pairs), dtype=np.int32))


def see(d: RowIndex, pairs: list[tuple[int, int]], counts: list[int] | None = None, step: int = 0) -> list:
    keys = keys_of(pairs, counts)
    rows = d.resolve(keys)
    d.admit(keys, rows, version=step)
    return rows.tolist()


def peek(d: RowIndex, pairs: list[tuple[int, int]]) -> list:
    return d.resolve(keys_of(pairs)).tolist()


def columns(pending: IdHistory) -> list:
    return [column.tolist() for column in (pending.tables, pending.ids, pending.last_seen, pending.sightings)]


def test_new_ids_get_the_next_rows_in_order_and_keep_them() -> None:
    d = index()
    assert see(d, [(1, 100), (1, -7)]) == [10, 11]
    assert see(d, [(1, -7), (1, 5), (1, 100)]) == [11, 12, 10]


def test_ids_of_fixed_tables_are_rows_already() -> None:
    assert see(index(), [(0, 0), (0, 4), (1, 4)]) == [1, 5, 10]


def test_the_same_id_in_two_tables_has_two_rows() -> None:
    for key in range(100):  # in a table of a few slots some of these meet
        d = index()
        assert see(d, [(1, key), (2, key)], counts=[1, 3]) == [10, 11]
        assert peek(d, [(1, key), (2, key)]) == [10, 11]


def test_an_id_gets_its_row_at_the_sighting_that_reaches_the_threshold() -> None:
    d = index()
    assert see(d, [(2, 9)]) == [0]
    assert see(d, [(2, 9)]) == [0]
    assert see(d, [(2, 9)]) == [10]
    assert see(d, [(2, 8)], counts=[3]) == [11]


def test_looking_without_admitting_changes_nothing() -> None:
    d = index()
    for _ in range(5):
        assert peek(d, [(1, 1), (2, 1)]) == [0, 0]
    assert d.num_entries == 0
    assert see(d, [(2, 1)]) == [0]


@given(
    st.lists(
        st.lists(st.tuples(st.integers(1, 2), st.integers(-(2**63), 2**63 - 1)), max_size=30, unique=True), max_size=20
    )
)
@settings(max_examples=40, deadline=None)
def test_the_index_agrees_with_a_dict_through_growth(calls: list) -> None:
    d, sightings, rows = index(), {}, {}
    for pairs in calls:
        for pair in pairs:
            sightings[pair] = sightings.get(pair, 0) + 1
            if sightings[pair] >= THRESHOLDS[pair[0]] and pair not in rows:
                rows[pair] = FIRST_ROW + len(rows)
        assert see(d, pairs) == [rows.get(pair, 0) for pair in pairs]
    assert d.num_entries == len(sightings)
    assert peek(d, list(sightings)) == [rows.get(pair, 0) for pair in sightings]


def test_thousands_of_ids_survive_growth() -> None:
    d = index()
    ids = [(1, key * 2**32) for key in range(5000)]  # equal low halves, as sequential ids in the high bits have
    for start in range(0, 5000, 500):
        see(d, ids[start : start + 500])
    assert peek(d, ids) == list(range(FIRST_ROW, FIRST_ROW + 5000))


def test_ids_that_are_removed_are_forgotten_and_their_rows_are_given_out_again_lowest_first() -> None:
    d = index()
    see(d, [(1, 1), (1, 2), (1, 3), (1, 4)])
    d.remove(keys_of([(1, 3), (1, 1), (1, 99)]))
    assert d.num_entries == 2
    assert d.num_free == 2
    assert peek(d, [(1, 1), (1, 2), (1, 3), (1, 4)]) == [0, 11, 0, 13]
    assert see(d, [(1, 9), (1, 1), (1, 3)]) == [10, 12, 14]
    assert d.num_free == 0


def test_sightings_of_ids_not_yet_admitted_are_forgotten_with_them() -> None:
    d = index()
    see(d, [(2, 1), (2, 2)], counts=[2, 2])
    d.remove(keys_of([(2, 1)]))
    assert see(d, [(2, 1), (2, 2)]) == [0, 10]


@given(st.lists(st.tuples(st.booleans(), st.sets(st.integers(0, 40), max_size=25)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_the_index_agrees_with_a_dict_while_ids_come_and_go(calls: list) -> None:
    d, rows = index(), {}
    for is_removal, ids in calls:
        pairs = [(1, key * 2**32) for key in sorted(ids)]  # equal low halves, in few slots
        if is_removal:
            d.remove(keys_of(pairs))
            rows = {pair: row for pair, row in rows.items() if pair not in pairs}
        else:
            rows |= dict(zip(pairs, see(d, pairs), strict=True))
        assert peek(d, list(rows)) == list(rows.values())
        assert len(set(rows.values())) == len(rows) == d.num_entries


def test_an_index_that_has_lost_most_ids_gets_smaller_and_closes_gaps_between_rows() -> None:
    d = index()
    pairs = [(1, key) for key in range(20_000)]
    see(d, pairs)
    num_bytes = d.num_bytes
    d.remove(keys_of([pair for pair in pairs if pair[1] % 10_000]))
    assert d.num_bytes < 0.7 * num_bytes
    assert peek(d, pairs[::10_000]) == [10, 10_010]
    assert d.compact().tolist() == [10, 10_010]
    assert d.num_bytes < num_bytes / 20
    assert peek(d, pairs[::10_000]) == [10, 11]
    assert [each.tolist() for each in d.owners(np.array([10, 11, 3]))] == [[1, 1, 0], [0, 10_000, 2]]
    assert see(d, [(1, 7)]) == [12]


def test_a_restored_index_goes_on_as_the_saved_one() -> None:
    saved = index()
    see(saved, [(1, k) for k in range(6)])
    see(saved, [(2, k) for k in (5, 3)], counts=[2, 1], step=4)
    saved.remove(keys_of([(1, 1), (1, 4), (1, 5)]))
    restored = index()
    restored.restore(np.array([10, 12, 13]), np.ones(3, np.int32), np.array([0, 2, 3]), saved.pending())
    assert restored.num_entries == saved.num_entries == 5
    more = [(1, 50), (2, 5), (1, 51), (2, 3), (1, 52), (1, 2)]
    assert see(restored, more) == see(saved, more) == [11, 14, 15, 0, 16, 12]
    assert columns(saved.pending()) == columns(restored.pending())


def test_an_id_that_waits_remembers_when_it_was_seen_also_after_more_than_32_bits_of_versions() -> None:
    d = index()
    newest = 3 * 2**32 + 5
    see(d, [(2, 1)], step=newest - 2**32 + 1)
    see(d, [(2, 2)], step=newest - 10)
    see(d, [(2, 3)], step=newest)
    seen = [newest - 2**32 + 1, newest - 10, newest]
    assert d.pending().last_seen.tolist() == seen
    assert d.waiting(keys_of([(2, 3), (1, 1), (2, 1)]))[1].tolist() == [seen[2], 0, seen[0]]
    restored = index()
    restored.restore(np.empty(0, np.int64), np.empty(0, np.int32), np.empty(0, np.int64), d.pending())
    assert columns(restored.pending()) == columns(d.pending())


@given(st.lists(st.tuples(st.integers(0, 3), st.sets(st.integers(0, 30), max_size=20)), max_size=25))
@settings(max_examples=60, deadline=None)
def test_ids_wait_are_admitted_and_removed_as_in_a_dict(calls: list) -> None:
    d, sightings, rows, free, end = index(), {}, {}, set(), FIRST_ROW
    for version, (kind, ids) in enumerate(calls):
        pairs = [(2, key * 2**32) for key in sorted(ids)]
        if kind == 0:
            d.remove(keys_of(pairs))
            free |= {rows.pop(pair) for pair in pairs if pair in rows}
            sightings = {pair: count for pair, count in sightings.items() if pair not in pairs}
            continue
        expected = []
        for pair in pairs:
            if pair not in rows:
                sightings[pair] = sightings.get(pair, 0) + 1
                if sightings[pair] >= THRESHOLDS[2]:
                    del sightings[pair]
                    rows[pair] = min(free, default=end)
                    free, end = free - {rows[pair]}, max(end, rows[pair] + 1)
            expected.append(rows.get(pair, 0))
        assert see(d, pairs, step=version) == expected
        pending = d.pending()
        waiting = zip(pending.tables.tolist(), pending.ids.tolist(), pending.sightings.tolist(), strict=True)
        assert {(table, key): count for table, key, count in waiting} == sightings
    assert d.num_free == len(free)
    assert d.next_row == end


def test_more_tables_than_the_index_can_number_are_refused() -> None:
    with pytest.raises(ConfigError, match="given 65537 tables of one dimension, expected at most 65536"):
        RowIndex(np.full(65_537, -1), CountAdmission([1]), capacity=1)
