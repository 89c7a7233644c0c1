"""`KeyEntries`: a hash table of keys in a few bytes each, which gives every key an entry number while it is in use.

An entry is 32 bytes, and its slot in the hash table 4 bytes, at a load of at most 0.7. Entry numbers begin at 1 and are
reused. Probing is linear; a removal shifts later slots back, so probe lengths do not grow over time.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.storage.host import aligned_zeros

__all__ = ["ENTRY", "FIRST_ENTRIES", "NEVER", "Entries", "KeyEntries"]

NEVER = np.int32(2**31 - 1)
"""Next use of a key that no announced batch uses."""

ENTRY = np.dtype(
    [
        ("id", np.int64),
        ("last_place", np.int64),
        ("table", np.int32),
        ("row", np.int32),
        ("next_use", np.int32),
        ("last_use", np.int32),
    ],
    align=True,
)
"""A key; the row where it is resident, or 0; the next batch that uses it; when it was last used; and its newest
position among the keys of all announced batches, or -1."""

MAX_LOAD = 0.7
GROWTH = 1.25
FIRST_ENTRIES = 1 << 12
AHEAD = 8  # keys, as in `ops.prefetch`: slots are prefetched twice as far ahead as the records that they name

Entries = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class KeyEntries:
    """Entries of keys. Not thread-safe.

    Args:
        expected: Number of keys up to which entries double and slots quadruple when there is no room; beyond it,
            entries grow by a quarter, and slots double.

    Attributes:
        records: `ENTRY` [capacity]; the columns after the key are for the caller.
    """

    def __init__(self, expected: int = 0) -> None:
        self._expected = expected
        self._expected_slots = 1 << max(0, int(expected / MAX_LOAD).bit_length() - 1)
        self.records: Entries = aligned_zeros((FIRST_ENTRIES,), ENTRY)
        _clear(self.records[:1])
        self._slots: Int32s = np.zeros(2 * FIRST_ENTRIES, dtype=np.int32)
        self._free: Int32s = np.empty(0, dtype=np.int32)
        self._next = 1

    @property
    def num_entries(self) -> int:
        """Number of keys."""
        return self._next - 1 - len(self._free)

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.records.nbytes + self._slots.nbytes + self._free.nbytes

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of `records`, as a view."""
        return self.records[name]

    def add(self, keys: Keys) -> Int32s:
        """Entries int32 [U] of unique keys; keys that have none get one."""
        self._reserve(len(keys))
        entries = np.empty(len(keys), dtype=np.int32)
        num_free, self._next = _add(
            self._slots, self.records, keys.tables, keys.ids, self._free, len(self._free), self._next, entries
        )
        self._free = self._free[:num_free]
        return entries

    def find(self, keys: Keys) -> Int32s:
        """Entries int32 [U] of keys; 0 for those that have none."""
        entries = np.empty(len(keys), dtype=np.int32)
        _find(self._slots, self.records, keys.tables, keys.ids, entries)
        return entries

    def remove(self, entries: Int32s) -> None:
        """Remove keys by their entries [E]."""
        _remove(self._slots, self.records, entries)
        self._free = np.concatenate([self._free, entries])

    def resident(self) -> Int32s:
        """Entries int32 [R] of the keys with a row, ascending."""
        found = np.empty(self._next, dtype=np.int32)
        return found[: _resident(self.records[: self._next], found)].copy()

    def keys_of(self, entries: Int32s) -> Keys:
        """Keys of entries [E], with zero counts."""
        tables, ids = np.empty(len(entries), dtype=np.int32), np.empty(len(entries), dtype=np.int64)
        _keys_of(self.records, entries, tables, ids)
        return Keys(tables, ids, np.zeros(len(entries), dtype=np.int32))

    def _reserve(self, num_new: int) -> None:
        """Ensure room for some more keys."""
        needed = self._next + max(0, num_new - len(self._free))
        if needed > len(self.records):
            size = len(self.records)
            num_entries = max(needed, min(2 * size, max(self._expected, int(GROWTH * size))))
            grown: Entries = aligned_zeros((num_entries,), ENTRY)
            grown[: self._next] = self.records[: self._next]
            self.records = grown
        num_slots = len(self._slots)
        while self.num_entries + num_new > MAX_LOAD * num_slots:
            num_slots *= 2
        if num_slots > len(self._slots):
            num_slots = max(num_slots, min(4 * len(self._slots), self._expected_slots))
            slots = np.zeros(num_slots, dtype=np.int32)
            _move_slots(self._slots, slots, self.records)
            self._slots = slots


