"""Hash index of keys, to find the keys of one lookup among those of another, and to find duplicates."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64
from headrace.tensors import Keys

__all__ = ["empty_slots", "find_keys", "first_repeated_key", "key_slot", "keys_in"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def key_slot(slots: Int32s, tables: Int32s, ids: Int64s, table: int, key: int) -> int:
    """The slot of a key in an index of the keys `tables`, `ids`, by linear probing; a free slot if it is missing.

    `slots` holds positions of keys, -1 for free slots. Its size is a power of two, and at most half of it is used.
    """
    mask = len(slots) - 1
    slot = np.int64(mix64(np.uint64(key) ^ (np.uint64(table) << np.uint64(40)))) & mask
    place = slots[slot]
    while place >= 0 and (ids[place] != key or tables[place] != table):
        slot = (slot + 1) & mask
        place = slots[slot]
    return int(slot)


@kernel()
def empty_slots(num_keys: int) -> Int32s:
    """Empty slots for an index of `num_keys` keys."""
    num_slots = 16
    while num_slots < 2 * num_keys:
        num_slots *= 2
    return np.full(num_slots, -1, dtype=np.int32)


@kernel()
def _find(tables: Int32s, ids: Int64s, other_tables: Int32s, other_ids: Int64s, places: Int64s) -> None:
    slots = empty_slots(len(other_ids))
    for i in range(len(other_ids)):
        slots[key_slot(slots, other_tables, other_ids, other_tables[i], other_ids[i])] = i
    for u in range(len(ids)):
        places[u] = slots[key_slot(slots, other_tables, other_ids, tables[u], ids[u])]


@kernel()
def first_repeated_key(tables: Int32s, ids: Int64s) -> int:
    """Position of the first key that repeats an earlier one, or -1."""
    slots = empty_slots(len(ids))
    for u in range(len(ids)):
        slot = key_slot(slots, tables, ids, tables[u], ids[u])
        if slots[slot] >= 0:
            return u
        slots[slot] = u
    return -1


def find_keys(keys: Keys, others: Keys) -> Int64s:
    """Position of each key among the others, int64 [U], -1 if missing. Both sets have unique keys."""
    places = np.empty(len(keys), dtype=np.int64)
    _find(keys.tables, keys.ids, others.tables, others.ids, places)
    return places


def keys_in(keys: Keys, others: Keys) -> npt.NDArray[np.bool_]:
    """Whether each key is among the others, bool [U]. Both sets have unique keys."""
    return find_keys(keys, others) >= 0
