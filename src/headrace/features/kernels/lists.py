"""Operators on the rows of a block of id lists: which ids of each row stay, and where in its row each one stands."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.hashing import combine, joined_id, mix

__all__ = ["close_up", "enumerate_ids", "first_x", "keep_some_rows", "sample"]


@kernel()
def first_x(keep: Any, bounds: Any, num_rows: int, limit: int) -> None:
    """Keep at most the first `limit` ids of each row."""
    for row in range(num_rows):
        left = limit
        for index in range(bounds[row], bounds[row + 1]):
            if left <= 0:
                keep[index] = 0
            left -= keep[index]


@kernel()
def enumerate_ids(ids: Any, keep: Any, bounds: Any, num_rows: int, joined: bool) -> None:
    """Replace each id by its position in its row (from 0), or by one id for (position, id)."""
    for row in range(num_rows):
        position = 0
        for index in range(bounds[row], bounds[row + 1]):
            ids[index] = joined_id(position, ids[index]) if joined else position
            position += keep[index]


@kernel()
def sample(row_id: int, seed: int, threshold: int) -> Any:
    """Whether a row is in a sample: a function of its id and the seed alone; the threshold counts in 1/2^63."""
    return np.int64(combine(np.uint64(seed), mix(np.uint64(row_id))) >> np.uint64(1)) < threshold


@kernel()
def keep_some_rows(keep: Any, bounds: Any, num_rows: int, row_ids: Any, seed: int, threshold: int) -> None:
    """Leave out all ids of the rows that are not in the sample."""
    for row in range(num_rows):
        if not sample(row_ids[row], seed, threshold):
            for index in range(bounds[row], bounds[row + 1]):
                keep[index] = 0


@kernel()
def close_up(ids: Any, keep: Any, bounds: Any, num_rows: int, lengths: Any) -> Any:
    """Move the ids that stay together, in order; writes the lengths of the rows and returns how many ids there are."""
    at = 0
    for row in range(num_rows):
        start = at
        for index in range(bounds[row], bounds[row + 1]):
            ids[at] = ids[index]
            at += keep[index]
        lengths[row] = at - start
    return at
