"""From the id lists of a lookup to unique keys: one fused pass over all features and spaces.

Legend: N ids, F features, S spaces, U unique keys.

Two rows, features `item` and `history` share the space `items`, `user` has its own::

                 row 0     row 1                    spaces = [items, items, items, users, users]
    item          [7]       [9]         keys        ids    = [    7,     9,     5,     1,     2]
    history     [9, 5]       []         ----->      counts = [    1,     2,     1,     1,     1]
    user          [1]       [2]                     inverse = [0, 1,   1, 2,   3, 4], one entry per id

Keys come grouped by space and, inside a space, in the order of first occurrence (feature by feature, row by row), so
they depend on the batch alone. Spaces are worked on in parallel, each with a small hash table that stays in cache.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.ops.jagged_ids import JaggedIds
from headrace.embeddings.tables.index.direct import is_row
from headrace.embeddings.tables.index.hashed import hashed_row

__all__ = ["DIRECT", "EXACT", "HASHED", "Keys", "SpaceLayout", "UniqueIds", "unique_keys"]

DIRECT, HASHED, EXACT = 0, 1, 2

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(eq=False)
class Keys:
    """Unique keys of one call to a store.

    Attributes:
        spaces: int32 [U], the number of each key's space, ascending.
        ids: int64 [U], different within a space. In a direct or hashed space this is the row within the space, in a
            collisionless space the id itself.
        counts: int32 [U], how often the key occurs in the batch; zeros where no update follows.
    """

    spaces: Int32s
    ids: Int64s
    counts: Int32s

    def __len__(self) -> int:
        return len(self.ids)

    def take(self, places: Int64s) -> Keys:
        """Some of them."""
        return Keys(self.spaces[places], self.ids[places], self.counts[places])

    def unseen(self) -> Keys:
        """The same keys, to be read without an update."""
        return Keys(self.spaces, self.ids, np.zeros(len(self.ids), dtype=np.int32))


@dataclass(frozen=True, eq=False)
class SpaceLayout:
    """What the fused pass needs to know about spaces and their features, as arrays.

    Attributes:
        kinds: int64 [S], DIRECT, HASHED or EXACT.
        sizes: int64 [S], rows of direct and hashed spaces.
        salts: uint64 [S], of hashed spaces.
        feature_starts: int64 [S + 1]; space s has the features `features[feature_starts[s]:feature_starts[s + 1]]`.
        features: int64 [F], feature numbers grouped by space.
    """

    kinds: Int64s
    sizes: Int64s
    salts: npt.NDArray[np.uint64]
    feature_starts: Int64s
    features: Int64s


@dataclass(frozen=True, eq=False)
class UniqueIds:
    """The result of `unique_keys`.

    Attributes:
        keys: The unique keys.
        inverse: int32 [N], the key of each id that a row of the batch has; undefined for others.
        key_starts: int64 [S + 1], where each space's keys begin.
        bad_value: Position of an id that is out of range in a direct space, or -1.
        bad_space: Its space, where there is one.
    """

    keys: Keys
    inverse: Int32s
    key_starts: Int64s
    bad_value: int
    bad_space: int


@kernel(parallel=True)
def _unique_per_space(
    values: Int64s,
    multiplicities: Int32s,
    value_firsts: Int64s,
    value_lasts: Int64s,
    feature_starts: Int64s,
    features: Int64s,
    kinds: Int64s,
    sizes: Int64s,
    salts: npt.NDArray[np.uint64],
    id_starts: Int64s,
    slot_starts: Int64s,
    slots: Int32s,
    ids: Int64s,
    counts: Int32s,
    inverse: Int32s,
    num_keys: Int64s,
    bad_values: Int64s,
) -> None:
    """Space s writes its keys from `id_starts[s]` on, and finds them by `slots[slot_starts[s]:slot_starts[s + 1]]`.

    Where there is a slot for each row of the space, a row is its own slot; else slots are those of a hash table.
    """
    has_multiplicities = len(multiplicities) > 0
    for s in numba.prange(len(kinds)):
        bad_values[s] = -1
        first, first_slot = id_starts[s], slot_starts[s]
        mask = slot_starts[s + 1] - first_slot - 1
        slots[first_slot : slot_starts[s + 1]] = -1
        kind, size, salt = kinds[s], sizes[s], salts[s]
        is_addressed = kind != EXACT and mask + 1 >= size
        n = 0
        for j in range(feature_starts[s], feature_starts[s + 1]):
            f = features[j]
            for i in range(value_firsts[f], value_lasts[f]):
                count = multiplicities[i] if has_multiplicities else np.int32(1)
                if count == 0:  # in a gap between lists, or in a list that no row has
                    inverse[i] = -1
                    continue
                key = values[i]
                if kind == HASHED:
                    key = hashed_row(key, salt, size)
                elif kind == DIRECT and not is_row(key, size):
                    bad_values[s] = i if bad_values[s] < 0 else bad_values[s]
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
                inverse[i] = u
        num_keys[s] = n


@kernel(parallel=True)
def _close_gaps(
    value_firsts: Int64s,
    value_lasts: Int64s,
    feature_starts: Int64s,
    features: Int64s,
    id_starts: Int64s,
    ids: Int64s,
    counts: Int32s,
    key_starts: Int64s,
    inverse: Int32s,
    all_spaces: Int32s,
    all_ids: Int64s,
    all_counts: Int32s,
) -> None:
    """Moves each space's keys next to the previous space's, and makes `inverse` count over all spaces."""
    for s in numba.prange(len(key_starts) - 1):
        start, source = key_starts[s], id_starts[s]
        for u in range(key_starts[s + 1] - start):
            all_spaces[start + u] = s
            all_ids[start + u] = ids[source + u]
            all_counts[start + u] = counts[source + u]
        for j in range(feature_starts[s], feature_starts[s + 1]):
            for i in range(value_firsts[features[j]], value_lasts[features[j]]):
                if inverse[i] >= 0:
                    inverse[i] += start


def unique_keys(layout: SpaceLayout, ids: JaggedIds) -> UniqueIds:
    """The unique keys of a lookup."""
    num_values = (ids.value_lasts - ids.value_firsts)[layout.features]
    id_starts = _starts(np.concatenate([[0], np.cumsum(num_values)])[layout.feature_starts])
    per_space = np.diff(id_starts)
    slot_starts = _starts(np.concatenate([[0], np.cumsum(_num_slots(layout, per_space))]))
    total, num_spaces = int(id_starts[-1]), len(layout.kinds)
    found, counts = np.empty(total, dtype=np.int64), np.empty(total, dtype=np.int32)
    slots = np.empty(int(slot_starts[-1]), dtype=np.int32)
    inverse = np.empty(len(ids.values), dtype=np.int32)
    num_keys, bad_values = np.empty(num_spaces, dtype=np.int64), np.empty(num_spaces, dtype=np.int64)
    ranges = ids.value_firsts, ids.value_lasts, layout.feature_starts, layout.features
    _unique_per_space(
        ids.values,
        ids.multiplicities,
        *ranges,
        layout.kinds,
        layout.sizes,
        layout.salts,
        id_starts,
        slot_starts,
        slots,
        found,
        counts,
        inverse,
        num_keys,
        bad_values,
    )
    key_starts = _starts(np.concatenate([[0], np.cumsum(num_keys)]))
    num_unique = int(key_starts[-1])
    keys = Keys(np.empty(num_unique, np.int32), np.empty(num_unique, np.int64), np.empty(num_unique, np.int32))
    _close_gaps(*ranges, id_starts, found, counts, key_starts, inverse, keys.spaces, keys.ids, keys.counts)
    bad = int(np.argmax(bad_values >= 0))
    return UniqueIds(keys, inverse, key_starts, int(bad_values[bad]), bad)


def _num_slots(layout: SpaceLayout, num_values: Int64s) -> Int64s:
    """Of each space: one a row where that is no more than a hash table for so many ids takes.

    A hash table is at most half full, and a power of two, so that a mask finds the slot.
    """
    hashed = _starts(2 ** np.ceil(np.log2(2 * np.maximum(num_values, 1))))
    has_rows = (layout.kinds != EXACT) & (layout.sizes <= hashed)
    return np.where(has_rows, np.maximum(layout.sizes, 1), hashed)


def _starts(values: npt.NDArray[Any]) -> Int64s:
    return np.ascontiguousarray(values, dtype=np.int64)
