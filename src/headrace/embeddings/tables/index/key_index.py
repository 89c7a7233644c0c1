"""`KeyIndex`: maps keys to rows and rows to keys, in memory that grows a little at a time or is of fixed size.

Bytes per key, see `hash_table`:

| | with a row | waiting for one |
|---|---|---|
| record with the key | 12 | 18 |
| slot, of a table that grows | 9.1 | 9.1 |
| slot, of a table of fixed size | 5.7 | |

Arrays grow by a sixteenth without a copy, see `GrowingArray`.
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.growing_array import GrowingArray
from headrace.embeddings.storage.protocol import NEW
from headrace.embeddings.tables.index.hash_table import (
    BLOCK,
    CHUNK,
    OWNER,
    Arrays,
    HashTable,
    add_segment,
    drop_waiting,
    enter_all,
    erase,
    find_block,
    find_values,
    free_owner,
    hash_of,
    is_free,
    is_waiting,
    key_of,
    num_slots_of,
    place_of,
    prefetch_record,
    prefetch_run,
    prefetch_slot,
    probe,
    set_owner,
    value_of,
    write,
)
from headrace.embeddings.tables.shared_rows import SharedRows, shared_row
from headrace.errors import HeadraceError

__all__ = ["ROW_BYTES", "KeyIndex", "bytes_of_fixed_size"]

FIXED_LOAD = 0.7  # linear probing: about 2.2 probes for a hit, 6.1 for a miss, in one or two cache lines
MEAN_LOAD = 0.44
"""Of a table that grows, whose segments are at most twice as full: 4.7 probes for a hit there, and 35 for a miss, in
one to four cache lines; 1.4 and 2.1 at this load."""
SEGMENT_SLOTS = 4096
"""The number of keys of a segment at the highest load is 3604 with a standard deviation of 60, so none overflows.
Dividing one takes about 50 microseconds."""
MIN_SLOTS = 64
MIN_LOAD = MEAN_LOAD / 4
"""Below this load the slots are rebuilt."""
PIECE = 8192
"""Keys that are inserted at a time, because there has to be room for them as keys with and without a row."""

MAX_KEYS = 2**31 - 2
"""Places with and without a row; a slot has 32 bits."""

ROW_BYTES = OWNER.itemsize + 4 / FIXED_LOAD
"""Bytes per row of an index of fixed size, without rounding."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]


