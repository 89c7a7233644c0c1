"""Lazily initialized rows: a row is written when it is first updated; until then a read computes its first value.

First values are a function of (seed, space, id), so a new table of millions of rows costs nothing, and a row that was
never updated need not be stored, sent or looked for. Metadata tells them apart: their version is 0.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.storage.row_formats import FP32, widen_row
from headrace.embeddings.tables.index import NEW
from headrace.embeddings.tables.initializer import fill_row

__all__ = ["find_initialized", "initialize_rows", "initialize_space", "read_rows"]

CHUNK = 512  # rows a thread takes at a time

Rows = npt.NDArray[Any]
Records = npt.NDArray[np.void]
Bools = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Seeds = npt.NDArray[np.uint64]


@kernel(parallel=True)
def read_rows(
    weights: Rows,
    metadata: Records,
    first_rows: Int64s,
    rows: Int64s,
    spaces: Int32s,
    ids: Int64s,
    space_seeds: Seeds,
    scales: Float32s,
    row_format: int,
    is_complete: bool,
    out: Float32s,
) -> None:
    """Copies rows [U] to `out` float32 [U, dim], first values where a row is `NEW` or was never written.

    `is_complete` says that every row of direct and hashed spaces was written, so that none need be asked.
    """
    dim = weights.shape[1]
    weights_at, metadata_at = weights.ctypes.data, metadata.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        values = np.empty(dim, dtype=np.float32)
        bits = values.view(np.uint32)
        stored = np.empty((1, dim), dtype=weights.dtype)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, dim * weights.itemsize, rows, u)
            row, space = rows[u], spaces[u]
            is_lazy = row == NEW
            if not is_complete:
                prefetch_row(metadata_at, metadata.itemsize, rows, u)
                is_lazy = is_lazy or (row != 0 and first_rows[space] >= 0 and metadata[row].version == 0)
            if is_lazy:  # by way of the storage format, whose rounding is part of a first value
                fill_row(stored, 0, ids[u], space_seeds[space], scales[space], row_format, values, bits)
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


@kernel(parallel=True)
def initialize_rows(
    weights: Rows,
    metadata: Records,
    first_rows: Int64s,
    rows: Int64s,
    spaces: Int32s,
    ids: Int64s,
    space_seeds: Seeds,
    scales: Float32s,
    row_format: int,
    written: Bools,
) -> None:
    """Writes first values into those of some rows that were never written, and which they are into `written` [U]."""
    metadata_at = metadata.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        values = np.empty(weights.shape[1], dtype=np.float32)
        bits = values.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(metadata_at, metadata.itemsize, rows, u)
            row, space = rows[u], spaces[u]
            written[u] = space >= 0 and first_rows[space] >= 0 and metadata[row].version == 0
            if written[u]:
                fill_row(weights, row, ids[u], space_seeds[space], scales[space], row_format, values, bits)


@kernel(parallel=True)
def initialize_space(
    weights: Rows,
    metadata: Records,
    first_row: int,
    count: int,
    space_seed: np.uint64,
    scale: np.float32,
    row_format: int,
    written: Bools,
) -> None:
    """As `initialize_rows`, for all rows of a space; `written` [count]."""
    for chunk in numba.prange((count + CHUNK - 1) // CHUNK):
        values = np.empty(weights.shape[1], dtype=np.float32)
        bits = values.view(np.uint32)
        for key in range(chunk * CHUNK, min((chunk + 1) * CHUNK, count)):
            written[key] = metadata[first_row + key].version == 0
            if written[key]:
                fill_row(weights, first_row + key, key, space_seed, scale, row_format, values, bits)


@kernel(parallel=True)
def find_initialized(metadata: Records, out: Bools) -> None:
    """Which rows were ever updated, bool [rows]."""
    for row in numba.prange(len(out)):
        out[row] = metadata[row].version != 0
