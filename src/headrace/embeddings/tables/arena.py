"""The arena: rows, optimizer state and metadata of all spaces of one table, in arrays that grow together.

row 0                   zeros, never updated; what an id without a row reads
rows 1 .. num_fixed     direct and hashed spaces, one after the other
rows from num_fixed     collisionless spaces, given out by the directory, `capacity` grows

Rows of direct and hashed spaces are initialized lazily, when they are first updated; see `lazy_rows`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeVar

import numba
import numpy as np
import numpy.typing as npt

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.embeddings.config import TableConfig
from headrace.embeddings.ops.hashing import name_seeds
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.optimizers import SparseOptimizer
from headrace.embeddings.storage.row_formats import FORMATS, as_tensor, storage_dtype
from headrace.embeddings.tables.initializer import fill_rows
from headrace.embeddings.tables.lazy_rows import find_initialized, initialize_rows, initialize_space, read_rows

__all__ = ["ROW_METADATA", "Arena", "slot_columns"]

ROW_METADATA = np.dtype([("version", np.int64), ("frequency", np.int32)], align=True)
"""Per row: the version of the table that updated it last (0: never), and how often its id was seen in training."""

LINE_BYTES = 64
CHUNK = 512  # rows a thread takes at a time
GROWTH = 1.5  # the copy of a growing arena costs at most three times what is in it, over its life

Array = TypeVar("Array", bound=npt.NDArray[Any])
Float32s = npt.NDArray[np.float32]
Rows = npt.NDArray[Any]
Records = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel(parallel=True)
def _mark_updated(metadata: Records, rows: Int64s, counts: Int32s, version: int) -> None:
    most = np.int64(2**31 - 1)
    metadata_at = metadata.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(metadata_at, metadata.itemsize, rows, u)
            if rows[u] != 0:
                metadata[rows[u]].version = version
                metadata[rows[u]].frequency = min(np.int64(metadata[rows[u]].frequency) + counts[u], most)


class Arena:
    """Storage of one table. Not thread-safe.

    Args:
        spaces: Name -> config.
        embedding_dim: Floats per row.
        optimizer: Names the state to keep per row.
        seed: Of the rows' first values.

    Attributes:
        weights: [capacity, dim], float32, or the uint16 of bf16 and fp16 rows; see `row_formats`.
        row_format: fp32, bf16 or fp16.
        state: Optimizer state, float32 [capacity, width].
        metadata: `ROW_METADATA` [capacity].
        first_rows: int64 [S], where each direct or hashed space begins; -1 for collisionless ones.
        num_fixed: Row 0 and the rows of all direct and hashed spaces.
        dynamic_spaces: int32 [capacity - num_fixed], the space of each further row, -1 if free.
        dynamic_ids: int64 [capacity - num_fixed], its id.
    """

    def __init__(
        self, spaces: Mapping[str, TableConfig], embedding_dim: int, optimizer: SparseOptimizer, *, seed: int
    ) -> None:
        self._configs: Sequence[TableConfig] = tuple(spaces.values())
        self.space_seeds = name_seeds(seed, list(spaces), "rows")
        self._scales = np.array([config.scale for config in self._configs], dtype=np.float32)
        self._optimizer = optimizer
        self.embedding_dim = embedding_dim
        self.row_format = self._configs[0].rows if self._configs else "fp32"
        is_fixed = np.array([config.kind != "collisionless" for config in self._configs])
        sizes = np.array([config.num_embeddings for config in self._configs], dtype=np.int64)
        ends = 1 + np.cumsum(np.where(is_fixed, sizes, 0))
        self.first_rows: Int64s = np.where(is_fixed, ends - sizes, -1)
        self.num_fixed = int(ends[-1]) if len(ends) else 1
        self._first_capacity = self.num_fixed + int(np.where(is_fixed, 0, sizes).sum())
        self.clear()

    @property
    def capacity(self) -> int:
        """Rows there is room for."""
        return len(self.metadata)

    @property
    def num_bytes(self) -> int:
        """Bytes of rows, optimizer state and metadata."""
        arrays = [self.weights, self.state, self.metadata, self.dynamic_ids, self.dynamic_spaces]
        return sum(array.nbytes for array in arrays)

    def clear(self) -> None:
        """Every row as it was in the beginning, and no collisionless rows."""
        capacity = self._first_capacity
        dtype = np.dtype(storage_dtype(self.row_format))
        self.weights: Rows = _aligned((capacity, self.embedding_dim), dtype)
        self.state: Float32s = _aligned((capacity, self._optimizer.state_width), np.dtype(np.float32))
        self.metadata = _aligned((capacity,), ROW_METADATA)
        self.dynamic_spaces: Int32s = np.full(capacity - self.num_fixed, -1, dtype=np.int32)
        self.dynamic_ids: Int64s = np.zeros(capacity - self.num_fixed, dtype=np.int64)
        self._is_complete = False

    def complete(self) -> None:
        """Write first values into all rows that have none yet, for callers that look at the arrays themselves."""
        if self._is_complete:
            return
        for space, config in enumerate(self._configs):
            first, count = int(self.first_rows[space]), config.num_embeddings
            if first >= 0:
                written = np.empty(count, dtype=np.bool_)
                seed, scale = self.space_seeds[space], self._scales[space]
                initialize_space(
                    self.weights, self.metadata, first, count, seed, scale, FORMATS[self.row_format], written
                )
                self._initialize_slots(np.flatnonzero(written) + first, np.full(int(written.sum()), space))
        self._is_complete = True

    def initialize_lazily(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> None:
        """Write first values into those of some rows [U] that were never updated; before each first update."""
        if self._is_complete:
            return
        written = np.empty(len(rows), dtype=np.bool_)
        seeds, scales, row_format = self.space_seeds, self._scales, FORMATS[self.row_format]
        initialize_rows(
            self.weights, self.metadata, self.first_rows, rows, spaces, ids, seeds, scales, row_format, written
        )
        if self._optimizer.initial_state.any():
            self._initialize_slots(rows[written], spaces[written])

    def first_values(self, spaces: Int32s, ids: Int64s) -> Float32s:
        """What rows hold before they are updated, float32 [U, dim]."""
        stored = np.empty((len(ids), self.embedding_dim), dtype=storage_dtype(self.row_format))
        places = np.arange(len(ids))
        fill_rows(stored, places, spaces, ids, self.space_seeds, self._scales, FORMATS[self.row_format])
        values: Float32s = as_tensor(stored, self.row_format).float().numpy()
        return values

    def reserve(self, num_rows: int) -> None:
        """Make room for rows up to `num_rows`; what is there stays."""
        if num_rows <= self.capacity:
            return
        capacity = max(num_rows, int(self.capacity * GROWTH))
        self._grow_rows(capacity)
        self.metadata = _grown(self.metadata, capacity)
        self.dynamic_spaces = _grown(self.dynamic_spaces, capacity - self.num_fixed, fill=-1)
        self.dynamic_ids = _grown(self.dynamic_ids, capacity - self.num_fixed)

    def give_rows(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> None:
        """Give rows [A] to ids: first values, fresh optimizer state and metadata."""
        self.dynamic_spaces[rows - self.num_fixed] = spaces
        self.dynamic_ids[rows - self.num_fixed] = ids
        self._initialize(rows, spaces, ids)
        self.metadata[rows] = np.zeros(1, dtype=ROW_METADATA)

    def take_rows(self, rows: Int64s) -> None:
        """Take rows away from their ids, and clear them."""
        self.dynamic_spaces[rows - self.num_fixed] = -1
        self.dynamic_ids[rows - self.num_fixed] = 0
        self._clear_rows(rows)
        self.metadata[rows] = np.zeros(1, dtype=ROW_METADATA)

    def read(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> Float32s:
        """A copy of rows, float32 [U, dim]: first values where a row is `NEW` or was never updated."""
        out: Float32s = empty((len(rows), self.embedding_dim)).numpy()
        read_rows(
            self.weights,
            self.metadata,
            self.first_rows,
            rows,
            spaces,
            ids,
            self.space_seeds,
            self._scales,
            FORMATS[self.row_format],
            self._is_complete,
            out,
        )
        return out

    def row_columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """What a saved table holds of rows: `weights` and one `slot.NAME` per slot; copies."""
        return {"weights": self.weights[rows], **slot_columns(self._optimizer, self.state[rows])}

    def set_row_columns(self, rows: Int64s, columns: Mapping[str, npt.NDArray[Any]]) -> None:
        """The opposite of `row_columns`."""
        self.weights[rows] = columns["weights"]
        for name, slot in self._optimizer.slots_of(self.state).items():
            slot[rows] = columns[f"slot.{name}"]

    def mark_updated(self, rows: Int64s, counts: Int32s, *, version: int) -> None:
        """Note an update of ids seen `counts` times; rows [U] different from each other where not 0."""
        _mark_updated(self.metadata, rows, counts, version)

    def live_rows(self) -> Int64s:
        """Rows that are not as they began, ascending: fixed ones ever updated, and all that an id holds."""
        initialized = np.empty(self.num_fixed, dtype=np.bool_)
        find_initialized(self.metadata, initialized)
        return np.concatenate([np.flatnonzero(initialized), np.flatnonzero(self.dynamic_spaces >= 0) + self.num_fixed])

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (space, id) of rows; in direct and hashed spaces the id is the row within the space. (-1, 0) if free."""
        spaces, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        is_fixed = rows < self.num_fixed
        fixed_spaces = np.flatnonzero(self.first_rows >= 0)
        found = fixed_spaces[np.searchsorted(self.first_rows[fixed_spaces], rows[is_fixed], side="right") - 1]
        spaces[is_fixed] = found
        ids[is_fixed] = rows[is_fixed] - self.first_rows[found]
        spaces[~is_fixed] = self.dynamic_spaces[rows[~is_fixed] - self.num_fixed]
        ids[~is_fixed] = self.dynamic_ids[rows[~is_fixed] - self.num_fixed]
        return spaces, ids

    def _grow_rows(self, capacity: int) -> None:
        self.weights = _grown(self.weights, capacity)
        self.state = _grown(self.state, capacity)

    def _initialize(self, rows: Int64s, spaces: Int32s, ids: Int64s) -> None:
        fill_rows(self.weights, rows, spaces, ids, self.space_seeds, self._scales, FORMATS[self.row_format])
        self._initialize_slots(rows, spaces)

    def _initialize_slots(self, rows: Int64s, spaces: npt.NDArray[Any]) -> None:
        self.state[rows] = self._optimizer.initial_state[spaces]

    def _clear_rows(self, rows: Int64s) -> None:
        self.weights[rows] = 0
        self.state[rows] = 0


def slot_columns(optimizer: SparseOptimizer, state: Float32s) -> dict[str, Float32s]:
    """State [R, width] as the columns of a saved table."""
    return {f"slot.{name}": np.ascontiguousarray(slot) for name, slot in optimizer.slots_of(state).items()}


def _aligned(shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Zeros that begin at a cache line, so that a row of 16 floats is one line and not parts of two."""
    num_bytes = math.prod(shape) * dtype.itemsize
    raw = np.zeros(num_bytes + LINE_BYTES, dtype=np.uint8)
    begin = -raw.ctypes.data % LINE_BYTES
    return raw[begin : begin + num_bytes].view(dtype).reshape(shape)


def _grown(array: Array, length: int, fill: int = 0) -> Array:
    grown = _aligned((length, *array.shape[1:]), array.dtype)
    grown[: len(array)] = array
    if fill:
        grown[len(array) :] = fill
    return grown  # type: ignore[return-value]
