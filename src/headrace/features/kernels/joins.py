"""Kernels of operators that join several id lists row by row."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.hashing import joined_id

__all__ = ["cartesian", "cartesian_sizes", "n_grams", "transform_ids"]


@kernel()
def cartesian_sizes(first: Any, second: Any, limit: int, offsets: Any) -> None:
    """Write the start offsets of each row's pairs, at most `limit` per row."""
    offsets[0] = 0
    for row in range(offsets.size - 1):
        pairs = (first[row + 1] - first[row]) * (second[row + 1] - second[row])
        offsets[row + 1] = offsets[row] + min(pairs, limit)


@kernel()
def cartesian(first: Any, first_bounds: Any, second: Any, second_bounds: Any, offsets: Any, out: Any) -> None:
    """Write one id per ordered pair of ids of a row; the first list varies slowest."""
    for row in range(offsets.size - 1):
        at, stop = offsets[row], offsets[row + 1]
        for left in range(first_bounds[row], first_bounds[row + 1]):
            for right in range(second_bounds[row], second_bounds[row + 1]):
                if at < stop:
                    out[at] = joined_id(first[left], second[right])
                    at += 1


@kernel()
def n_grams(ids: Any, bounds: Any, size: int, out: Any, offsets: Any) -> Any:
    """Write one id per run of `size` ids of a row; returns the number of ids."""
    at = np.int64(0)
    offsets[0] = 0
    for row in range(bounds.size - 1):
        for start in range(bounds[row], bounds[row + 1] - size + 1):
            gram = ids[start]
            for index in range(start + 1, start + size):
                gram = joined_id(gram, ids[index])
            out[at] = gram
            at += 1
        offsets[row + 1] = at
    return at


@kernel()
def _in_sorted(sorted_ids: Any, id_: Any) -> Any:
    at = np.searchsorted(sorted_ids, id_)
    return at < sorted_ids.size and sorted_ids[at] == id_


@kernel()
def transform_ids(
    first: Any, first_bounds: Any, second: Any, second_bounds: Any, keep_common: bool, out: Any, offsets: Any
) -> Any:
    """Write the ids of the first list that are (or are not) in the second, in order; returns the number of ids."""
    at = np.int64(0)
    offsets[0] = 0
    for row in range(offsets.size - 1):
        others = np.sort(second[second_bounds[row] : second_bounds[row + 1]])
        for index in range(first_bounds[row], first_bounds[row + 1]):
            if _in_sorted(others, first[index]) == keep_common:
                out[at] = first[index]
                at += 1
        offsets[row + 1] = at
    return at
