"""Open addressing hash table from (table, id) to rows: compiled loops over the entries of a `RowIndex`.

An entry is four int64 in half a cache line, so that a probe costs one cache miss:

    ID         the id
    TABLE   its table, EMPTY if the slot is free
    ROW        its row, or PENDING (0, the group's zero row) until the id is admitted
    SIGHTINGS  how often a pending id has been seen

Probing is linear. Removing an entry shifts later entries back, so there are no tombstones, and probe lengths do not
grow over time.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel, kernel_of_rule
from headrace.embeddings.ops.hashing import mix64
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.storage.protocol import NEW

__all__ = ["EMPTY", "ID", "PENDING", "ROW", "SIGHTINGS", "TABLE", "admit_kernel", "find_kernel"]

ID, TABLE, ROW, SIGHTINGS = 0, 1, 2, 3
EMPTY = -1
ENTRY_BYTES = 32
PENDING = 0
AHEAD = 8  # keys; as in `ops.prefetch`
CHUNK = 512  # keys per task of a thread

Entries = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def _home(entries: Entries, table: int, key: int) -> int:
    """The first slot to probe for (table, id)."""
    return np.int64(mix64(mix64(np.uint64(key)) + np.uint64(table))) & (len(entries) - 1)  # type: ignore[return-value]


@kernel()
def probe(entries: Entries, table: int, key: int) -> int:
    """The slot of (table, id), or the empty slot for it."""
    slot = _home(entries, table, key)
    while entries[slot, TABLE] != EMPTY and not (entries[slot, ID] == key and entries[slot, TABLE] == table):
        slot = (slot + 1) & (len(entries) - 1)
    return slot


@kernel()
def _copy_entry(source: Entries, slot: int, target: Entries, place: int) -> None:
    """Copy a slot; an assignment of rows would take seconds to compile."""
    for column in range(ENTRY_BYTES // 8):
        target[place, column] = source[slot, column]


@kernel(parallel=True)
def resolve(tables: Int32s, ids: Int64s, first_rows: Int64s, entries: Entries, rows: Int64s) -> None:
    """Find the rows of keys [U]; PENDING for keys without a row."""
    for u in numba.prange(len(ids)):
        table = tables[u]
        if first_rows[table] >= 0:
            rows[u] = first_rows[table] + ids[u]
        else:
            slot = probe(entries, table, ids[u])
            rows[u] = entries[slot, ROW] if entries[slot, TABLE] != EMPTY else PENDING


@cache
def find_kernel(is_admitted: Callable[..., bool]) -> Callable[..., None]:
    """Compile the loop of `RowIndex.find` for an admission rule."""

    def find(
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        first_rows: Int64s,
        records: Records,
        numbers: Int64s,
        entries: Entries,
        rows: Int64s,
    ) -> None:
        records_at, entries_at = records.ctypes.data, entries.ctypes.data
        for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
            for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids))):
                if u + AHEAD < len(ids):
                    table, key = tables[u + AHEAD], ids[u + AHEAD]
                    if first_rows[table] >= 0:
                        prefetch(records_at + (first_rows[table] + key) * records.itemsize)
                    else:
                        prefetch(entries_at + _home(entries, table, key) * ENTRY_BYTES)
                table = tables[u]
                if first_rows[table] >= 0:
                    row = first_rows[table] + ids[u]
                    rows[u] = row if records[row].version != 0 else NEW
                    continue
                slot = probe(entries, table, ids[u])
                is_known = entries[slot, TABLE] != EMPTY
                row = entries[slot, ROW] if is_known else PENDING
                sightings = entries[slot, SIGHTINGS] if is_known else 0
                if row == PENDING and is_admitted(sightings + counts[u], table, ids[u], numbers):
                    row = NEW
                rows[u] = row

    return kernel_of_rule(find, is_admitted, parallel=True)


@cache
def admit_kernel(is_admitted: Callable[..., bool]) -> Callable[..., tuple[int, int, int, int]]:
    """Compile the loop of `RowIndex.admit` for an admission rule: (new entries, admitted ids, free rows, next row)."""

    def admit(
        entries: Entries,
        pending_seen: Int64s,
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        numbers: Int64s,
        version: int,
        free_rows: Int64s,
        num_free: int,
        next_row: int,
        rows: Int64s,
        admitted: Int64s,
    ) -> tuple[int, int, int, int]:
        num_new, num_admitted = 0, 0
        for u in range(len(ids)):
            if rows[u] != PENDING:
                continue
            slot = probe(entries, tables[u], ids[u])
            if entries[slot, TABLE] == EMPTY:
                entries[slot, ID], entries[slot, TABLE] = ids[u], tables[u]
                entries[slot, ROW], entries[slot, SIGHTINGS] = PENDING, 0
                num_new += 1
            entries[slot, SIGHTINGS] += counts[u]
            pending_seen[slot] = version
            if is_admitted(entries[slot, SIGHTINGS], tables[u], ids[u], numbers):
                if num_free > 0:
                    num_free -= 1
                    row = free_rows[num_free]
                else:
                    row = next_row
                    next_row += 1
                entries[slot, ROW] = row
                rows[u] = row
                admitted[num_admitted] = u
                num_admitted += 1
        return num_new, num_admitted, num_free, next_row

    return kernel_of_rule(admit, is_admitted)


@kernel()
def copy_entries(old: Entries, old_seen: Int64s, new: Entries, new_seen: Int64s) -> None:
    """Copy all entries into an empty hash table of another size."""
    for slot in range(len(old)):
        if old[slot, TABLE] != EMPTY:
            target = probe(new, old[slot, TABLE], old[slot, ID])
            _copy_entry(old, slot, new, target)
            new_seen[target] = old_seen[slot]


@kernel()
def insert(
    entries: Entries, pending_seen: Int64s, tables: Int32s, ids: Int64s, rows: Int64s, sightings: Int64s, seen: Int64s
) -> int:
    """Insert or overwrite the entries of keys [K]; returns the number of new ones."""
    num_new = 0
    for i in range(len(ids)):
        slot = probe(entries, tables[i], ids[i])
        num_new += entries[slot, TABLE] == EMPTY
        entries[slot, ID], entries[slot, TABLE] = ids[i], tables[i]
        entries[slot, ROW], entries[slot, SIGHTINGS] = rows[i], sightings[i]
        pending_seen[slot] = seen[i]
    return num_new


@kernel(parallel=True)
def find_waiting(
    tables: Int32s, ids: Int64s, entries: Entries, pending_seen: Int64s, sightings: Int64s, seen: Int64s
) -> None:
    """Find the counts [U] of keys that wait for a row, and when they were last seen; zeros for other keys."""
    for u in numba.prange(len(ids)):
        slot = probe(entries, tables[u], ids[u])
        is_waiting = entries[slot, TABLE] != EMPTY and entries[slot, ROW] == PENDING
        sightings[u] = entries[slot, SIGHTINGS] if is_waiting else 0
        seen[u] = pending_seen[slot] if is_waiting else 0


@kernel()
def remove(entries: Entries, pending_seen: Int64s, tables: Int32s, ids: Int64s) -> int:
    """Remove the entries of keys [K] (Knuth, The Art of Computer Programming 3, 6.4, R); returns their number."""
    mask = len(entries) - 1
    num_removed = 0
    for i in range(len(ids)):
        hole = probe(entries, tables[i], ids[i])
        if entries[hole, TABLE] == EMPTY:
            continue
        num_removed += 1
        slot = (hole + 1) & mask
        while entries[slot, TABLE] != EMPTY:
            home = _home(entries, entries[slot, TABLE], entries[slot, ID])
            if (slot - home) & mask >= (slot - hole) & mask:  # its home is not after the hole
                _copy_entry(entries, slot, entries, hole)
                pending_seen[hole] = pending_seen[slot]
                hole = slot
            slot = (slot + 1) & mask
        entries[hole, TABLE] = EMPTY
    return num_removed
