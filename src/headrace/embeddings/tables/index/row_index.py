"""`RowIndex`: from a key to its row and back, for all tables of a group.

row 0                   zeros, never updated; what an id without a row reads
rows 1 .. num_fixed     direct and hashed tables, one after the other
rows from num_fixed     collisionless tables, given to ids as they are admitted
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
    insert,
    remove,
    resolve,
)
from headrace.embeddings.tables.lifecycle.policies import AdmissionPolicy, IdHistory

__all__ = ["RowIndex"]

MAX_LOAD = 0.5  # linear probing: about 1.5 probes for a hit, 2.5 for a miss
MIN_LOAD = MAX_LOAD / 8  # below it the hash table is rebuilt smaller

Entries = npt.NDArray[np.int64]
Records = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class RowIndex:
    """For the same calls it gives the same rows. Not thread-safe, except that several threads may `find` at once.

    Args:
        sizes: int64 [T], rows of direct and hashed tables, whose ids are rows within the table; -1 for collisionless
            ones.
        admission: When ids of collisionless tables get a row.
        capacity: How many collisionless ids to make room for at first.

    Attributes:
        first_rows: int64 [T], where each direct or hashed table begins; -1 for collisionless ones.
        num_fixed: Row 0 and the rows of all direct and hashed tables.
        next_row: One more than the highest row that an id has or had.
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
        """Forget all ids."""
        self.entries, self._pending_seen = _empty_entries(capacity)
        self.num_entries = 0
        self.next_row = self.num_fixed
        self._free_rows: Int64s = np.empty(0, dtype=np.int64)  # descending: the lowest free row is given out first
        self._tables: Int32s = np.full(capacity, -1, dtype=np.int32)  # of each row from `num_fixed` on, -1 if free
        self._ids: Int64s = np.zeros(capacity, dtype=np.int64)

    @property
    def num_rows(self) -> int:
        """Rows in use: all of direct and hashed tables, and those that collisionless ids have."""
        return self.next_row - 1 - len(self._free_rows)

    @property
    def num_free(self) -> int:
        """Rows below `next_row` that no id has."""
        return len(self._free_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of its arrays."""
        arrays = self.entries, self._pending_seen, self._tables, self._ids, self._free_rows
        return sum(array.nbytes for array in arrays)

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for a collisionless id without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        resolve(keys.tables, keys.ids, self.first_rows, self.entries, rows)
        return rows

    def find(self, keys: Keys, records: Records) -> Int64s:
        """Rows int64 [U] as an update of the same keys, with their counts, will find or make them; makes none.

        Args:
            keys: Unique keys.
            records: Metadata of all rows.

        Returns:
            A row; `NEW` for one that was never updated, or that the update makes; 0 for an id that stays without.
        """
        rows = np.empty(len(keys), dtype=np.int64)
        self._find(keys.tables, keys.ids, keys.counts, self.first_rows, records, self._numbers, self.entries, rows)
        return rows

    def admit(self, keys: Keys, rows: Int64s, *, version: int) -> None:
        """Count sightings of keys for which `resolve` found no row, and give rows to those admitted, in their order.

        Args:
            keys: Unique keys.
            rows: int64 [U] from `resolve`; filled in for admitted keys.
            version: Of the table group, remembered as when a pending id was last seen.
        """
        num_missing = len(rows) - int(np.count_nonzero(rows))
        if num_missing == 0:
            return
        if self.num_entries + num_missing > MAX_LOAD * len(self.entries):
            self._rebuild(2 * (self.num_entries + num_missing))
        places = np.empty(num_missing, dtype=np.int64)
        num_new, num_admitted, num_free, self.next_row = self._admit(
            self.entries,
            self._pending_seen,
            keys.tables,
            keys.ids,
            keys.counts,
            self._numbers,
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
        """Forget ids [K] of collisionless tables, with and without a row; their rows are free."""
        rows = self.resolve(keys)
        rows = rows[rows != PENDING]
        self.num_entries -= remove(self.entries, self._pending_seen, keys.tables, keys.ids)
        self._tables[rows - self.num_fixed] = -1
        self._ids[rows - self.num_fixed] = 0
        self._free_rows = np.sort(np.concatenate([self._free_rows, rows]))[::-1].copy()
        if self.num_entries < MIN_LOAD * len(self.entries):
            self._rebuild(2 * self.num_entries)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows; in direct and hashed tables the id is the row within the table. (-1, 0) if free."""
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
        """Ids that have been seen but have no row yet, in the order of (table, id)."""
        where = np.flatnonzero((self.entries[:, TABLE] != EMPTY) & (self.entries[:, ROW] == PENDING))
        found = self.entries[where]
        order = np.lexsort((found[:, ID], found[:, TABLE]))
        return IdHistory(
            found[order, TABLE].astype(np.int32),
            found[order, ID],
            self._pending_seen[where][order],
            found[order, SIGHTINGS],
        )

    def restore(self, rows: Int64s, tables: Int32s, ids: Int64s, pending: IdHistory) -> None:
        """Become the index in which ids [L] have rows, and `pending` is what `pending()` gave.

        Rows below the highest that nobody has are free.
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
        """Give ids new rows, in the order of the old ones, so that none is free.

        Returns:
            int64, the old rows from `num_fixed` on that are in use, ascending; number i of them becomes row
            `num_fixed` + i.
        """
        held = np.flatnonzero(self._tables[: self.next_row - self.num_fixed] >= 0)
        self._tables, self._ids = self._tables[held], self._ids[held]
        self.next_row = self.num_fixed + len(held)
        self._free_rows = np.empty(0, dtype=np.int64)
        nothing = np.zeros(len(held), dtype=np.int64)
        self._insert(self._tables, self._ids, np.arange(self.num_fixed, self.next_row), nothing, nothing)
        return held + self.num_fixed

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
    """A hash table with room for `num_ids` at the highest load: a power of two slots, so that a mask finds the slot."""
    num_slots = 1 << max(6, int(np.ceil(num_ids / MAX_LOAD)) - 1).bit_length()
    entries: Entries = np.empty((num_slots, 4), dtype=np.int64)
    entries[:, TABLE] = EMPTY
    return entries, np.empty(num_slots, dtype=np.int64)