@kernel()
def _clear(records: Entries) -> None:
    """Reset all but the keys."""
    for record in records:
        record.row, record.next_use, record.last_use, record.last_place = 0, NEVER, -1, -1


@kernel(inline=True)
def _home(table: int, key: int, num_slots: int) -> int:
    """The first slot to probe for a key; the number of slots is a power of two."""
    return np.int64(mix64(mix64(np.uint64(key)) + np.uint64(table))) & (num_slots - 1)  # type: ignore[return-value]


@kernel(inline=True)
def _probe(slots: Int32s, records: Entries, table: int, key: int) -> int:
    """The slot of a key, or the empty slot for it."""
    slot = _home(table, key, len(slots))
    while slots[slot] != 0:
        record = records[slots[slot]]
        if record.id == key and record.table == table:
            break
        slot = (slot + 1) & (len(slots) - 1)
    return slot


@kernel(inline=True)
def _prefetch_key(slots: Int32s, records: Entries, tables: Int32s, ids: Int64s, u: int) -> None:
    """Prefetch what the keys after number `u` need."""
    slots_at, records_at = slots.ctypes.data, records.ctypes.data
    later, soon = u + 2 * AHEAD, u + AHEAD
    if later < len(ids):
        prefetch(slots_at + 4 * _home(tables[later], ids[later], len(slots)))
    if 0 <= soon < len(ids):
        prefetch(records_at + 32 * slots[_home(tables[soon], ids[soon], len(slots))])


@kernel()
def _keys_of(records: Entries, entries: Int32s, tables: Int32s, ids: Int64s) -> None:
    for e in range(len(entries)):
        record = records[entries[e]]
        tables[e], ids[e] = record.table, record.id


@kernel()
def _resident(records: Entries, found: Int32s) -> int:
    num_found = 0
    for entry in range(len(records)):
        found[num_found] = entry
        num_found += records[entry].row != 0
    return num_found


@kernel()
def _add(
    slots: Int32s,
    records: Entries,
    tables: Int32s,
    ids: Int64s,
    free: Int32s,
    num_free: int,
    next_entry: int,
    entries: Int32s,
) -> tuple[int, int]:
    for u in range(-2 * AHEAD, len(ids)):
        _prefetch_key(slots, records, tables, ids, u)
        if u < 0:
            continue
        slot = _probe(slots, records, tables[u], ids[u])
        if slots[slot] == 0:
            if num_free > 0:
                num_free -= 1
                entry = free[num_free]
            else:
                entry = next_entry
                next_entry += 1
            slots[slot] = entry
            records[entry].id, records[entry].table = ids[u], tables[u]
            _clear(records[entry : entry + 1])
        entries[u] = slots[slot]
    return num_free, next_entry


@kernel()
def _find(slots: Int32s, records: Entries, tables: Int32s, ids: Int64s, entries: Int32s) -> None:
    for u in range(-2 * AHEAD, len(ids)):
        _prefetch_key(slots, records, tables, ids, u)
        if u >= 0:
            entries[u] = slots[_probe(slots, records, tables[u], ids[u])]


@kernel()
def _remove(slots: Int32s, records: Entries, entries: Int32s) -> None:
    """Remove entries [E] (Knuth, The Art of Computer Programming 3, 6.4, R), and reset their records."""
    mask = len(slots) - 1
    for i in range(len(entries)):
        record = records[entries[i]]
        hole = _probe(slots, records, record.table, record.id)
        slot = (hole + 1) & mask
        while slots[slot] != 0:
            home = _home(records[slots[slot]].table, records[slots[slot]].id, len(slots))
            if (slot - home) & mask >= (slot - hole) & mask:  # its home is not after the hole
                slots[hole] = slots[slot]
                hole = slot
            slot = (slot + 1) & mask
        slots[hole] = 0
        _clear(records[entries[i] : entries[i] + 1])


@kernel()
def _move_slots(old: Int32s, new: Int32s, records: Entries) -> None:
    """Insert all entries of a table into an empty one."""
    records_at, mask = records.ctypes.data, len(new) - 1
    for slot in range(len(old)):
        if slot + 4 * AHEAD < len(old):  # of which some are empty
            prefetch(records_at + 32 * old[slot + 4 * AHEAD])
        entry = old[slot]
        if entry != 0:
            home = _home(records[entry].table, records[entry].id, len(new))
            while new[home] != 0:  # no key is there twice
                home = (home + 1) & mask
            new[home] = entry
