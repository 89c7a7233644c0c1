"""Rows that begin with a part of another row: those of ids that get a row of their own under a budget."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import key_stream
from headrace.embeddings.storage.first_values import fill_row
from headrace.embeddings.storage.protocol import Columns, Inheritance, RowLayout
from headrace.embeddings.storage.row_formats import FP32, INT8, as_tensor, round_row, to_float32, widen_row

__all__ = ["inherit_rows", "inherited_columns"]

CHUNK = 256  # rows per task of a thread
COPY = -1.0

Rows = npt.NDArray[Any]
Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Bools = npt.NDArray[np.bool_]


def inherited_columns(layout: RowLayout, inheritance: Inheritance, sources: Columns) -> Columns:
    """Columns of the rows, given those of the sources; for media whose rows are not one array."""
    keys, columns = inheritance.keys, dict(sources)
    initial = layout.slot_columns(layout.optimizer.initial_state[keys.tables])
    for slot in layout.optimizer.slots:
        if slot.is_sum:
            name = f"slot.{slot.name}"
            first = initial[name]
            columns[name] = first + inheritance.shares[:, None] * (columns[name] - first)
    if inheritance.ratio is not None:
        shared = as_tensor(np.ascontiguousarray(columns["weights"]), layout.row_format)
        values = np.float32(inheritance.ratio) * to_float32(shared, layout.row_format).numpy()
        first = layout.first_values.widened(keys, layout.embedding_dim)
        columns["weights"] = layout.stored(values + first, keys, inheritance.step)
    return columns


def inherit_rows(layout: RowLayout, inheritance: Inheritance, weights: Rows, state: Float32s) -> None:
    """Write rows of arrays: weights [capacity, width] and state float32 [capacity, W]."""
    keys, rounding, ratio = inheritance.keys, layout.rounding(inheritance.step), inheritance.ratio
    _inherit(
        weights,
        state,
        inheritance.rows,
        keys.tables,
        keys.ids,
        inheritance.sources,
        inheritance.shares,
        np.float32(COPY if ratio is None else ratio),
        layout.optimizer.is_sum,
        layout.optimizer.initial_state,
        layout.first_values.scales,
        *rounding,
    )


@kernel(parallel=True)
def _inherit(
    weights: Rows,
    state: Float32s,
    rows: Int64s,
    tables: Int32s,
    ids: Int64s,
    sources: Int64s,
    shares: Float32s,
    ratio: np.float32,
    is_sum: Bools,
    initial_state: Float32s,
    scales: Float32s,
    row_format: int,
    seed: np.uint64,
    table_seeds: Uint64s,
) -> None:
    width, dim = weights.shape[1], weights.shape[1] if row_format != INT8 else weights.shape[1] - 1
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        first, values = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
        first_bits, bits = first.view(np.uint32), values.view(np.uint32)
        stored = np.empty((1, width), dtype=weights.dtype)
        for a in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            row, source, table = rows[a], sources[a], tables[a]
            for j in range(state.shape[1]):
                begin, value = initial_state[table, j], state[source, j]
                state[row, j] = begin + shares[a] * (value - begin) if is_sum[j] else value
            if ratio < 0:
                for d in range(width):
                    weights[row, d] = weights[source, d]
                continue
            fill_row(stored, 0, ids[a], table_seeds[table], scales[table], row_format, first, first_bits)
            if row_format == FP32:
                for d in range(dim):
                    weights[row, d] = ratio * weights[source, d] + first[d]
                continue
            widen_row(stored, 0, row_format, first, first_bits)
            widen_row(weights, source, row_format, values, bits)
            for d in range(dim):
                values[d] = ratio * values[d] + first[d]
            round_row(weights, row, row_format, values, bits, seed, key_stream(table_seeds[table], ids[a]))
