"""What the columns of a request must be: ids with a row, counts, finite gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["first_bad_key", "first_row_not_finite"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def first_bad_key(spaces: Int32s, ids: Int64s, counts: Int32s, sizes: Int64s) -> int:
    """The first key with a negative count, or an id out of its space's range (sizes [S], 0 for any id), or -1."""
    for u in range(len(ids)):
        size = sizes[spaces[u]]
        if counts[u] < 0 or (size > 0 and not 0 <= ids[u] < size):
            return u
    return -1


@kernel()
def first_row_not_finite(bits: npt.NDArray[np.uint32]) -> int:
    """The first row of float32 [U, dim], given as its bits, with an infinity or NaN, or -1."""
    exponent = np.uint32(0x7F800000)
    for u in range(len(bits)):
        largest = np.uint32(0)
        for d in range(bits.shape[1]):
            largest = max(largest, bits[u, d] & exponent)
        if largest == exponent:
            return u
    return -1
