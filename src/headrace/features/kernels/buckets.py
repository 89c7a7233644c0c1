"""Bucketize: counts the borders below a number, using a lookup table and a short binary search."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["bucketize", "ordered_bits"]

_NONE, _ONE = np.uint64(0), np.uint64(1)


@kernel()
def ordered_bits(number: Any) -> Any:
    """An int64 with the same order as the float64 argument; equal steps in it are (nearly) equal ratios."""
    bits = np.float64(number).view(np.int64)
    return bits ^ ((bits >> 63) & np.int64(0x7FFF_FFFF_FFFF_FFFF))


@kernel()
def _search(block: Any, ids: Any, count: int, borders: Any, steps: int) -> None:
    """Add to each id, the number of borders below its cell, the borders of the cell that are below the number.

    A comparison would become a branch, mispredicted half the time (4.5 instead of 2.3 ns a number), so the step is
    masked by the sign of a difference. Indices are unsigned because Numba checks signed ones for counting from the end.
    """
    for index in range(count):
        number = np.float64(block[index])
        at = np.uint64(ids[index])
        step = (_ONE << np.uint64(steps)) >> _ONE
        while step > _NONE:
            below = np.float64(borders[at + step - _ONE] - number).view(np.int64) >> 63
            at += step & np.uint64(below)
            step >>= _ONE
        ids[index] = np.int64(at)


@kernel()
def bucketize(
    block: Any, keep: Any, ids: Any, count: int, borders: Any, starts: Any, low: float, scale: float, steps: int
) -> Any:
    """Write the bucket of each number; NaN (null) has no bucket.

    The range of the borders is cut into cells, of equal width or of equal ratio. `starts` has the number of borders
    below each cell, so the binary search starts there and takes only a few steps.

    Args:
        block: The numbers, float32 or float64.
        keep: uint8, written: 0 where the number is NaN.
        ids: int64, written: 0..number of borders.
        count: Number of values in the block.
        borders: float64, ascending, without negative zeros, followed by 2**steps NaNs.
        starts: int32, one per cell.
        low: The lowest border.
        scale: Cells per unit; or if negative, minus the shift that turns `ordered_bits` into cells.
        steps: Search steps that are enough for every cell.

    Returns:
        Whether any number was NaN.
    """
    missing = 0
    for index in range(count):
        there = block[index] == block[index]
        keep[index] = there
        missing += 0 if there else 1
    if scale < 0:
        # Clamp to the borders' range first, because the difference between the bits of two numbers may overflow int64.
        first, shift = ordered_bits(low), np.int64(-scale)
        last_bits = ordered_bits(borders[borders.size - (1 << steps) - 1])
        for index in range(count):
            bits = min(max(ordered_bits(block[index]), first), last_bits)
            ids[index] = starts[np.uint64((bits - first) >> shift)]
    else:
        last = np.float64(starts.size - 1)
        for index in range(count):
            position: Any = (np.float64(block[index]) - low) * scale
            position = position if position > 0.0 else 0.0
            position = position if position < last else last
            ids[index] = starts[np.uint64(position)]
    _search(block, ids, count, borders, steps)
    return missing > 0
