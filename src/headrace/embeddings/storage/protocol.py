"""The storage protocol: where rows and their optimizer state are kept. A medium is one file beside this one.

A table group chooses its storage once, when it is made. Each call works on many rows, in loops of the implementation's
own: nothing here is called once per row.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.keys import Keys
from headrace.embeddings.optimizers.base import Rounding, SparseOptimizer
from headrace.embeddings.storage.first_values import FirstValues
from headrace.embeddings.storage.row_formats import RowFormat

__all__ = ["NEW", "Columns", "MakeStorage", "RowLayout", "RowStorage"]

NEW = -1
"""In place of a row's number: the row is not written yet, and reads as the first value of its key."""

Int64s = npt.NDArray[np.int64]
Columns = Mapping[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class RowLayout:
    """What the rows of one table group are, whatever the medium.

    Attributes:
        embedding_dim: Numbers D of a row.
        optimizer: Its state is W floats per row.
        first_values: What rows begin with.
        seed: Of the rounding of 16-bit rows.
    """

    embedding_dim: int
    optimizer: SparseOptimizer
    first_values: FirstValues
    seed: int

    @property
    def row_format(self) -> RowFormat:
        """Storage dtype of rows."""
        return self.first_values.row_format

    def rounding(self, step: int) -> Rounding:
        """How rows are stored at a step."""
        return Rounding.of(self.row_format, self.seed, step, self.first_values.seeds)

    def slot_columns(self, state: npt.NDArray[np.float32]) -> dict[str, npt.NDArray[np.float32]]:
        """State [R, W] as the columns of a saved table group: `slot.NAME` [R, width]."""
        slots = self.optimizer.slots_of(state)
        return {f"slot.{name}": np.ascontiguousarray(slot) for name, slot in slots.items()}

    def state_of(self, columns: Columns, num_rows: int) -> npt.NDArray[np.float32]:
        """The opposite of `slot_columns`, float32 [R, W]."""
        slots = [np.asarray(columns[f"slot.{slot.name}"]) for slot in self.optimizer.slots]
        return np.concatenate([np.empty((num_rows, 0), dtype=np.float32), *slots], axis=1)


class RowStorage(Protocol):
    """Rows 0 to `capacity` - 1 of a table group. Row 0 is the zero row: it reads zeros and is never written.

    Which id has which row, and whether a row was written yet, is for the table group to know. Not thread-safe, except
    that several threads may `gather` at once.
    """

    @property
    def capacity(self) -> int:
        """Rows there is room for."""

    @property
    def num_bytes(self) -> int:
        """Bytes of rows and optimizer state."""

    @property
    def device(self) -> torch.device | None:
        """Where gathered rows are, and gradients are taken; None for NumPy arrays in host memory."""

    def gather(self, rows: Int64s, keys: Keys) -> Any:
        """A copy of rows [U], float32 [U, D]; the first value of the key where a row is `NEW`."""

    def initialize(self, rows: Int64s, keys: Keys) -> None:
        """Write first values and fresh optimizer state of keys [U] into rows [U]."""

    def update(self, rows: Int64s, keys: Keys, gradients: Any, *, step: int) -> None:
        """One step of the optimizer, in place.

        Args:
            rows: [U], different from each other where they are not 0; row 0 is left alone.
            keys: Unique keys.
            gradients: float32 [U, D], as `gather` gives rows.
            step: Steps of the table group, this one included.
        """

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """What a saved table group holds of rows [R]: `weights` and one `slot.NAME` per slot; copies."""

    def set_columns(self, rows: Int64s, columns: Columns) -> None:
        """The opposite of `columns`."""

    def grow(self, capacity: int) -> None:
        """Make room for more rows; those there are stay."""

    def compact(self, rows: Int64s, capacity: int) -> None:
        """Keep rows [R], ascending, as rows 0 to R - 1, give the memory of others back."""

    def view(self) -> Tensor:
        """All rows [capacity, D] in their storage dtype, sharing memory until the group grows or shrinks."""


MakeStorage = Callable[[RowLayout, int], RowStorage]
"""Makes the storage of a table group from its layout and its first capacity."""
