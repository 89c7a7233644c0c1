"""`RowMetadata`: a record per row of when it was last updated and how often its id was seen.

A row with version 0 was never updated. Its first update initializes it; until then it reads its initial value. So
creating a group of millions of rows costs nothing, and these rows are not saved, sent or searched.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.prefetch import prefetch_row

__all__ = ["RECORD", "RowMetadata"]

RECORD = np.dtype([("version", np.int64), ("frequency", np.int32)], align=True)
"""Per row: the version of the group that last updated it (0: never), and how often its id was seen in training."""

CHUNK = 512  # rows per task of a thread

Records = npt.NDArray[np.void]
Bools = npt.NDArray[np.bool_]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class RowMetadata:
    """Metadata of rows 0 to `capacity` - 1; the record of row 0 stays empty. Not thread-safe.

    Attributes:
        records: `RECORD` [capacity].
    """

    def __init__(self, capacity: int) -> None:
        self.records: Records = np.zeros(capacity, dtype=RECORD)

    @property
    def versions(self) -> Int64s:
        """int64 [capacity], a view."""
        return self.records["version"]

    def new_rows(self, rows: Int64s) -> Int64s:
        """Positions in `rows` [U] of rows that were never updated, except row 0."""
        is_new = np.empty(len(rows), dtype=np.bool_)
        _find_new(self.records, rows, is_new)
        return np.flatnonzero(is_new)

    def updated_rows(self) -> Int64s:
        """Rows that were updated at least once, ascending."""
        updated = np.empty(len(self.records), dtype=np.bool_)
        _find_updated(self.records, updated)
        return np.flatnonzero(updated)

    def mark_updated(self, rows: Int64s, counts: Int32s, *, version: int) -> Int64s:
        """Record an update of ids seen `counts` times; rows [U] are unique, except for 0, which means no row.

        Makes one pass over the records, because each is a cache miss in a large table.

        Returns:
            Positions in `rows` of rows that were never updated before.
        """
        was_new = np.empty(len(rows), dtype=np.bool_)
        _mark_updated(self.records, rows, counts, version, was_new)
        return np.flatnonzero(was_new)

    def clear(self, rows: Int64s) -> None:
        """Reset rows to never updated."""
        self.records[rows] = np.zeros(1, dtype=RECORD)

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """Copies of `version` int64 [R] and `frequency` int32 [R] of rows."""
        records = self.records[rows]
        return {name: np.ascontiguousarray(records[name]) for name in RECORD.names or ()}

    def set_columns(self, rows: Int64s, columns: dict[str, npt.NDArray[Any]]) -> None:
        """Inverse of `columns`."""
        for name in RECORD.names or ():
            self.records[name][rows] = columns[name]

    def grow(self, capacity: int) -> None:
        """Increase the capacity."""
        self.records = np.concatenate([self.records, np.zeros(capacity - len(self.records), dtype=RECORD)])

    def compact(self, rows: Int64s, capacity: int) -> None:
        """Keep rows [R], ascending, as rows 0 to R - 1."""
        self.records = self.records[rows]
        self.grow(capacity)


@kernel(parallel=True)
def _find_new(records: Records, rows: Int64s, out: Bools) -> None:
    records_at = records.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(records_at, records.itemsize, rows, u)
            out[u] = rows[u] != 0 and records[rows[u]].version == 0


@kernel(parallel=True)
def _find_updated(records: Records, out: Bools) -> None:
    for row in numba.prange(len(out)):
        out[row] = records[row].version != 0


@kernel(parallel=True)
def _mark_updated(records: Records, rows: Int64s, counts: Int32s, version: int, was_new: Bools) -> None:
    most = np.int64(2**31 - 1)
    records_at = records.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(records_at, records.itemsize, rows, u)
            was_new[u] = rows[u] != 0 and records[rows[u]].version == 0
            if rows[u] != 0:
                records[rows[u]].version = version
                records[rows[u]].frequency = min(np.int64(records[rows[u]].frequency) + counts[u], most)
