"""`RowIndex`: maps keys to rows and rows to keys, for all tables of a group.

row 0       zeros, never updated; read by ids without a row
rows 1 .. num_fixed  direct and hashed tables, in order
rows from num_fixed  collisionless tables, allocated when ids are admitted
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.index.probing import (
    EMPTY,
    ID,
    PENDING,
    ROW,
    SIGHTINGS,
    TABLE,
    admit_kernel,
    copy_entries,
    find_kernel,
    find_waiting,
    insert,
    remove,
    resolve,
)
from headrace.embeddings.tables.lifecycle.policies import AdmissionPolicy, IdHistory

__all__ = ["RowIndex"]

MAX_LOAD = 0.5  # linear probing: about 1.5 probes for a hit, 2.5 for a miss
MIN_LOAD = MAX_LOAD / 8  # below this load the hash table is rebuilt smaller

Entries = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class RowIndex:
    """Index of rows by key. Deterministic. Not thread-safe, except that several threads may `find` at once.

    Args:
        sizes: int64 [T], number of rows of direct and hashed tables, whose ids are rows within the table; -1 for
            collisionless tables.
        admission: Admission policy of collisionless tables.
        capacity: Initial capacity for ids of collisionless tables.

    Attributes:
        first_rows: int64 [T], first row of each direct or hashed table; -1 for collisionless tables.
        num_fixed: Number of rows of all direct and hashed tables, plus row 0.
        next_row: The highest row ever allocated, plus one.
    """

    def __init__(self, sizes: Int64s, admission: AdmissionPolicy, *, capacity: int) -> None:
        is_fixed = sizes >= 0
        ends = 1 + np.cumsum(np.where(is_fixed, sizes, 0))
        self.first_rows: Int64s = np.where(is_fixed, ends - sizes, -1)
        self.num_fixed = int(ends[-1]) if len(ends) else 1
        self._numbers = admission.numbers
        self._find = find_kernel(admission.is_admitted)
        self._admit = admit_kernel(admission.is_admitted)
        self.clear(capacity)

    def clear(self, capacity: int) -> None:
        """Remove all ids."""
        self.entries, self._pending_seen = _empty_entries(capacity)
        self.num_entries = 0
        self.next_row = self.num_fixed
        self._free_rows: Int64s = np.empty(0, dtype=np.int64)  # descending: the lowest free row is given out first
        self._tables: Int32s = np.full(capacity, -1, dtype=np.int32)  # of each row from `num_fixed` on, -1 if free
        self._ids: Int64s = np.zeros(capacity, dtype=np.int64)

    @property
    def num_rows(self) -> int:
        """Rows in use: all rows of direct and hashed tables, and allocated rows of collisionless tables."""
        return self.next_row - 1 - len(self._free_rows)

    @property
    def num_free(self) -> int:
        """Number of free rows below `next_row`."""
        return len(self._free_rows)

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in bytes."""
        arrays = self.entries, self._pending_seen, self._tables, self._ids, self._free_rows
        return sum(array.nbytes for array in arrays)

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for a collisionless id without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        resolve(keys.tables, keys.ids, self.first_rows, self.entries, rows)
        return rows

    def find(self, keys: Keys, records: Records) -> Int64s:
        """Predict the rows int64 [U] after an update of the same keys with their counts, without changing the index.

        Args:
            keys: Unique keys.
            records: Metadata of all rows.

        Returns:
            Row numbers; `NEW` for rows that were never updated or that the update allocates; 0 for ids without a row.
        """
        rows = np.empty(len(keys), dtype=np.int64)
        self._find(keys.tables, keys.ids, keys.counts, self.first_rows, records, self._numbers, self.entries, rows)
        return rows

    def admit(self, keys: Keys, rows: Int64s, *, version: int) -> None:
        """Count keys for which `resolve` found no row, and allocate rows for admitted keys, in order.

        Args:
            keys: Unique keys.
            rows: int64 [U] from `resolve`; filled in for admitted keys.
            version: Version of the table group, stored as the last time that a pending id was seen.
        """
        self._admit_by(self._numbers, keys, rows, version)

    def allocate(self, keys: Keys) -> Int64s:
        """Rows int64 [K] of keys of collisionless tables; keys without a row get one, however often they were seen."""
        rows = self.resolve(keys)
        self._admit_by(np.zeros_like(self._numbers), keys, rows, 0)
        return rows

    def set_waiting(self, keys: Keys, sightings: Int64s, last_seen: Int64s) -> None:
        """Set how often keys [K] without a row were seen, and when last."""
        self._make_room(len(keys))
        rows = np.full(len(keys), PENDING, dtype=np.int64)
        self.num_entries += insert(self.entries, self._pending_seen, keys.tables, keys.ids, rows, sightings, last_seen)

    def waiting(self, keys: Keys) -> tuple[Int64s, Int64s]:
        """How often keys [K] were seen that wait for a row, and when last: two int64 [K], zeros for other keys."""
        sightings, seen = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.int64)
        find_waiting(keys.tables, keys.ids, self.entries, self._pending_seen, sightings, seen)
        return sightings, seen

    def _admit_by(self, numbers: Int64s, keys: Keys, rows: Int64s, version: int) -> None:
        num_missing = len(rows) - int(np.count_nonzero(rows))
        if num_missing == 0:
            return
        self._make_room(num_missing)
        places = np.empty(num_missing, dtype=np.int64)
        num_new, num_admitted, num_free, self.next_row = self._admit(
            self.entries,
            self._pending_seen,
            keys.tables,
            keys.ids,
            keys.counts,
            numbers,
            version,
            self._free_rows,
            len(self._free_rows),
            self.next_row,
            rows,
            places,
        )
        self._free_rows = self._free_rows[:num_free]
        self.num_entries += num_new
        admitted = places[:num_admitted]
        self._own(rows[admitted], keys.tables[admitted], keys.ids[admitted])

    def remove(self, keys: Keys) -> None:
        """Remove ids [K] of collisionless tables, with and without a row, and free their rows."""
        rows = self.resolve(keys)
        rows = rows[rows != PENDING]
        self.num_entries -= remove(self.entries, self._pending_seen, keys.tables, keys.ids)
        self._tables[rows - self.num_fixed] = -1
        self._ids[rows - self.num_fixed] = 0
        self._free_rows = np.sort(np.concatenate([self._free_rows, rows]))[::-1].copy()
        if self.num_entries < MIN_LOAD * len(self.entries):
            self._rebuild(2 * self.num_entries)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows, (-1, 0) if free; in direct and hashed tables the id is the row within the table."""
        tables, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        is_fixed = rows < self.num_fixed
        fixed_tables = np.flatnonzero(self.first_rows >= 0)
        found = fixed_tables[np.searchsorted(self.first_rows[fixed_tables], rows[is_fixed], side="right") - 1]
        tables[is_fixed] = found
        ids[is_fixed] = rows[is_fixed] - self.first_rows[found]
        tables[~is_fixed] = self._tables[rows[~is_fixed] - self.num_fixed]
        ids[~is_fixed] = self._ids[rows[~is_fixed] - self.num_fixed]
        return tables, ids

    def pending(self) -> IdHistory:
        """Ids that were seen but not admitted yet, ordered by (table, id)."""
        where = np.flatnonzero((self.entries[:, TABLE] != EMPTY) & (self.entries[:, ROW] == PENDING))
        found = self.entries[where]
        order = np.lexsort((found[:, ID], found[:, TABLE]))
        return IdHistory(
            found[order, TABLE].astype(np.int32),
            found[order, ID],
            self._pending_seen[where][order],
            found[order, SIGHTINGS],
        )

    def keys(self) -> Keys:
        """All keys of collisionless tables, with and without a row, in no particular order."""
        found = self.entries[self.entries[:, TABLE] != EMPTY]
        return Keys(found[:, TABLE].astype(np.int32), found[:, ID].copy(), np.zeros(len(found), dtype=np.int32))

    def restore(self, rows: Int64s, tables: Int32s, ids: Int64s, pending: IdHistory) -> None:
        """Restore an index from the rows of ids [L] and the result of `pending()`.

        Unused rows below the highest one are free.
        """
        num_entries = len(rows) + len(pending.ids)
        self.clear(2 * num_entries)
        nothing = np.zeros(max(len(rows), len(pending.ids)), dtype=np.int64)
        self._insert(tables, ids, rows, nothing, nothing)
        self._insert(pending.tables, pending.ids, nothing, pending.sightings, pending.last_seen)
        self.num_entries = num_entries
        self.next_row = int(rows.max()) + 1 if len(rows) else self.num_fixed
        self._own(rows, tables, ids)
        free = np.flatnonzero(self._tables[: self.next_row - self.num_fixed] < 0)
        self._free_rows = np.ascontiguousarray(free[::-1]) + self.num_fixed

    def compact(self) -> Int64s:
        """Renumber the rows of collisionless tables in order, so that none is free.

        Returns:
            int64, the old rows in use from `num_fixed` on, ascending; the i-th one becomes row `num_fixed` + i.
        """
        held = np.flatnonzero(self._tables[: self.next_row - self.num_fixed] >= 0)
        self._tables, self._ids = self._tables[held], self._ids[held]
        self.next_row = self.num_fixed + len(held)
        self._free_rows = np.empty(0, dtype=np.int64)
        nothing = np.zeros(len(held), dtype=np.int64)
        self._insert(self._tables, self._ids, np.arange(self.num_fixed, self.next_row), nothing, nothing)
        return held + self.num_fixed

    def _make_room(self, num_new: int) -> None:
        """Ensure that the hash table has room for some more entries."""
        if self.num_entries + num_new > MAX_LOAD * len(self.entries):
            self._rebuild(2 * (self.num_entries + num_new))

    def _insert(self, tables: Int32s, ids: Int64s, rows: Int64s, sightings: Int64s, seen: Int64s) -> None:
        insert(self.entries, self._pending_seen, tables, ids, rows, sightings, seen)

    def _own(self, rows: Int64s, tables: Int32s, ids: Int64s) -> None:
        needed = self.next_row - self.num_fixed
        if needed > len(self._ids):
            room = max(needed, 2 * len(self._ids)) - len(self._ids)
            self._tables = np.concatenate([self._tables, np.full(room, -1, dtype=np.int32)])
            self._ids = np.concatenate([self._ids, np.zeros(room, dtype=np.int64)])
        self._tables[rows - self.num_fixed] = tables
        self._ids[rows - self.num_fixed] = ids

    def _rebuild(self, capacity: int) -> None:
        entries, seen = _empty_entries(capacity)
        copy_entries(self.entries, self._pending_seen, entries, seen)
        self.entries, self._pending_seen = entries, seen


def _empty_entries(num_ids: int) -> tuple[Entries, Int64s]:
    """An empty hash table for `num_ids` ids at the maximum load; its size is a power of two, so that a mask finds
    slots."""
    num_slots = 1 << max(6, int(np.ceil(num_ids / MAX_LOAD)) - 1).bit_length()
    entries: Entries = np.empty((num_slots, 4), dtype=np.int64)
    entries[:, TABLE] = EMPTY
    return entries, np.empty(num_slots, dtype=np.int64)
