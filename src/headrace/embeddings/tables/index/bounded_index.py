"""`BoundedIndex`: maps keys to a fixed number of rows in memory that never grows, for tables under a budget.

    slots     int32 [M]   place of the row of a key plus one, 0 if the slot is free; open addressing, linear probing
    tables    int32 [K]   owner of each row, -1 if the row is free
    ids       int64 [K]

A row costs 12 bytes, and 4 bytes per slot at a load of 0.7: about 18 bytes, against 64 to 128 of a `RowIndex`, which
grows by doubling and also counts ids that have no row.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64, multiply_shift
from headrace.embeddings.storage.protocol import NEW
from headrace.embeddings.tables.shared_rows import SharedRows, shared_row

__all__ = ["ROW_BYTES", "BoundedIndex", "num_bytes_of"]

LOAD = 0.7  # linear probing: about 2.2 probes for a hit, 6.1 for a miss, in one or two cache lines of int32
ROW_BYTES = 12 + 4 / LOAD
"""Bytes per row, without rounding."""

CHUNK = 512  # keys per task of a thread

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]


class BoundedIndex:
    """Index of a fixed number of rows by key. Deterministic. Several threads may `resolve` at once.

    Args:
        num_rows: Number of rows K.
        first_row: Number of the first row; place p is row `first_row + p`.

    Attributes:
        tables: int32 [K], table of the owner of each row; -1 if the row is free.
        ids: int64 [K], id of the owner.
    """

    def __init__(self, num_rows: int, first_row: int) -> None:
        self.first_row = first_row
        self.tables: Int32s = np.full(num_rows, -1, dtype=np.int32)
        self.ids: Int64s = np.zeros(num_rows, dtype=np.int64)
        self.slots: Int32s = np.zeros(_num_slots(num_rows), dtype=np.int32)
        self.num_free = num_rows
        self._next_free = 0  # no place below is free

    def clear(self) -> None:
        """Free all rows."""
        self.tables[:], self.ids[:], self.slots[:] = -1, 0, 0
        self.num_free, self._next_free = len(self.ids), 0

    @property
    def num_rows(self) -> int:
        """Number of rows in use."""
        return len(self.ids) - self.num_free

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.tables.nbytes + self.ids.nbytes + self.slots.nbytes

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for keys without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        _resolve(keys.tables, keys.ids, self.slots, self.tables, self.ids, self.first_row, rows)
        return rows

    def find(self, keys: Keys, shared: SharedRows, records: Records) -> tuple[Int64s, int]:
        """See `RowIndexOfFixedSize.find`, in one pass."""
        rows = np.empty(len(keys), dtype=np.int64)
        num_new = _find(
            keys.tables,
            keys.ids,
            self.slots,
            self.tables,
            self.ids,
            self.first_row,
            shared.first_rows,
            shared.sizes,
            shared.salts,
            records,
            rows,
        )
        return rows, num_new

    def allocate(self, keys: Keys) -> Int64s:
        """Give free rows to keys [U] that have none, lowest rows first, in the order of the keys.

        Returns:
            Rows int64 [U]; 0 for the last keys if there are not enough free rows.
        """
        rows = np.zeros(len(keys), dtype=np.int64)
        num_new = min(len(keys), self.num_free)
        self._next_free = _allocate(
            keys.tables, keys.ids, num_new, self.slots, self.tables, self.ids, self.first_row, self._next_free, rows
        )
        self.num_free -= num_new
        return rows

    def insert(self, keys: Keys, rows: Int64s) -> None:
        """Give some free rows [U] to keys [U] that have none."""
        _insert(keys.tables, keys.ids, rows - self.first_row, self.slots, self.tables, self.ids)
        self.num_free -= len(rows)

    def release(self, rows: Int64s) -> None:
        """Free some rows [U] in use, unique."""
        if len(rows):
            _release(rows - self.first_row, self.slots, self.tables, self.ids)
            self.num_free += len(rows)
            self._next_free = min(self._next_free, int(rows.min()) - self.first_row)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows [R]; (-1, 0) if free."""
        places = rows - self.first_row
        return self.tables[places], self.ids[places]

    def rows(self) -> Int64s:
        """The rows in use, ascending."""
        return np.flatnonzero(self.tables >= 0) + self.first_row


