"""Finds the unique keys of a batch in one fused pass over all features and tables.

Legend: N ids, F features, T tables, U unique keys.

Keys are grouped by table and, within a table, in the order of first occurrence (feature by feature, row by row), so
they depend on the batch alone. Each table has a small hash table that stays in cache. With several Numba threads
(`numba.get_num_threads`), tables are processed in parallel; workers of a pipeline have one thread.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.tables.index.direct import is_row
from headrace.embeddings.tables.index.hashed import hashed_row
from headrace.tensors import Keys
from headrace.tensors.jagged_ids import JaggedIds

__all__ = ["DIRECT", "EXACT", "HASHED", "TableLayout", "UniqueIds", "unique_keys"]

DIRECT, HASHED, EXACT = 0, 1, 2

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class TableLayout:
    """Tables and their features as arrays, for the fused pass.

    Attributes:
        kinds: int64 [T], kind of each table: DIRECT, HASHED or EXACT.
        sizes: int64 [T], number of rows of direct and hashed tables.
        salts: uint64 [T], salt of each hashed table.
        feature_starts: int64 [T + 1]; table t has the features `features[feature_starts[t]:feature_starts[t + 1]]`.
        features: int64 [F], feature numbers grouped by table.
    """

    kinds: Int64s
    sizes: Int64s
    salts: npt.NDArray[np.uint64]
    feature_starts: Int64s
    features: Int64s

    def only(self, numbers: Sequence[int]) -> TableLayout:
        """The layout of some of the features, which keep their numbers."""
        wanted = np.isin(self.features, numbers)
        before = np.concatenate([[0], np.cumsum(wanted)]).astype(np.int64)
        return TableLayout(self.kinds, self.sizes, self.salts, before[self.feature_starts], self.features[wanted])


@dataclass(frozen=True, eq=False)
class UniqueIds:
    """The result of `unique_keys`.

    Attributes:
        keys: The unique keys.
        inverse: int32 [N], key of each id that occurs in the batch; undefined for others.
        key_starts: int64 [T + 1], where each table's keys begin.
        bad_value: Position of an id that is out of range in a direct table, or -1.
        bad_table: Table of this id, if there is one.
    """

    keys: Keys
    inverse: Int32s
    key_starts: Int64s
    bad_value: int
    bad_table: int


class _Search(NamedTuple):
    """Arrays of the search. Table t writes its keys from `id_starts[t]`, and finds them by
    `slots[slot_starts[t]:slot_starts[t + 1]]`: where there is a slot for each row of the table, a row is its own slot,
    else slots are those of a hash table."""

    values: Int64s
    multiplicities: Int32s
    value_firsts: Int64s
    value_lasts: Int64s
    feature_starts: Int64s
    features: Int64s
    kinds: Int64s
    sizes: Int64s
    salts: npt.NDArray[np.uint64]
    id_starts: Int64s
    slot_starts: Int64s
    slots: Int32s
    ids: Int64s
    counts: Int32s
    inverse: Int32s
    num_keys: Int64s
    bad_values: Int64s


@kernel()
def _search_table(t: int, search: _Search) -> None:
    """Find the unique keys of one table."""
    search.bad_values[t] = -1
    first, first_slot = search.id_starts[t], search.slot_starts[t]
    slots, ids, counts = search.slots, search.ids, search.counts
    has_multiplicities = len(search.multiplicities) > 0
    mask = search.slot_starts[t + 1] - first_slot - 1
    slots[first_slot : search.slot_starts[t + 1]] = -1
    kind, size, salt = search.kinds[t], search.sizes[t], search.salts[t]
    is_addressed = kind != EXACT and mask + 1 >= size
    n = 0
    for j in range(search.feature_starts[t], search.feature_starts[t + 1]):
        f = search.features[j]
        for i in range(search.value_firsts[f], search.value_lasts[f]):
            count = search.multiplicities[i] if has_multiplicities else np.int32(1)
            if count == 0:  # in a gap between lists, or in a list that does not occur
                search.inverse[i] = -1
                continue
            key = search.values[i]
            if kind == HASHED:
                key = hashed_row(key, salt, size)
            elif kind == DIRECT and not is_row(key, size):
                search.bad_values[t] = i if search.bad_values[t] < 0 else search.bad_values[t]
                key = np.int64(0)
            slot = key if is_addressed else np.int64(mix64(np.uint64(key))) & mask
            u = np.int64(slots[first_slot + slot])
            while u >= 0 and not is_addressed and ids[first + u] != key:
                slot = (slot + 1) & mask
                u = np.int64(slots[first_slot + slot])
            if u < 0:
                u = np.int64(n)
                n += 1
                slots[first_slot + slot] = u
                ids[first + u] = key
                counts[first + u] = 0
            counts[first + u] += count
            search.inverse[i] = u
    search.num_keys[t] = n


@kernel()
def _close_gap(t: int, search: _Search, key_starts: Int64s, tables: Int32s, ids: Int64s, counts: Int32s) -> None:
    """Move a table's keys next to those of the previous table, and shift `inverse` to count over all tables."""
    start, source = key_starts[t], search.id_starts[t]
    for u in range(key_starts[t + 1] - start):
        tables[start + u] = t
        ids[start + u] = search.ids[source + u]
        counts[start + u] = search.counts[source + u]
    for j in range(search.feature_starts[t], search.feature_starts[t + 1]):
        f = search.features[j]
        for i in range(search.value_firsts[f], search.value_lasts[f]):
            if search.inverse[i] >= 0:
                search.inverse[i] += start


