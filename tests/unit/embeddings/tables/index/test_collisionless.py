import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings.tables.index import CollisionlessDirectory

FIRST_ROW = 10
# Space 0 is fixed with rows from 3 on, spaces 1 and 2 are collisionless and admit at the first and third sighting.
FIRST_ROWS = np.array([3, -1, -1])
THRESHOLDS = np.array([1, 1, 3])


def directory(capacity: int = 1) -> CollisionlessDirectory:
    return CollisionlessDirectory(FIRST_ROWS, THRESHOLDS, first_row=FIRST_ROW, capacity=capacity)


def see(
    d: CollisionlessDirectory, pairs: list[tuple[int, int]], counts: list[int] | None = None, step: int = 0
) -> list:
    spaces = np.array([space for space, _ in pairs], dtype=np.int32)
    ids = np.array([key for _, key in pairs], dtype=np.int64)
    rows = d.resolve(spaces, ids)
    d.admit(spaces, ids, np.array(counts or [1] * len(pairs), dtype=np.int32), rows, version=step)
    return rows.tolist()


def peek(d: CollisionlessDirectory, pairs: list[tuple[int, int]]) -> list:
    return d.resolve(
        np.array([s for s, _ in pairs], dtype=np.int32), np.array([k for _, k in pairs], np.int64)
    ).tolist()


def test_new_ids_get_the_next_rows_in_order_and_keep_them() -> None:
    d = directory()
    assert see(d, [(1, 100), (1, -7)]) == [10, 11]
    assert see(d, [(1, -7), (1, 5), (1, 100)]) == [11, 12, 10]


def test_keys_of_fixed_spaces_are_rows_already() -> None:
    assert see(directory(), [(0, 0), (0, 4), (1, 4)]) == [3, 7, 10]


def test_the_same_id_in_two_spaces_has_two_rows() -> None:
    for key in range(100):  # in a table of a few slots some of these meet
        d = directory()
        assert see(d, [(1, key), (2, key)], counts=[1, 3]) == [10, 11]
        assert peek(d, [(1, key), (2, key)]) == [10, 11]


def test_an_id_gets_its_row_at_the_sighting_that_reaches_the_threshold() -> None:
    d = directory()
    assert see(d, [(2, 9)]) == [0]
    assert see(d, [(2, 9)]) == [0]
    assert see(d, [(2, 9)]) == [10]
    assert see(d, [(2, 8)], counts=[3]) == [11]


def test_looking_without_admitting_changes_nothing() -> None:
    d = directory()
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
def test_the_directory_agrees_with_a_dict_through_growth(calls: list) -> None:
    d, sightings, rows = directory(), {}, {}
    for pairs in calls:
        for pair in pairs:
            sightings[pair] = sightings.get(pair, 0) + 1
            if sightings[pair] >= THRESHOLDS[pair[0]] and pair not in rows:
                rows[pair] = FIRST_ROW + len(rows)
        assert see(d, pairs) == [rows.get(pair, 0) for pair in pairs]
    assert d.num_entries == len(sightings)
    assert peek(d, list(sightings)) == [rows.get(pair, 0) for pair in sightings]


def test_thousands_of_ids_survive_growth() -> None:
    d = directory()
    ids = [(1, key * 2**32) for key in range(5000)]  # equal low halves, as sequential ids in the high bits have
    for start in range(0, 5000, 500):
        see(d, ids[start : start + 500])
    assert peek(d, ids) == list(range(FIRST_ROW, FIRST_ROW + 5000))
    assert len(d.entries) < 8 * 5000


def test_eviction_forgets_old_ids_and_their_rows_are_given_out_again_lowest_first() -> None:
    d = directory()
    see(d, [(1, 1), (1, 2), (1, 3), (1, 4)])
    last_seen = np.array([0, 5, 0, 5])
    d.evict(last_seen, np.array([0, 3, 3]))
    d.free(np.array([10, 12]))
    assert peek(d, [(1, 1), (1, 2), (1, 3), (1, 4)]) == [0, 11, 0, 13]
    assert see(d, [(1, 9), (1, 1), (1, 3)]) == [10, 12, 14]


def test_eviction_forgets_old_sightings_of_ids_not_yet_admitted() -> None:
    d = directory()
    see(d, [(2, 1), (2, 2)], counts=[2, 2], step=1)
    see(d, [(2, 2)], counts=[0], step=7)
    d.evict(np.empty(0, dtype=np.int64), np.array([0, 5, 5]))
    assert see(d, [(2, 1), (2, 2)]) == [0, 10]


def test_a_restored_directory_goes_on_as_the_saved_one() -> None:
    saved = directory()
    see(saved, [(1, k) for k in range(6)])
    see(saved, [(2, k) for k in (5, 3)], counts=[2, 1], step=4)
    saved.evict(np.array([9, 0, 9, 9, 0, 0]), np.array([0, 3, 3]))
    saved.free(np.array([11, 14, 15]))
    restored = directory()
    live = {
        "spaces": np.array([1, 1, 1], dtype=np.int32),
        "ids": np.array([0, 2, 3]),
        "rows": np.array([10, 12, 13]),
    }
    restored.restore(live, saved.pending())
    assert restored.num_entries == saved.num_entries == 5
    more = [(1, 50), (2, 5), (1, 51), (2, 3), (1, 52), (1, 2)]
    assert see(restored, more) == see(saved, more) == [11, 14, 15, 0, 16, 12]
    for name, column in saved.pending().items():
        np.testing.assert_array_equal(column, restored.pending()[name])
