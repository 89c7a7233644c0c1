"""Bucketize: how many borders lie below a number, by a table that leads to within a few borders of it."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["bucketize"]


@kernel()
def bucketize(
    block: Any, keep: Any, ids: Any, count: int, borders: Any, starts: Any, low: float, scale: float, steps: int
) -> Any:
    """Write the bucket of each number; NaN (null) gets none.

    The range of the borders is cut into cells of equal width; `starts` says how many borders lie below each cell, so a
    search begins there and halves `2**steps - 1` borders at most.

    Args:
        block: Numbers, float32 or float64.
        keep: uint8, written: 0 where the number is NaN.
        ids: int64, written: 0..number of borders.
        count: Numbers in the block.
        borders: float64, strictly increasing, followed by 2**steps times infinity.
        starts: int64, one per cell.
        low: The lowest border.
        scale: Cells per unit.
        steps: Halvings that are enough in every cell.

    Returns:
        Whether a number was NaN.
    """
    last = starts.size - 1
    missing = 0
    for index in range(count):
        number = np.float64(block[index])
        there = number == number
        missing += 0 if there else 1
        keep[index] = there
        cell: Any = (number - low) * scale
        cell = cell if cell > 0.0 else 0.0
        cell = cell if cell < last else np.float64(last)
        at = starts[np.int64(cell)]
        step = (1 << steps) >> 1
        while step > 0:
            at += step if borders[at + step - 1] < number else 0
            step >>= 1
        ids[index] = at
    return missing > 0
