"""First values of embedding rows: a function of (seed, space, id) only, never of the order in which ids arrive."""

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.hashing import mix64, unit_float

__all__ = ["fill_range", "fill_rows"]


@kernel()
def _fill_row(weights: npt.NDArray[np.float32], row: int, key: int, space_seed: np.uint64, scale: np.float32) -> None:
    state = mix64(space_seed ^ mix64(np.uint64(key)))
    for d in range(weights.shape[1]):
        centred = np.float32(2.0) * unit_float(state, np.uint64(d)) - np.float32(1.0)
        weights[row, d] = scale * centred


@kernel(parallel=True)
def fill_range(
    weights: npt.NDArray[np.float32], first_row: int, count: int, space_seed: np.uint64, scale: np.float32
) -> None:
    """Rows `first_row + key` for every key in `[0, count)`: uniform in `[-scale, scale)`."""
    for key in numba.prange(count):
        _fill_row(weights, first_row + key, key, space_seed, scale)


@kernel()
def fill_rows(
    weights: npt.NDArray[np.float32],
    rows: npt.NDArray[np.int64],
    spaces: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
    space_seeds: npt.NDArray[np.uint64],
    scales: npt.NDArray[np.float32],
) -> None:
    """The given rows, each from its own (space, id)."""
    for i in range(len(rows)):
        space = spaces[i]
        _fill_row(weights, rows[i], ids[i], space_seeds[space], scales[space])
