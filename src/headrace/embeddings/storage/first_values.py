"""Initial values of embedding rows: a function of (seed, table, id) only, independent of the order of ids."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64, name_seeds, unit_float
from headrace.embeddings.storage.row_formats import (
    FORMATS,
    FP32,
    INT8,
    RowFormat,
    as_tensor,
    round_row,
    storage_dtype,
    stored_width,
    to_float32,
)

__all__ = ["FirstValues", "fill_row", "fill_rows"]

CHUNK = 512  # rows per task of a thread

Float32s = npt.NDArray[np.float32]
Uint32s = npt.NDArray[np.uint32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Rows = npt.NDArray[Any]


class FirstValues:
    """Initial values of rows: uniform in `[-scale, scale)`, a function of (seed, table, id).

    Args:
        names: Names of the tables.
        scales: Scale of each table.
        row_format: Storage dtype of rows; initial values are rounded to it.
        seed: Seed of the tables.

    Attributes:
        seeds: uint64 [T], seed of each table.
        scales: float32 [T], scale of each table.
    """

    def __init__(self, names: Sequence[str], scales: Sequence[float], row_format: RowFormat, *, seed: int) -> None:
        self.seeds = name_seeds(seed, list(names), "rows")
        self.scales = np.array(scales, dtype=np.float32)
        self.row_format: RowFormat = row_format

    def stored(self, keys: Keys, embedding_dim: int) -> Rows:
        """Initial values in the storage dtype, [U, D]; int8 [U, D + 1]."""
        width = stored_width(self.row_format, embedding_dim)
        stored = np.empty((len(keys), width), dtype=storage_dtype(self.row_format))
        self.write(stored, np.arange(len(keys)), keys)
        return stored

    def widened(self, keys: Keys, embedding_dim: int) -> Float32s:
        """Initial values as float32 [U, D]."""
        stored = as_tensor(self.stored(keys, embedding_dim), self.row_format)
        values: Float32s = to_float32(stored, self.row_format).numpy()
        return values

    def write(self, weights: Rows, rows: Int64s, keys: Keys) -> None:
        """Write initial values into rows [U] of an array."""
        fill_rows(weights, rows, keys.tables, keys.ids, self.seeds, self.scales, FORMATS[self.row_format])


@kernel()
def fill_row(
    weights: Rows,
    row: int,
    key: int,
    table_seed: np.uint64,
    scale: np.float32,
    row_format: int,
    values: Float32s,
    bits: Uint32s,
) -> None:
    """Write the initial values of a key into row `row`.

    `values` float32 [D] is scratch memory for a row; `bits` is a uint32 view of it.
    """
    state = mix64(table_seed ^ mix64(np.uint64(key)))
    for d in range(len(values)):
        centred = np.float32(2.0) * unit_float(state, np.uint64(d)) - np.float32(1.0)
        values[d] = scale * centred
    if row_format == FP32:
        for d in range(len(values)):
            weights[row, d] = values[d]
    else:
        round_row(weights, row, row_format, values, bits, table_seed, key)


@kernel(parallel=True)
def fill_rows(
    weights: Rows,
    rows: Int64s,
    tables: Int32s,
    ids: Int64s,
    table_seeds: npt.NDArray[np.uint64],
    scales: Float32s,
    row_format: int = FP32,
) -> None:
    """Fill the given rows [U], each from its (table, id)."""
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        values = np.empty(weights.shape[1] - (1 if row_format == INT8 else 0), dtype=np.float32)
        bits = values.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            table = tables[u]
            fill_row(weights, rows[u], ids[u], table_seeds[table], scales[table], row_format, values, bits)
