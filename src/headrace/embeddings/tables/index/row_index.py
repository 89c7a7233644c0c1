"""`RowIndex`: maps keys to rows and rows to keys, for all tables of a group.

row 0       zeros, never updated; read by ids without a row
rows 1 .. num_fixed  direct and hashed tables, in order
rows from num_fixed  collisionless tables, allocated when ids are admitted
"""

from __future__ import annotations

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.index.admission import admit_kernel, find_kernel
from headrace.embeddings.tables.index.hash_table import (
    BLOCK,
    CHUNK,
    MAX_COUNT,
    HashTable,
    candidate,
    hash_of,
    is_waiting,
    place_of,
    prefetch_slot,
    value_from,
)
from headrace.embeddings.tables.index.key_index import PIECE, KeyIndex
from headrace.embeddings.tables.lifecycle.policies import AdmissionPolicy, IdHistory
from headrace.errors import ConfigError

__all__ = ["RowIndex"]

MAX_TABLES = 2**16
"""The table of an id that waits for a row has 16 bits."""

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

    Raises:
        ConfigError: There are too many tables.

    Attributes:
        first_rows: int64 [T], first row of each direct or hashed table; -1 for collisionless tables.
        num_fixed: Number of rows of all direct and hashed tables, plus row 0.
    """

    def __init__(self, sizes: Int64s, admission: AdmissionPolicy, *, capacity: int) -> None:
        if len(sizes) > MAX_TABLES:
            raise ConfigError(f"embeddings: given {len(sizes)} tables of one dimension, expected at most {MAX_TABLES}")
        is_fixed = sizes >= 0
        ends = 1 + np.cumsum(np.where(is_fixed, sizes, 0))
        self.first_rows: Int64s = np.where(is_fixed, ends - sizes, -1)
        self.num_fixed = int(ends[-1]) if len(ends) else 1
        self._numbers = admission.numbers
        self._find = find_kernel(admission.is_admitted)
        self._admit = admit_kernel(admission.is_admitted)
        self._keys = KeyIndex(self.num_fixed, capacity=capacity)
        self._last_seen = 0

    def clear(self, capacity: int) -> None:
        """Remove all ids."""
        self._keys.clear(capacity)
        self._last_seen = 0  # the newest version at which an id was seen, see `_seen`

    @property
    def next_row(self) -> int:
        """The highest row ever allocated, plus one."""
        return self._keys.next_row

    @property
    def num_rows(self) -> int:
        """Rows in use: all rows of direct and hashed tables, and allocated rows of collisionless tables."""
        return self.num_fixed - 1 + self._keys.num_rows

    @property
    def num_free(self) -> int:
        """Number of free rows below `next_row`."""
        return self._keys.num_free

    @property
    def num_entries(self) -> int:
        """Number of ids of collisionless tables, with and without a row."""
        return self._keys.num_rows + self._keys.num_waiting

    @property
    def num_bytes(self) -> int:
        """Size of the arrays in bytes."""
        return self._keys.num_bytes

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for a collisionless id without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        _resolve(self._keys.arrays.table, keys.tables, keys.ids, self.first_rows, self.num_fixed, rows)
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
        self._find(
            self._keys.arrays.table,
            keys.tables,
            keys.ids,
            keys.counts,
            self.first_rows,
            self.num_fixed,
            records,
            self._numbers,
            rows,
        )
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
        self._admit_by(np.zeros_like(self._numbers), keys, rows, self._last_seen)
        return rows

    def set_waiting(self, keys: Keys, sightings: Int64s, last_seen: Int64s) -> None:
        """Set how often keys [K] without a row were seen, and when last."""
        self._last_seen = max(self._last_seen, int(last_seen.max(initial=0)))
        known = self._places_of_waiting(keys)
        new = np.flatnonzero(known < 0)
        self._keys.add_waiting(keys.take(new))
        known[new] = self._keys.num_waiting - len(new) + np.arange(len(new))
        waiting = self._keys.arrays.waiting.array
        waiting["sightings"][known] = np.minimum(sightings, MAX_COUNT)
        waiting["seen"][known] = last_seen.astype(np.uint32)

    def waiting(self, keys: Keys) -> tuple[Int64s, Int64s]:
        """How often keys [K] were seen that wait for a row, and when last: two int64 [K], zeros for other keys."""
        sightings, seen = np.zeros(len(keys), dtype=np.int64), np.zeros(len(keys), dtype=np.int64)
        places = self._places_of_waiting(keys)
        found = np.flatnonzero(places >= 0)
        records = self._keys.arrays.waiting.array[places[found]]
        sightings[found], seen[found] = records["sightings"], self._seen(records)
        return sightings, seen

    def remove(self, keys: Keys) -> None:
        """Remove ids [K] of collisionless tables, with and without a row, and free their rows."""
        self._keys.remove(keys)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows, (-1, 0) if free; in direct and hashed tables the id is the row within the table."""
        tables, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        is_fixed = rows < self.num_fixed
        fixed_tables = np.flatnonzero(self.first_rows >= 0)
        found = fixed_tables[np.searchsorted(self.first_rows[fixed_tables], rows[is_fixed], side="right") - 1]
        tables[is_fixed] = found
        ids[is_fixed] = rows[is_fixed] - self.first_rows[found]
        tables[~is_fixed], ids[~is_fixed] = self._keys.owners(rows[~is_fixed])
        return tables, ids

    def pending(self) -> IdHistory:
        """Ids that were seen but not admitted yet, ordered by (table, id)."""
        found = self._keys.arrays.waiting.array[: self._keys.num_waiting]
        found = found[np.lexsort((found["id"], found["table"]))]
        return IdHistory(
            found["table"].astype(np.int32),
            np.ascontiguousarray(found["id"]),
            self._seen(found),
            found["sightings"].astype(np.int64),
        )

    def keys(self) -> Keys:
        """All keys of collisionless tables, with and without a row, in no particular order."""
        tables, ids = self._keys.owners(self._keys.rows())
        waiting = self._keys.arrays.waiting.array[: self._keys.num_waiting]
        every = np.concatenate([tables, waiting["table"].astype(np.int32)]), np.concatenate([ids, waiting["id"]])
        return Keys(*every, np.zeros(len(every[0]), dtype=np.int32))

    def restore(self, rows: Int64s, tables: Int32s, ids: Int64s, pending: IdHistory) -> None:
        """Restore an index from the rows of ids [L] and the result of `pending()`.

        Unused rows below the highest one are free.
        """
        self.clear(0)
        self._keys.insert(Keys(tables, ids, np.zeros(len(ids), dtype=np.int32)), rows)
        waiting = Keys(pending.tables, pending.ids, np.zeros(len(pending.ids), dtype=np.int32))
        self.set_waiting(waiting, pending.sightings, pending.last_seen)

    def compact(self) -> Int64s:
        """Renumber the rows of collisionless tables in order, so that none is free.

        Returns:
            int64, the old rows in use from `num_fixed` on, ascending; the i-th one becomes row `num_fixed` + i.
        """
        return self._keys.compact()

    def _admit_by(self, numbers: Int64s, keys: Keys, rows: Int64s, version: int) -> None:
        self._last_seen = max(self._last_seen, version)
        index, missing = self._keys, np.flatnonzero(rows == 0)
        for begin in range(0, len(missing), PIECE):
            piece = missing[begin : begin + PIECE]
            index.make_room(len(piece), num_rows=len(piece), num_waiting=len(piece))
            num_waiting, next_row = index.num_waiting, index.next_row
            index.num_waiting, index.next_free, index.next_row = self._admit(
                index.arrays.table,
                keys.tables,
                keys.ids,
                keys.counts,
                numbers,
                version,
                num_waiting,
                self.num_fixed,
                index.next_free,
                next_row,
                piece,
                rows,
            )
            index.num_rows += int(np.count_nonzero(rows[piece]))

    def _places_of_waiting(self, keys: Keys) -> Int64s:
        """Places in `waiting` of keys [K], -1 for others."""
        values = self._keys.values(keys)
        return np.where(values & 1, (values >> 1) - 1, -1)

    def _seen(self, records: Records) -> Int64s:
        """When waiting ids [W] were last seen, given 32 bits of it: at or before the newest version."""
        ago = (self._last_seen - records["seen"].astype(np.int64)) & 0xFFFFFFFF
        return np.asarray(self._last_seen - ago)


@kernel(parallel=True)
def _resolve(index: HashTable, tables: Int32s, ids: Int64s, fixed_rows: Int64s, first_row: int, rows: Int64s) -> None:
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        hashes = np.empty(BLOCK, dtype=np.uint64)
        for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
            end = min(begin + BLOCK, len(ids))
            for u in range(begin, end):
                if fixed_rows[tables[u]] < 0:
                    hashes[u - begin] = hash_of(index, tables[u], ids[u])
                    prefetch_slot(index, hashes[u - begin])
            for u in range(begin, end):
                if fixed_rows[tables[u]] < 0:
                    rows[u] = candidate(index, hashes[u - begin])
            for u in range(begin, end):
                if fixed_rows[tables[u]] >= 0:
                    rows[u] = fixed_rows[tables[u]] + ids[u]
                    continue
                value = value_from(index, hashes[u - begin], rows[u], tables[u], ids[u])
                rows[u] = 0 if value == 0 or is_waiting(value) else first_row + place_of(value)
