"""Untouched rows: those of direct and hashed spaces that nobody trained on yet, as their metadata says.

They have not been written, so a new table of millions of rows costs nothing; these kernels write the first values of
those that are needed.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.initializer import fill_row
from headrace.embeddings.prefetch import prefetch_row

__all__ = ["begin_space", "begin_untouched", "find_touched"]

CHUNK = 512  # rows a thread takes at a time

Rows = npt.NDArray[Any]
Records = npt.NDArray[np.void]
Bools = npt.NDArray[np.bool_]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def is_untouched(metadata: Records, row: int) -> bool:
    untouched: bool = metadata[row].frequency == 0 and metadata[row].version == 0
    return untouched


@kernel(parallel=True)
def begin_untouched(
    weights: Rows,
    metadata: Records,
    first_rows: Int64s,
    rows: Int64s,
    spaces: Int32s,
    ids: Int64s,
    space_seeds: npt.NDArray[np.uint64],
    scales: Float32s,
    row_format: int,
    begun: Bools,
) -> None:
    """Writes first values into the untouched ones of some rows, and which they are into `begun` [U]."""
    metadata_at = metadata.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        values = np.empty(weights.shape[1], dtype=np.float32)
        bits = values.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(metadata_at, metadata.itemsize, rows, u)
            row, space = rows[u], spaces[u]
            begun[u] = space >= 0 and first_rows[space] >= 0 and is_untouched(metadata, row)
            if begun[u]:
                fill_row(weights, row, ids[u], space_seeds[space], scales[space], row_format, values, bits)


@kernel(parallel=True)
def begin_space(
    weights: Rows,
    metadata: Records,
    first_row: int,
    count: int,
    space_seed: np.uint64,
    scale: np.float32,
    row_format: int,
    begun: Bools,
) -> None:
    """As `begin_untouched`, for all rows of a space; `begun` [count]."""
    for chunk in numba.prange((count + CHUNK - 1) // CHUNK):
        values = np.empty(weights.shape[1], dtype=np.float32)
        bits = values.view(np.uint32)
        for key in range(chunk * CHUNK, min((chunk + 1) * CHUNK, count)):
            begun[key] = is_untouched(metadata, first_row + key)
            if begun[key]:
                fill_row(weights, first_row + key, key, space_seed, scale, row_format, values, bits)


@kernel(parallel=True)
def find_touched(metadata: Records, out: Bools) -> None:
    for row in numba.prange(len(out)):
        out[row] = not is_untouched(metadata, row)
