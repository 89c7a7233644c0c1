"""Compiled loops of `VersionedRows`: an index that readers search while one writer changes it.

A slot has the place of the newest state of a key, and the record there that of the state before::

    slots      ... | 7 | ...
    records    7: key, version 9 -> 4: key, version 5 -> 2: key, version 1
    weights    7: ...              4: ...              2: ...

A reader of version 6 goes from 7 to 4. Every record and its weights are complete before the slot names them, and are
not changed while a reader may get to them, so readers need no lock.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.atomics import load_acquire, store_release
from headrace.embeddings.ops.hashing import mix64, multiply_shift
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.storage.protocol import NEW

__all__ = [
    "DELETED",
    "FIRST_VALUES",
    "RECORD",
    "SHARED",
    "ZEROS",
    "enter",
    "locate",
    "release",
    "undo",
    "unmarked",
    "write",
]

RECORD = np.dtype(
    [("id", np.int64), ("table", np.int32), ("version", np.int32), ("earlier", np.int32), ("is_removed", np.int32)]
)
"""State of a key: 24 bytes. `earlier` is the place of the state before; 0 if there is none."""
DELETED = -1
"""In a slot: its key is gone. Searches go on after it."""
ZEROS, FIRST_VALUES, SHARED = 0, 1, 2
"""What ids of a table read that have no row."""

CHUNK, BLOCK = 512, 64

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Uint8s = npt.NDArray[np.uint8]
Records = npt.NDArray[np.void]
Bits = npt.NDArray[Any]


@kernel()
def first_slot(table: int, key: int, num_slots: int) -> int:
    """Where the search for a key begins; `num_slots` is a power of two."""
    salt = mix64(np.uint64(table) + np.uint64(0x8BB84B93962EACC9))
    return np.int64(mix64(np.uint64(key) ^ salt) & np.uint64(num_slots - 1))  # type: ignore[return-value]


@kernel()
def find_slot(slots: Int32s, records: Records, table: int, key: int) -> tuple[int, int]:
    """The slot of a key and the place of its newest state; 0, and a slot to enter it, if it has none."""
    at: Any = first_slot(table, key, len(slots))
    free: Any = np.int64(-1)
    slots_at = slots.ctypes.data
    while True:
        place = load_acquire(slots_at + 4 * at)
        if place == 0:
            return (at if free < 0 else free), np.int64(0)  # type: ignore[return-value]
        if place == DELETED:
            free = at if free < 0 else free
        elif records[place].id == key and records[place].table == table:
            return at, place
        at = (at + 1) & (len(slots) - 1)


@kernel()
def place_at(slots: Int32s, records: Records, table: int, key: int, version: int) -> int:
    """Place of the state of a key at a version; 0 if it has no row then."""
    _, head = find_slot(slots, records, table, key)
    place: Any = head
    while place != 0 and records[place].version > version:
        place = np.int64(records[place].earlier)
    return np.int64(0) if records[place].is_removed else place  # type: ignore[return-value]


@kernel(parallel=True)
def locate(
    slots: Int32s,
    records: Records,
    version: int,
    tables: Int32s,
    ids: Int64s,
    partitions: Int32s,
    missing: Int32s,
    shared_sizes: Int64s,
    salts: Uint64s,
    places: Int64s,
    row_tables: Int32s,
    row_ids: Int64s,
) -> None:
    """Find the rows of keys [U] at a version.

    Args:
        slots, records: The index.
        version: The version.
        tables, ids: The keys.
        partitions: Partition of each key.
        missing: For each table, what ids without a row read.
        shared_sizes, salts: For each table, the number of shared rows of a partition, and the salt of their hash.
        places: Filled with places; `NEW` for initial values, 0 for zeros.
        row_tables, row_ids: Filled with the keys of the rows, which differ for shared rows.
    """
    slots_at, records_at, num_tables = slots.ctypes.data, records.ctypes.data, len(missing) // 2
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
            end = min(begin + BLOCK, len(ids))
            for u in range(begin, end):
                places[u] = first_slot(tables[u], ids[u], len(slots))
                prefetch(slots_at + 4 * places[u])
            for u in range(begin, end):
                prefetch(records_at + max(load_acquire(slots_at + 4 * places[u]), np.int64(0)) * records.itemsize)
            for u in range(begin, end):
                table, key = tables[u], ids[u]
                row_tables[u], row_ids[u] = table, key
                place: Any = place_at(slots, records, table, key, version)
                if place == 0 and missing[table] == SHARED:
                    size = shared_sizes[table]
                    number = np.int64(multiply_shift(mix64(np.uint64(key) ^ salts[table]), np.uint64(size)))
                    row_tables[u], row_ids[u] = num_tables + table, partitions[u] * size + number
                    place = place_at(slots, records, row_tables[u], row_ids[u], version)
                if place == 0 and missing[table] != ZEROS:
                    place = np.int64(NEW)
                places[u] = place


@kernel()
def write(
    slots: Int32s,
    records: Records,
    weights: Bits,
    version: int,
    tables: Int32s,
    ids: Int64s,
    values: Bits,
    is_removed: bool,
    places: Int64s,
    marks: Uint8s,
    superseded: Int64s,
) -> tuple[int, int, int, int]:
    """Write states of keys [R] at a version; a key that already has the same one keeps it.

    Args:
        slots, records, weights: The index, and the bits of the rows.
        version: The version, later than all others.
        tables, ids: Unique keys.
        values: Bits of their rows; none if they are removed.
        is_removed: Whether they lose their rows.
        places: int64 [R], free places, of which the first are used.
        marks: Set to 1 at the places of these keys, if it is not empty.
        superseded: int64 [R], filled with places of earlier states.

    Returns:
        Numbers of places used, of slots used that were empty, and that were `DELETED`, and of earlier states.
    """
    used, entered, reentered, num_superseded = 0, 0, 0, 0
    slots_at = slots.ctypes.data
    for i in range(len(ids)):
        at, head = find_slot(slots, records, tables[i], ids[i])
        is_gone = head == 0 or records[head].is_removed != 0
        is_same = is_gone if is_removed else not is_gone
        if is_same and not is_removed:
            for d in range(values.shape[1]):
                if weights[head, d] != values[i, d]:
                    is_same = False
                    break
        if is_same:
            if len(marks):
                marks[head] = 1
            continue
        place = places[used]
        used += 1
        if not is_removed:
            for d in range(values.shape[1]):
                weights[place, d] = values[i, d]
        records[place].id, records[place].table, records[place].version = ids[i], tables[i], version
        records[place].earlier, records[place].is_removed = head, is_removed
        if head:
            superseded[num_superseded] = head
            num_superseded += 1
        elif slots[at] == 0:
            entered += 1
        else:
            reentered += 1
        store_release(slots_at + 4 * at, place)
        if len(marks):
            marks[place] = 1
    return used, entered, reentered, num_superseded


@kernel()
def unmarked(slots: Int32s, records: Records, marks: Uint8s) -> Int64s:
    """Places of the newest states of keys that have a row and no mark."""
    places, count = np.empty(len(slots), dtype=np.int64), 0
    for at in range(len(slots)):
        place = slots[at]
        if place > 0 and not records[place].is_removed and not marks[place]:
            places[count] = place
            count += 1
    return places[:count].copy()


@kernel()
def undo(slots: Int32s, records: Records, places: Int64s) -> None:
    """Make the states before those at some places [R] the newest ones again, the last place first."""
    for i in range(len(places) - 1, -1, -1):
        record = records[places[i]]
        at, _ = find_slot(slots, records, record.table, record.id)
        earlier: Any = np.int64(record.earlier)
        store_release(slots.ctypes.data + 4 * at, earlier if earlier else DELETED)


@kernel()
def release(slots: Int32s, records: Records, places: Int64s) -> int:
    """Take removed keys out of the index if these places [R] have their newest states.

    Returns:
        Their number; their places come first in `places` afterwards.
    """
    count = 0
    for i in range(len(places)):
        at, head = find_slot(slots, records, records[places[i]].table, records[places[i]].id)
        if head == places[i]:
            store_release(slots.ctypes.data + 4 * at, DELETED)
            places[count] = head
            count += 1
    return count


@kernel()
def enter(old: Int32s, records: Records, slots: Int32s) -> int:
    """Enter the keys of other slots into empty ones; returns their number."""
    count = 0
    for i in range(len(old)):
        if old[i] > 0:
            at, _ = find_slot(slots, records, records[old[i]].table, records[old[i]].id)
            slots[at] = old[i]
            count += 1
    return count
