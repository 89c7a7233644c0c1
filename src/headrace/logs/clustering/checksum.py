"""An order-independent checksum of rows that detects moved or changed values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.compiling import kernel
from headrace.logs.inspection.hashing import NULL_HASH, hash_column
from headrace.logs.keyed_random import derive

__all__ = ["RowSums"]

Hashes = npt.NDArray[np.uint64]


@dataclass
class RowSums:
    """Sums over rows: number of rows, checksum, and the sum of each label.

    Attributes:
        labels: Label columns to sum up.
        num_rows: Rows added.
        checksum: Sum of the rows' 64-bit hashes, modulo 2^64. A row's hash depends on every value and its column.
        label_sums: Sum of each numeric label.
    """

    labels: Sequence[str] = ()
    num_rows: int = 0
    checksum: int = 0
    label_sums: dict[str, float] = field(default_factory=dict)

    def add(self, rows: pa.RecordBatch) -> None:
        """Add rows, whose columns must always be in the same order."""
        totals = np.full(rows.num_rows, NULL_HASH)
        for column in rows.columns:
            _fold(totals, _hash(column))
        self.num_rows += rows.num_rows
        self.checksum = (self.checksum + int(totals.sum(dtype=np.uint64))) % 2**64
        for name in self.labels:
            column = rows.column(name)
            if pt.is_integer(column.type) or pt.is_floating(column.type) or pt.is_boolean(column.type):
                values = column.cast(pa.float64()).to_numpy(zero_copy_only=False)
                self.label_sums[name] = self.label_sums.get(name, 0.0) + float(np.nansum(values))

    def describe(self) -> str:
        """A one-line summary."""
        rates = [f"{name} rate {total / max(self.num_rows, 1):.6f}" for name, total in self.label_sums.items()]
        return ", ".join([f"{self.num_rows:,} rows", f"checksum {self.checksum:016x}", *rates])


def _hash(array: pa.Array) -> Hashes:
    """A hash of each value, of any type; nested types by their children."""
    hashes = hash_column(array)
    if hashes is not None:
        return hashes
    hashes = np.full(len(array), NULL_HASH)
    if pt.is_struct(array.type):
        for child in array.flatten():
            _fold(hashes, _hash(child))
    else:  # lists of nested values, maps, unions: rare, so hashed as text
        _fold(hashes, _hash(pa.array([repr(value) for value in array.to_pylist()], pa.string())))
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


@kernel()
def _fold(totals: Hashes, hashes: Hashes) -> None:
    """Mix a column into the row hashes; the order of columns matters."""
    for i in range(len(totals)):
        totals[i] = derive(totals[i] * np.uint64(0xD6E8FEB86659FD93), int(hashes[i]))