def num_bytes_of(num_rows: int) -> int:
    """Bytes of an index of `num_rows` rows."""
    return 12 * num_rows + 4 * _num_slots(num_rows)


def _num_slots(num_rows: int) -> int:
    return int(num_rows / LOAD) + 2  # one slot is always free, so that a search ends


@kernel()
def _home(num_slots: int, table: int, key: int) -> np.int64:
    """The first slot to probe for (table, id)."""
    return np.int64(multiply_shift(mix64(mix64(np.uint64(key)) + np.uint64(table)), np.uint64(num_slots)))


@kernel()
def _probe(slots: Int32s, row_tables: Int32s, row_ids: Int64s, table: int, key: int) -> np.int64:
    """The slot of (table, id), or the free slot for it."""
    slot = _home(len(slots), table, key)
    while slots[slot] != 0:
        place = slots[slot] - 1
        if row_ids[place] == key and row_tables[place] == table:
            break
        slot += 1
        if slot == len(slots):
            slot = np.int64(0)
    return slot


@kernel(parallel=True)
def _resolve(
    tables: Int32s, ids: Int64s, slots: Int32s, row_tables: Int32s, row_ids: Int64s, first_row: int, rows: Int64s
) -> None:
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids))):
            place = slots[_probe(slots, row_tables, row_ids, tables[u], ids[u])]
            rows[u] = first_row + place - 1 if place != 0 else 0


@kernel(parallel=True)
def _find(
    tables: Int32s,
    ids: Int64s,
    slots: Int32s,
    row_tables: Int32s,
    row_ids: Int64s,
    first_row: int,
    shared_firsts: Int64s,
    shared_sizes: Int64s,
    shared_salts: Uint64s,
    records: Records,
    rows: Int64s,
) -> int:
    num_new = 0
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        num_here = 0
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids))):
            place = slots[_probe(slots, row_tables, row_ids, tables[u], ids[u])]
            if place != 0:
                rows[u] = first_row + place - 1
            else:
                rows[u] = shared_row(tables[u], ids[u], shared_firsts, shared_sizes, shared_salts)
                if rows[u] != 0 and records[rows[u]].version == 0:
                    rows[u] = NEW
                    num_here += 1
        num_new += num_here
    return num_new


@kernel()
def _insert(tables: Int32s, ids: Int64s, places: Int64s, slots: Int32s, row_tables: Int32s, row_ids: Int64s) -> None:
    for u in range(len(ids)):
        slots[_probe(slots, row_tables, row_ids, tables[u], ids[u])] = places[u] + 1
        row_tables[places[u]], row_ids[places[u]] = tables[u], ids[u]


@kernel()
def _allocate(
    tables: Int32s,
    ids: Int64s,
    num_new: int,
    slots: Int32s,
    row_tables: Int32s,
    row_ids: Int64s,
    first_row: int,
    place: int,
    rows: Int64s,
) -> int:
    for u in range(num_new):
        while row_tables[place] >= 0:
            place += 1
        slots[_probe(slots, row_tables, row_ids, tables[u], ids[u])] = place + 1
        row_tables[place], row_ids[place] = tables[u], ids[u]
        rows[u] = first_row + place
    return place


@kernel()
def _release(places: Int64s, slots: Int32s, row_tables: Int32s, row_ids: Int64s) -> None:
    """Remove entries, and shift later ones back (Knuth, The Art of Computer Programming 3, 6.4, R)."""
    num_slots = len(slots)
    for i in range(len(places)):
        hole = _probe(slots, row_tables, row_ids, row_tables[places[i]], row_ids[places[i]])
        slot = hole + 1 if hole + 1 < num_slots else np.int64(0)
        while slots[slot] != 0:
            place = slots[slot] - 1
            home = _home(num_slots, row_tables[place], row_ids[place])
            from_home = slot - home if slot >= home else slot - home + num_slots
            from_hole = slot - hole if slot >= hole else slot - hole + num_slots
            if from_home >= from_hole:  # its home is not after the hole
                slots[hole] = slots[slot]
                hole = slot
            slot = slot + 1 if slot + 1 < num_slots else np.int64(0)
        slots[hole] = 0
    for i in range(len(places)):
        row_tables[places[i]], row_ids[places[i]] = -1, 0
