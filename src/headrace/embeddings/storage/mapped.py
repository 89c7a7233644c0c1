"""`MappedStorage`: rows and optimizer state in files that the operating system pages."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage, RowLayout
from headrace.embeddings.storage.row_formats import storage_dtype
from headrace.embeddings.storage.unnamed_files import MappedArray

__all__ = ["MappedStorage", "spilled_columns"]

Int64s = npt.NDArray[np.int64]
Columns = dict[str, npt.NDArray[Any]]

SPILL_ABOVE = 64 << 20
"""Copies of more bytes than this are in files, so that a checkpoint does not need memory for a second table."""

BLOCK_ROWS = 1 << 16


class MappedStorage(HostStorage):
    """A `RowStorage` in mapped files, with the loops of `HostStorage`.

    Args:
        layout: Layout of rows.
        capacity: Initial capacity in rows. The disk has room for all of them, or the storage is not created.
        folder: Folder of the files.

    Raises:
        ConfigError: The folder does not exist, or cannot be written to.
        StorageError: The disk is full.
    """

    def __init__(self, layout: RowLayout, capacity: int, *, folder: str | Path) -> None:
        self._layout, self._folder = layout, folder
        shapes = (capacity, layout.width), (capacity, layout.optimizer.state_width)
        dtypes = storage_dtype(layout.row_format), np.float32
        self._mapped = [MappedArray(folder, *each, random=True) for each in zip(shapes, dtypes, strict=True)]
        self._show()

    @classmethod
    def within(cls, folder: str | Path) -> MakeStorage:
        """Return a function that creates storages in a folder."""
        return partial(cls, folder=folder)

    def columns(self, rows: Int64s) -> Columns:
        """See `RowStorage.columns`; many rows are copied to a file."""
        return spilled_columns(rows, super().columns, self._folder)

    def set_columns(self, rows: Int64s, columns: Any) -> None:
        """See `RowStorage.set_columns`."""
        for first in range(0, len(rows), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            names = ("weights", *(f"slot.{slot.name}" for slot in self._layout.optimizer.slots))
            super().set_columns(rows[part], {name: np.asarray(columns[name][part]) for name in names})

    def grow(self, capacity: int) -> None:
        """See `RowStorage.grow`."""
        self.weights = self.state = np.empty((0, 0), dtype=np.float32)
        for each in self._mapped:
            each.resize(capacity)
        self._show()

    def compact(self, rows: Int64s, capacity: int) -> None:
        """See `RowStorage.compact`."""
        for array in (self.weights, self.state):
            for first in range(0, len(rows), BLOCK_ROWS):  # a row only moves down, to a place already read
                part = rows[first : first + BLOCK_ROWS]
                array[first : first + len(part)] = array[part]
        self.grow(capacity)

    def _show(self) -> None:
        self.weights, self.state = (each.array for each in self._mapped)


def spilled_columns(rows: Int64s, columns: Callable[[Int64s], Columns], folder: str | Path) -> Columns:
    """Copies of the columns of rows [R], in memory if they are few, otherwise in unnamed files.

    Args:
        rows: Row numbers.
        columns: Copies the columns of some rows.
        folder: Folder of the files.

    Raises:
        StorageError: The disk is full.
    """
    one = columns(rows[:1])
    if sum(array.nbytes for array in one.values()) * len(rows) <= SPILL_ABOVE:
        return columns(rows)
    files = {
        name: MappedArray(folder, (len(rows), *array.shape[1:]), array.dtype, random=False)
        for name, array in one.items()
    }
    for first in range(0, len(rows), BLOCK_ROWS):
        for name, part in columns(rows[first : first + BLOCK_ROWS]).items():
            files[name].array[first : first + len(part)] = part
    return {name: file.array for name, file in files.items()}
