"""What the columns of a request must be: ids with a row, counts, keys once each, finite gradients."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.hashing import mix64

__all__ = ["first_bad_key", "first_repeated_key", "first_row_not_finite"]

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
def first_repeated_key(spaces: Int32s, ids: Int64s) -> int:
    """The first key that came before, or -1."""
    num_slots = 16
    while num_slots < 2 * len(ids):
        num_slots *= 2
    slots = np.full(num_slots, -1, dtype=np.int32)
    mask = num_slots - 1
    for u in range(len(ids)):
        slot = np.int64(mix64(np.uint64(ids[u]) ^ (np.uint64(spaces[u]) << np.uint64(40)))) & mask
        other = slots[slot]
        while other >= 0:
            if ids[other] == ids[u] and spaces[other] == spaces[u]:
                return u
            slot = (slot + 1) & mask
            other = slots[slot]
        slots[slot] = u
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
