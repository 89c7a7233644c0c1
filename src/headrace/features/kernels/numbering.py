"""Numbers for rows: which unique rows a batch uses, and which rows agree in all of several groups."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["number_combinations", "number_used"]


@kernel()
def number_used(indices: Any, used: Any, inverse: Any) -> Any:
    """Number the unique rows that a batch uses, in the order in which they first occur; returns how many.

    Args:
        indices: int32 [B], into a dictionary of any size.
        used: int64 [B], its first entries written: the unique rows.
        inverse: int32 [B], written: their numbers.
    """
    if indices.size == 0:
        return 0
    low, high = np.int64(indices.min()), np.int64(indices.max())
    numbers, count = np.full(high - low + 1, -1, np.int32), 0
    for row in range(indices.size):
        place = indices[row] - low
        if numbers[place] < 0:
            numbers[place] = count
            used[count] = indices[row]
            count += 1
        inverse[row] = numbers[place]
    return count


@kernel()
def number_combinations(inverses: Any, inverse: Any, first_rows: Any) -> Any:
    """Number runs of rows that agree in all of several groups; returns how many.

    Args:
        inverses: int32 [G, B].
        inverse: int32 [B], written: the run of each row.
        first_rows: int64 [B], its first entries written: where each run starts.
    """
    count = 0
    for row in range(inverse.size):
        changed = row == 0
        for group in range(inverses.shape[0]):
            changed |= row > 0 and inverses[group, row] != inverses[group, row - 1]
        if changed:
            first_rows[count] = row
            count += 1
        inverse[row] = count - 1
    return count
