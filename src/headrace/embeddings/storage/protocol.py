"""The storage protocol for rows and their optimizer state. Each medium is one file in this folder.

A table group chooses its storage when it is created. Each call processes many rows in a loop of the implementation; no
function is called per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Protocol, Self, runtime_checkable

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import key_streams
from headrace.embeddings.optimizers.base import Rounding, SparseOptimizer
from headrace.embeddings.storage.device_rounding import rounded
from headrace.embeddings.storage.first_values import FirstValues
from headrace.embeddings.storage.row_formats import RowFormat, stored_bytes, stored_width

__all__ = [
    "NEW",
    "Columns",
    "Inheritance",
    "MakeStorage",
    "ReadAheadStorage",
    "RowLayout",
    "RowStorage",
    "StorageCounters",
]

NEW = -1
"""Row number of a row that is not written yet and reads the initial value of its key."""

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]
Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class RowLayout:
    """Layout of the rows of a table group, independent of the medium.

    Attributes:
        embedding_dim: Dimension D of rows.
        optimizer: Optimizer, with W state floats per row.
        first_values: Initial values of rows.
        seed: Seed of the rounding of 16-bit and 8-bit rows.
    """

    embedding_dim: int
    optimizer: SparseOptimizer
    first_values: FirstValues
    seed: int

    @property
    def row_format(self) -> RowFormat:
        """Storage dtype of rows."""
        return self.first_values.row_format

    @property
    def width(self) -> int:
        """Stored numbers of a row: D, or D + 1 of int8 rows."""
        return stored_width(self.row_format, self.embedding_dim)

    @property
    def row_bytes(self) -> int:
        """Bytes of a row with its optimizer state."""
        return stored_bytes(self.row_format, self.embedding_dim) + 4 * self.optimizer.state_width

    def rounding(self, step: int) -> Rounding:
        """Rounding of rows at a step."""
        return Rounding.of(self.row_format, self.seed, step, self.first_values.seeds)

    def stored(self, values: npt.NDArray[np.float32], keys: Keys, step: int) -> npt.NDArray[Any]:
        """Round values [U, D] of keys at a step to the storage dtype: the `weights` column of their rows."""
        rounding = self.rounding(step)
        streams = torch.from_numpy(key_streams(rounding.table_seeds, keys.tables, keys.ids))
        rows = rounded(torch.from_numpy(values), streams, self.row_format, int(rounding.seed))
        return rows.view(torch.uint16).numpy() if rows.dtype.itemsize == 2 else rows.numpy()

    def slot_columns(self, state: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """Convert state [R, W] to columns of a saved table group: `slot.NAME` [R, width]."""
        slots = self.optimizer.slots_of(state)
        return {f"slot.{name}": np.ascontiguousarray(slot) for name, slot in slots.items()}

    def state_of(self, columns: Columns, num_rows: int) -> npt.NDArray[np.float32]:
        """Inverse of `slot_columns`: float32 [R, W]."""
        slots = [np.asarray(columns[f"slot.{slot.name}"]) for slot in self.optimizer.slots]
        return np.concatenate([np.empty((num_rows, 0), dtype=np.float32), *slots], axis=1)


@dataclass(frozen=True, eq=False)
class Inheritance:
    """Rows that begin with a part of others.

    Attributes:
        rows: int64 [A], unique.
        keys: The keys [A] whose rows they are now.
        sources: int64 [A], the row from which each inherits; none of `rows`.
        shares: float32 [A], part of optimizer state that is a sum over updates (`Slot.is_sum`), beyond its initial
            value. Other state is copied.
        ratio: Part of the weights, added to the initial values of the keys; None for a copy without these.
        step: Number of the step, for rounding.
    """

    rows: Int64s
    keys: Keys
    sources: Int64s
    shares: Float32s
    ratio: float | None
    step: int


@dataclass(frozen=True)
class StorageCounters:
    """What a storage has done since it was created.

    Attributes:
        num_used_rows: Rows updated, once per step.
        num_read_rows: Rows read from the file.
        num_read_pages: Pages read for them and for compaction.
        num_read_bytes: Bytes of these pages.
        num_written_bytes: Bytes written.
        num_late_rows: Rows that were read only when their step needed them.
    """

    num_used_rows: int = 0
    num_read_rows: int = 0
    num_read_pages: int = 0
    num_read_bytes: int = 0
    num_written_bytes: int = 0
    num_late_rows: int = 0

    def __sub__(self, before: Self) -> Self:
        return type(self)(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(self)))

    def __add__(self, other: Self) -> Self:
        return type(self)(*(getattr(self, each.name) + getattr(other, each.name) for each in fields(self)))


class RowStorage(Protocol):
    """Rows 0 to `capacity` - 1 of a table group. Row 0 is the zero row: it reads zeros and is never written.

    The table group knows which id has which row, and which rows were written. Not thread-safe, except that several
    threads may `gather` at once.
    """

    @property
    def capacity(self) -> int:
        """Capacity in rows."""

    @property
    def num_bytes(self) -> int:
        """Bytes of rows and optimizer state."""

    @property
    def device(self) -> torch.device | None:
        """Device of gathered rows and of gradients; None for NumPy arrays in host memory."""

    def gather(self, rows: Int64s, keys: Keys) -> Any:
        """A copy of rows [U], float32 [U, D], which need not be unique; the initial value of the key for `NEW`."""

    def initialize(self, rows: Int64s, keys: Keys) -> None:
        """Write initial values and initial optimizer state of keys [U] into rows [U]."""

    def inherit(self, inheritance: Inheritance) -> None:
        """Write rows that begin with a part of others."""

    def update(
        self, rows: Int64s, keys: Keys, gradients: Any, *, step: int, num_rows: int = 1, lr_factor: float = 1.0
    ) -> None:
        """Run one optimizer step in place.

        Args:
            rows: Row numbers [U], unique except for 0; row 0 is not changed.
            keys: Unique keys.
            gradients: float32 [U, D], of the type returned by `gather`.
            step: Number of steps of the table group, including this one.
            num_rows: Rows of the batch, of all trainers.
            lr_factor: Factor of the learning rates in this step.
        """

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """Copies of the columns that a saved table group has of rows [R]: `weights`, and one `slot.NAME` per slot."""

    def set_columns(self, rows: Int64s, columns: Columns) -> None:
        """Inverse of `columns`."""

    def fastest_order(self, rows: Int64s) -> Int64s:
        """Rows [R] in the order in which `columns` copies all of them fastest; the same order if it is none."""

    def discard(self, rows: Int64s) -> None:
        """Forget rows [R] whose ids were evicted; they are initialized before they are used again."""

    def grow(self, capacity: int) -> None:
        """Increase the capacity and keep the existing rows."""

    def compact(self, rows: Int64s, capacity: int) -> None:
        """Keep rows [R], ascending, as rows 0 to R - 1, and free the memory of others."""

    def view(self) -> Tensor:
        """All rows [capacity, D] in their storage dtype, sharing memory until the group grows or shrinks; int8 rows
        [capacity, D + 1] with their exponents."""


@runtime_checkable
class ReadAheadStorage(RowStorage, Protocol):
    """A storage that reads rows of later batches before they are needed."""

    @property
    def counters(self) -> StorageCounters:
        """What the storage has done so far."""

    def announce(self, rows: Int64s, *, ahead: int) -> bool:
        """Start to bring the rows of a later batch to memory, as a hint that changes no result.

        Args:
            rows: Row numbers [U]; 0 is ignored.
            ahead: Number of updates before that of the batch.

        Returns:
            False, without any reading, if there is no room before earlier batches are trained.
        """


MakeStorage = Callable[[RowLayout, int], RowStorage]
"""Creates the storage of a table group from its layout and its initial capacity."""