@kernel()
def _search_in_turn(search: _Search) -> None:
    for t in range(len(search.kinds)):
        _search_table(t, search)


@kernel(parallel=True)
def _search_in_parallel(search: _Search) -> None:
    for t in numba.prange(len(search.kinds)):
        _search_table(t, search)


@kernel()
def _close_in_turn(search: _Search, key_starts: Int64s, tables: Int32s, ids: Int64s, counts: Int32s) -> None:
    for t in range(len(search.kinds)):
        _close_gap(t, search, key_starts, tables, ids, counts)


@kernel(parallel=True)
def _close_in_parallel(search: _Search, key_starts: Int64s, tables: Int32s, ids: Int64s, counts: Int32s) -> None:
    for t in numba.prange(len(search.kinds)):
        _close_gap(t, search, key_starts, tables, ids, counts)


def unique_keys(layout: TableLayout, ids: JaggedIds) -> UniqueIds:
    """Find the unique keys of some ids."""
    num_values = (ids.value_lasts - ids.value_firsts)[layout.features]
    id_starts = _starts(np.concatenate([[0], np.cumsum(num_values)])[layout.feature_starts])
    slot_starts = _starts(np.concatenate([[0], np.cumsum(_num_slots(layout, np.diff(id_starts)))]))
    total, num_tables = int(id_starts[-1]), len(layout.kinds)
    search = _Search(
        ids.values,
        ids.multiplicities,
        ids.value_firsts,
        ids.value_lasts,
        layout.feature_starts,
        layout.features,
        layout.kinds,
        layout.sizes,
        layout.salts,
        id_starts,
        slot_starts,
        slots=np.empty(int(slot_starts[-1]), dtype=np.int32),
        ids=np.empty(total, dtype=np.int64),
        counts=np.empty(total, dtype=np.int32),
        inverse=np.empty(len(ids.values), dtype=np.int32),
        num_keys=np.empty(num_tables, dtype=np.int64),
        bad_values=np.empty(num_tables, dtype=np.int64),
    )
    alone = numba.get_num_threads() == 1
    (_search_in_turn if alone else _search_in_parallel)(search)
    key_starts = _starts(np.concatenate([[0], np.cumsum(search.num_keys)]))
    num_unique = int(key_starts[-1])
    keys = Keys(np.empty(num_unique, np.int32), np.empty(num_unique, np.int64), np.empty(num_unique, np.int32))
    (_close_in_turn if alone else _close_in_parallel)(search, key_starts, keys.tables, keys.ids, keys.counts)
    bad = int(np.argmax(search.bad_values >= 0))
    return UniqueIds(keys, search.inverse, key_starts, int(search.bad_values[bad]), bad)


def _num_slots(layout: TableLayout, num_values: Int64s) -> Int64s:
    """Number of slots per table: one per row, if a hash table for the ids would not be smaller.

    A hash table is at most half full, and its size is a power of two, so that a mask finds the slot.
    """
    hashed = _starts(2 ** np.ceil(np.log2(2 * np.maximum(num_values, 1))))
    has_rows = (layout.kinds != EXACT) & (layout.sizes <= hashed)
    return np.where(has_rows, np.maximum(layout.sizes, 1), hashed)


def _starts(values: npt.NDArray[Any]) -> Int64s:
    return np.ascontiguousarray(values, dtype=np.int64)