class KeyIndex:
    """Index of rows by key. Deterministic. Not thread-safe, except that several threads may look up keys at once.

    Free rows are given out lowest first.

    Args:
        first_row: Number of the first row.
        capacity: Keys for which there is room from the start.
        num_rows: Number of rows of an index of fixed size; None for one that grows.

    Attributes:
        first_row: Number of the first row.
        arrays: The hash table.
        num_waiting: Keys without a row.
        next_row: The highest row ever allocated, plus one.
    """

    def __init__(self, first_row: int, *, capacity: int = 0, num_rows: int | None = None) -> None:
        self.first_row = first_row
        self._fixed_rows = num_rows
        self.clear(capacity)

    def clear(self, capacity: int = 0) -> None:
        """Remove all keys."""
        if self._fixed_rows is None:
            self.arrays = Arrays.empty(*_shape_of(capacity), capacity, 0)
        else:
            self.arrays = Arrays.empty(1, num_slots_of(self._fixed_rows, FIXED_LOAD), self._fixed_rows, 0)
            self.arrays.owners.array["table"] = -1
        self.num_rows = self.num_waiting = 0
        self.next_row = self.first_row
        self.next_free = self.first_row  # no row below is free

    @property
    def num_free(self) -> int:
        """Free rows: below `next_row`, or of all rows if their number is fixed."""
        return (self.next_row - self.first_row if self._fixed_rows is None else self._fixed_rows) - self.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.arrays.num_bytes

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for keys without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        _resolve(self.arrays.table, keys.tables, keys.ids, self.first_row, rows)
        return rows

    def values(self, keys: Keys) -> Int64s:
        """What the slots [U] of keys have, see `hash_table.value_of`; 0 for keys that are not in the index."""
        values = np.empty(len(keys), dtype=np.int64)
        find_values(self.arrays.table, keys.tables, keys.ids, values)
        return values

    def find(self, keys: Keys, shared: SharedRows, records: Records) -> tuple[Int64s, int]:
        """See `RowIndexOfFixedSize.find`, in one pass."""
        rows = np.empty(len(keys), dtype=np.int64)
        num_new = _find(
            self.arrays.table,
            keys.tables,
            keys.ids,
            self.first_row,
            shared.first_rows,
            shared.sizes,
            shared.salts,
            records,
            rows,
        )
        return rows, num_new

    def allocate(self, keys: Keys) -> Int64s:
        """Give free rows to keys [U] that are not in the index, in the order of the keys.

        Returns:
            Rows int64 [U]; 0 for the last keys if there are not enough rows.
        """
        rows = np.zeros(len(keys), dtype=np.int64)
        num_new = len(keys) if self._fixed_rows is None else min(len(keys), self.num_free)
        self.make_room(num_new, num_rows=num_new)
        self.next_free, self.next_row = _allocate(
            self.arrays.table, keys.tables, keys.ids, num_new, self.first_row, self.next_free, self.next_row, rows
        )
        self.num_rows += num_new
        return rows

    def insert(self, keys: Keys, rows: Int64s) -> None:
        """Give some free rows [U] to keys [U] that are not in the index."""
        if not len(rows):
            return
        places = rows - self.first_row
        highest = int(rows.max()) + 1
        self.make_room(len(keys), num_rows=max(0, highest - self.next_row))
        owners = self.arrays.owners.array
        owners["table"][self.next_row - self.first_row : max(highest, self.next_row) - self.first_row] = -1
        owners["table"][places], owners["id"][places] = keys.tables, keys.ids
        _check(enter_all(self.arrays.table, places, False))
        self.num_rows += len(rows)
        self.next_row = max(self.next_row, highest)

    def replace(self, rows: Int64s, keys: Keys) -> tuple[Int32s, Int64s]:
        """Give rows [U] in use, unique, to keys [U] that are not in the index.

        Returns:
            The (table, id) that had each row; they are not in the index any more.
        """
        tables, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        _replace(self.arrays.table, rows, self.first_row, keys.tables, keys.ids, tables, ids)
        return tables, ids

    def release(self, rows: Int64s) -> None:
        """Free some rows [U] in use, unique."""
        if len(rows):
            _release(self.arrays.table, rows - self.first_row, self.arrays.owners.array)
            self.num_rows -= len(rows)
            self.next_free = min(self.next_free, int(rows.min()))

    def add_waiting(self, keys: Keys) -> None:
        """Add keys [U] that are not in the index as keys without a row, in order after the others."""
        self.make_room(len(keys), num_waiting=len(keys))
        places = self.num_waiting + np.arange(len(keys))
        waiting = self.arrays.waiting.array
        waiting["table"][places], waiting["id"][places] = keys.tables, keys.ids
        del waiting
        _check(enter_all(self.arrays.table, places, True))
        self.num_waiting += len(keys)

    def remove(self, keys: Keys) -> None:
        """Remove keys [K], with and without a row, and free their rows."""
        self.num_rows, self.num_waiting, self.next_free = _remove(
            self.arrays.table, keys.tables, keys.ids, self.num_rows, self.num_waiting, self.first_row, self.next_free
        )
        if self._fixed_rows is None and self.num_rows + self.num_waiting < MIN_LOAD * self.arrays.num_slots:
            self.rebuild()

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows [R]; (-1, 0) if free."""
        owners = self.arrays.owners.array[rows - self.first_row]
        return np.ascontiguousarray(owners["table"]), np.ascontiguousarray(owners["id"])

    def rows(self) -> Int64s:
        """The rows in use, ascending."""
        return np.flatnonzero(self.arrays.owners.array["table"][: self.next_row - self.first_row] >= 0) + self.first_row

    def compact(self) -> Int64s:
        """Renumber the rows in order, so that none is free.

        Returns:
            int64, the old rows in use, ascending; the i-th one becomes row `first_row` + i.
        """
        held = self.rows()
        owners = GrowingArray(len(held), OWNER)
        owners.array[:] = self.arrays.owners.array[held - self.first_row]
        self.arrays = self.arrays._replace(owners=owners)
        self.next_row = self.next_free = self.first_row + len(held)
        self.rebuild()
        return held

    def make_room(self, num_keys: int, *, num_rows: int = 0, num_waiting: int = 0) -> None:
        """Ensure that an index that grows has room for some more keys, rows and waiting keys.

        Raises:
            HeadraceError: That would be more rows or waiting keys than a slot can number.
        """
        if self._fixed_rows is not None:
            return
        if max(self.next_row - self.first_row + num_rows, self.num_waiting + num_waiting) > MAX_KEYS:
            raise HeadraceError(f"table group: given more ids of collisionless tables than {MAX_KEYS}, use more shards")
        old, (needed, segment_slots) = self.arrays.num_segments, _shape_of(self.num_rows + self.num_waiting + num_keys)
        if segment_slots > self.arrays.segment_slots:
            self.rebuild(num_keys)
            old = needed
        self.arrays.owners.reserve(self.next_row - self.first_row + num_rows)
        self.arrays.waiting.reserve(self.num_waiting + num_waiting)
        if needed <= old:
            return
        self.arrays.slots.reserve(needed * SEGMENT_SLOTS)
        self.arrays.place_bits.reserve(needed)
        scratch = np.empty(SEGMENT_SLOTS, dtype=np.int64)
        for num_segments in range(old + 1, needed + 1):
            self.arrays = self.arrays._replace(num_segments=num_segments)
            _check(add_segment(self.arrays.table, scratch))

    def rebuild(self, num_more: int = 0) -> None:
        """Enter all keys into slots of a suitable number, also for some more keys, and release other memory."""
        places = self.rows() - self.first_row
        shape = _shape_of(self.num_rows + self.num_waiting + num_more)
        owners, waiting = self.arrays.owners, self.arrays.waiting.array[: self.num_waiting]
        self.arrays = Arrays.empty(*shape, 0, len(waiting))._replace(owners=owners)
        self.arrays.waiting.array[:] = waiting
        _check(enter_all(self.arrays.table, places, False))
        _check(enter_all(self.arrays.table, np.arange(self.num_waiting), True))


def bytes_of_fixed_size(num_rows: int) -> int:
    """Bytes of an index of `num_rows` rows, beside the 4 of its segment."""
    return OWNER.itemsize * num_rows + 4 * num_slots_of(num_rows, FIXED_LOAD)


def _shape_of(num_keys: int) -> tuple[int, int]:
    """Segments for some keys, and slots of a segment; a single one may be small."""
    num_slots = int(np.ceil(num_keys / MEAN_LOAD))
    if num_slots <= SEGMENT_SLOTS:
        return 1, max(MIN_SLOTS, 1 << (num_slots - 1).bit_length())
    return -(-num_slots // SEGMENT_SLOTS), SEGMENT_SLOTS


def _check(had_room: bool) -> None:
    assert had_room, "a segment of the index is full, although keys are spread evenly"


@kernel(parallel=True)
def _resolve(index: HashTable, tables: Int32s, ids: Int64s, first_row: int, rows: Int64s) -> None:
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        hashes = np.empty(BLOCK, dtype=np.uint64)
        for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
            end = min(begin + BLOCK, len(ids))
            find_block(index, tables, ids, begin, end, hashes, rows)
            for u in range(begin, end):
                value = rows[u]
                rows[u] = 0 if value == 0 or is_waiting(value) else first_row + place_of(value)


@kernel(parallel=True)
def _find(
    index: HashTable,
    tables: Int32s,
    ids: Int64s,
    first_row: int,
    shared_firsts: Int64s,
    shared_sizes: Int64s,
    shared_salts: Uint64s,
    records: Records,
    rows: Int64s,
) -> int:
    num_new = 0
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        hashes = np.empty(BLOCK, dtype=np.uint64)
        num_here = 0
        for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
            end = min(begin + BLOCK, len(ids))
            find_block(index, tables, ids, begin, end, hashes, rows)
            for u in range(begin, end):
                if rows[u] != 0:
                    rows[u] = first_row + place_of(rows[u])
                else:
                    rows[u] = shared_row(tables[u], ids[u], shared_firsts, shared_sizes, shared_salts)
                    if rows[u] != 0 and records[rows[u]].version == 0:
                        rows[u] = NEW
                        num_here += 1
        num_new += num_here
    return num_new


@kernel()
def lowest_free(index: HashTable, first_row: int, next_free: int, next_row: int) -> int:
    """The lowest free row, at least `next_free`."""
    row = next_free
    while row < next_row and not is_free(index, row - first_row):
        row += 1
    return row


@kernel()
def _allocate(
    index: HashTable,
    tables: Int32s,
    ids: Int64s,
    num_new: int,
    first_row: int,
    next_free: int,
    next_row: int,
    rows: Int64s,
) -> tuple[int, int]:
    hashes = np.empty(BLOCK, dtype=np.uint64)
    for begin in range(0, num_new, BLOCK):
        end = min(begin + BLOCK, num_new)
        for u in range(begin, end):
            hashes[u - begin] = hash_of(index, tables[u], ids[u])
            prefetch_slot(index, hashes[u - begin])
        for u in range(begin, end):
            row = lowest_free(index, first_row, next_free, next_row)
            next_free, next_row = row + 1, max(next_row, row + 1)
            at, _ = probe(index, hashes[u - begin], tables[u], ids[u])
            write(index, at, hashes[u - begin], value_of(row - first_row, False))
            set_owner(index, row - first_row, tables[u], ids[u])
            rows[u] = row
    return next_free, next_row


@kernel()
def _replace(
    index: HashTable,
    rows: Int64s,
    first_row: int,
    tables: Int32s,
    ids: Int64s,
    old_tables: Int32s,
    old_ids: Int64s,
) -> None:
    hashes, old_hashes = np.empty(BLOCK, dtype=np.uint64), np.empty(BLOCK, dtype=np.uint64)
    for begin in range(0, len(rows), BLOCK):
        end = min(begin + BLOCK, len(rows))
        for i in range(begin, end):
            prefetch_record(index, value_of(rows[i] - first_row, False))
            hashes[i - begin] = hash_of(index, tables[i], ids[i])
            prefetch_slot(index, hashes[i - begin])
        for i in range(begin, end):
            old_tables[i], old_ids[i] = key_of(index, value_of(rows[i] - first_row, False))
            old_hashes[i - begin] = hash_of(index, old_tables[i], old_ids[i])
            prefetch_slot(index, old_hashes[i - begin])
        for i in range(begin, end):
            prefetch_run(index, old_hashes[i - begin])
        for i in range(begin, end):
            slot, _ = probe(index, old_hashes[i - begin], old_tables[i], old_ids[i])
            erase(index, slot, old_hashes[i - begin])
            set_owner(index, rows[i] - first_row, tables[i], ids[i])
            slot, _ = probe(index, hashes[i - begin], tables[i], ids[i])
            write(index, slot, hashes[i - begin], value_of(rows[i] - first_row, False))


@kernel()
def _release(index: HashTable, places: Int64s, owners: Records) -> None:
    for i in range(len(places)):
        table, key = owners[places[i]].table, owners[places[i]].id
        hashed = hash_of(index, table, key)
        slot, _ = probe(index, hashed, table, key)
        erase(index, slot, hashed)
        free_owner(index, places[i])


@kernel()
def _remove(
    index: HashTable, tables: Int32s, ids: Int64s, num_rows: int, num_waiting: int, first_row: int, next_free: int
) -> tuple[int, int, int]:
    for i in range(len(ids)):
        hashed = hash_of(index, tables[i], ids[i])
        slot, value = probe(index, hashed, tables[i], ids[i])
        if value == 0:
            continue
        erase(index, slot, hashed)
        place = place_of(value)
        if is_waiting(value):
            drop_waiting(index, place, num_waiting)
            num_waiting -= 1
        else:
            free_owner(index, place)
            num_rows -= 1
            next_free = min(next_free, first_row + place)
    return num_rows, num_waiting, next_free
