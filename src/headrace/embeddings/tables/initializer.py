"""First values of embedding rows: a function of (seed, space, id) only, never of the order in which ids arrive."""

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64, unit_float
from headrace.embeddings.storage.row_formats import FP32, round_row

__all__ = ["fill_row", "fill_rows"]

Float32s = npt.NDArray[np.float32]
Uint32s = npt.NDArray[np.uint32]
Rows = npt.NDArray[Any]


@kernel()
def fill_row(
    weights: Rows,
    row: int,
    key: int,
    space_seed: np.uint64,
    scale: np.float32,
    row_format: int,
    values: Float32s,
    bits: Uint32s,
) -> None:
    """First values of a key, uniform in `[-scale, scale)`, in row `row`.

    `values`, float32 [dim], is room for a row, `bits` the same as uint32.
    """
    state = mix64(space_seed ^ mix64(np.uint64(key)))
    for d in range(len(values)):
        centred = np.float32(2.0) * unit_float(state, np.uint64(d)) - np.float32(1.0)
        values[d] = scale * centred
    if row_format == FP32:
        for d in range(len(values)):
            weights[row, d] = values[d]
    else:
        round_row(weights, row, row_format, values, bits, space_seed, key)


@kernel()
def fill_rows(
    weights: Rows,
    rows: npt.NDArray[np.int64],
    spaces: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
    space_seeds: npt.NDArray[np.uint64],
    scales: Float32s,
    row_format: int = FP32,
) -> None:
    """The given rows, each from its own (space, id)."""
    values = np.empty(weights.shape[1], dtype=np.float32)
    bits = values.view(np.uint32)
    for i in range(len(rows)):
        space = spaces[i]
        fill_row(weights, rows[i], ids[i], space_seeds[space], scales[space], row_format, values, bits)
