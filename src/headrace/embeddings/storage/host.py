"""`HostStorage`: rows and optimizer state as arrays in this process, processed by compiled loops."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
from torch import Tensor

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.storage.first_values import fill_row
from headrace.embeddings.storage.inheritance import inherit_rows
from headrace.embeddings.storage.protocol import NEW, Inheritance, RowLayout
from headrace.embeddings.storage.row_formats import FORMATS, FP32, as_tensor, storage_dtype, widen_row

__all__ = ["HostStorage", "aligned_zeros", "gather_rows"]

LINE_BYTES = 64
CHUNK = 512  # rows per task of a thread

Rows = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class HostStorage:
    """A `RowStorage` in host memory.

    Args:
        layout: Layout of rows.
        capacity: Initial capacity in rows. The operating system allocates pages when they are first written.

    Attributes:
        weights: [capacity, D], float32, or the uint16 of bf16 and fp16 rows; int8 [capacity, D + 1]. See `row_formats`.
        state: float32 [capacity, W].
    """

    device = None

    def __init__(self, layout: RowLayout, capacity: int) -> None:
        self._layout = layout
        self.weights: Rows = aligned_zeros((capacity, layout.width), np.dtype(storage_dtype(layout.row_format)))
        self.state: Float32s = aligned_zeros((capacity, layout.optimizer.state_width), np.dtype(np.float32))

    @property
    def capacity(self) -> int:
        """See `RowStorage`."""
        return len(self.weights)

    @property
    def num_bytes(self) -> int:
        """See `RowStorage`."""
        return self.weights.nbytes + self.state.nbytes

    def gather(self, rows: Int64s, keys: Keys) -> Float32s:
        """See `RowStorage.gather`."""
        first, out = self._layout.first_values, empty((len(rows), self._layout.embedding_dim)).numpy()
        row_format = FORMATS[first.row_format]
        gather_rows(self.weights, rows, keys.tables, keys.ids, first.seeds, first.scales, row_format, out)
        return out

    def initialize(self, rows: Int64s, keys: Keys) -> None:
        """See `RowStorage.initialize`."""
        self._layout.first_values.write(self.weights, rows, keys)
        self.state[rows] = self._layout.optimizer.initial_state[keys.tables]

    def inherit(self, inheritance: Inheritance) -> None:
        """See `RowStorage.inherit`."""
        inherit_rows(self._layout, inheritance, self.weights, self.state)

    def update(
        self, rows: Int64s, keys: Keys, gradients: Float32s, *, step: int, num_rows: int = 1, lr_factor: float = 1.0
    ) -> None:
        """See `RowStorage.update`."""
        optimizer, rounding = self._layout.optimizer, self._layout.rounding(step)
        where = (self.weights, self.state, rows, keys.tables, keys.ids)
        optimizer.apply(*where, gradients, step, rounding, num_rows=num_rows, lr_factor=lr_factor)

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """See `RowStorage.columns`."""
        return {"weights": self.weights[rows], **self._layout.slot_columns(self.state[rows])}

    def set_columns(self, rows: Int64s, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """See `RowStorage.set_columns`."""
        self.weights[rows] = columns["weights"]
        self.state[rows] = self._layout.state_of(columns, len(rows))

    def fastest_order(self, rows: Int64s) -> Int64s:
        """See `RowStorage.fastest_order`."""
        return rows

    def discard(self, rows: Int64s) -> None:
        """See `RowStorage.discard`; values of rows that are not in use do no harm."""

    def grow(self, capacity: int) -> None:
        """See `RowStorage.grow`."""
        self.weights, self.state = (_resized(array, capacity) for array in (self.weights, self.state))

    def compact(self, rows: Int64s, capacity: int) -> None:
        """See `RowStorage.compact`."""
        self.weights, self.state = (_resized(array[rows], capacity) for array in (self.weights, self.state))

    def view(self) -> Tensor:
        """See `RowStorage.view`."""
        return as_tensor(self.weights, self._layout.row_format)


@kernel(parallel=True)
def gather_rows(
    weights: Rows,
    rows: Int64s,
    tables: Int32s,
    ids: Int64s,
    table_seeds: npt.NDArray[np.uint64],
    scales: Float32s,
    row_format: int,
    out: Float32s,
) -> None:
    """Copy rows [U] to `out` float32 [U, D]; initial values where a row is `NEW`."""
    dim, width = out.shape[1], weights.shape[1]
    weights_at = weights.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        values = np.empty(dim, dtype=np.float32)
        bits = values.view(np.uint32)
        stored = np.empty((1, width), dtype=weights.dtype)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, width * weights.itemsize, rows, u)
            row, table = rows[u], tables[u]
            if row == NEW:  # computed in the storage format, because initial values are rounded to it
                fill_row(stored, 0, ids[u], table_seeds[table], scales[table], row_format, values, bits)
                if row_format != FP32:
                    widen_row(stored, 0, row_format, values, bits)
                for d in range(dim):
                    out[u, d] = values[d]
            elif row_format == FP32:
                for d in range(dim):
                    out[u, d] = weights[row, d]
            else:
                widen_row(weights, row, row_format, values, bits)
                for d in range(dim):
                    out[u, d] = values[d]


def aligned_zeros(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros aligned to a cache line, so that a row of 16 floats is in one line."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + LINE_BYTES, dtype=np.uint8)
    begin = -raw.ctypes.data % LINE_BYTES
    return raw[begin : begin + num_bytes].view(dtype).reshape(shape)


def _resized(kept: npt.NDArray[Any], capacity: int) -> npt.NDArray[Any]:
    resized = aligned_zeros((capacity, *kept.shape[1:]), kept.dtype)
    resized[: len(kept)] = kept
    return resized
