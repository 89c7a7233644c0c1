"""A cache returns what its source has at a version, whatever changes, and keeps what is wanted within its bytes."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings import Keys
from headrace.publishing.changed_ids import ChangedIds
from headrace.serving.rows.cached import CachedRows, RowCache

DIM = 3


class Store:
    """Rows by version; counts the keys that it is asked for."""

    def __init__(self) -> None:
        self.changed_at: dict[tuple[int, int], list[int]] = {}
        self.num_keys = 0

    def change(self, version: int, table: int, key: int) -> None:
        self.changed_at.setdefault((table, key), []).append(version)

    def read(self, version: int, table_group: str, keys: Keys) -> np.ndarray:
        self.num_keys += len(keys)
        since = [
            max([0, *(each for each in self.changed_at.get((table, key), []) if each <= version)])
            for table, key in zip(keys.tables.tolist(), keys.ids.tolist(), strict=True)
        ]
        columns = keys.tables, keys.ids, np.array(since, np.int64)
        return np.stack(columns, axis=1).astype(np.float32).reshape(len(keys), DIM)


def keys_of(*pairs: tuple[int, int]) -> Keys:
    pairs = tuple(dict.fromkeys(pairs))
    tables, ids = (np.array([pair[place] for pair in pairs], kind) for place, kind in ((0, np.int32), (1, np.int64)))
    return Keys(tables, ids, np.zeros(len(pairs), np.int32))


def changed(*pairs: tuple[int, int], whole: tuple[int, ...] = ()) -> ChangedIds:
    keys = keys_of(*pairs)
    return ChangedIds(keys.tables, keys.ids, np.array(whole, np.int32))


ASKED = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 30)), min_size=1, max_size=12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(ASKED, st.sampled_from(["read", "read", "change", "whole", "unknown"])), max_size=25))
def test_rows_are_those_of_the_source_at_the_version(steps: list[tuple[list[tuple[int, int]], str]]) -> None:
    store = Store()
    cache = CachedRows(store, 500, {"group": DIM})
    version = 1
    cache.advance(version, {"group": None})
    for pairs, what in steps:
        if what == "read":
            for asked in (version, max(version - 1, 1)):  # requests of the version before may still come
                keys = keys_of(*pairs)
                assert np.array_equal(cache.read(asked, "group", keys), store.read(asked, "group", keys))
            continue
        version += 1
        if what == "whole":
            for key in range(31):
                store.change(version, pairs[0][0], key)
            cache.advance(version, {"group": changed(whole=(pairs[0][0],))})
            continue
        for table, key in pairs:
            store.change(version, table, key)
        cache.advance(version, {"group": changed(*pairs) if what == "change" else None})


def test_a_new_version_costs_only_what_changed() -> None:
    store = Store()
    cache = CachedRows(store, 100_000, {"group": DIM})
    cache.advance(1, {"group": None})
    keys = keys_of(*((0, key) for key in range(200)))
    cache.read(1, "group", keys)
    store.change(2, 0, 7)
    cache.advance(2, {"group": changed((0, 7))})
    before = store.num_keys
    cache.read(2, "group", keys)
    assert store.num_keys - before == 1
    assert cache.hit_ratio == pytest.approx(199 / 400)


def test_what_is_wanted_often_stays_when_much_is_wanted_once() -> None:
    store = Store()
    cache = CachedRows(store, 60 * (13 + 4 * DIM), {"group": DIM})
    cache.advance(1, {"group": None})
    often = keys_of(*((0, key) for key in range(10)))
    for _ in range(5):
        cache.read(1, "group", often)
    for first in range(1000, 3000, 100):
        cache.read(1, "group", keys_of(*((0, key) for key in range(first, first + 100))))
        cache.read(1, "group", often)
    before = store.num_keys
    cache.read(1, "group", often)
    assert store.num_keys - before <= 2


def test_bytes_are_limited() -> None:
    for num_bytes in (1_000, 1_000_000):
        assert RowCache(num_bytes, 16).num_bytes <= num_bytes
