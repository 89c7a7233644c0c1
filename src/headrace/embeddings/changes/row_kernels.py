"""Kernels that read segments: the newest rows of several runs of ids, copies of them, and integers from planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["as_words", "copy_rows", "find_places", "join_planes", "merge_ids"]

Int64s = npt.NDArray[np.int64]


@kernel()
def merge_ids(some: Int64s, others: Int64s, ids: Int64s) -> int:
    """Merge two ascending runs of ids.

    Args:
        some: int64 [A].
        others: int64 [B].
        ids: int64 [A + B], set to the ids of both, each once.

    Returns:
        Number of ids.
    """
    a, b, count = 0, 0, 0
    while a < len(some) and b < len(others):  # without branches on ids, which nobody can predict
        of_some, of_others = some[a], others[b]
        ids[count] = min(of_some, of_others)
        a += of_some <= of_others
        b += of_others <= of_some
        count += 1
    while a < len(some):
        ids[count] = some[a]
        a, count = a + 1, count + 1
    while b < len(others):
        ids[count] = others[b]
        b, count = b + 1, count + 1
    return count


@kernel()
def find_places(ids: Int64s, merged: Int64s, places: Int64s) -> bool:
    """Set `places` [R] to the position of each id in `merged` [K], and to -1 if it is not there; both are ascending.

    Returns:
        Whether they are consecutive.
    """
    at, is_run = 0, True
    for row in range(len(ids)):
        while at < len(merged) and merged[at] < ids[row]:
            at += 1
        places[row] = at if at < len(merged) and merged[at] == ids[row] else -1
        is_run &= places[row] == places[0] + row
    return is_run and len(ids) > 0 and places[0] >= 0


@kernel()
def copy_rows(source: npt.NDArray[Any], destinations: Int64s, out: npt.NDArray[Any]) -> None:
    """Copy row r of `source` [R, W] to row `destinations[r]` of `out`, unless that is negative."""
    width = source.shape[1]
    in_eights = width - width % 8
    for row in range(len(destinations)):
        to = destinations[row]
        if to >= 0:
            for first in range(0, in_eights, 8):  # so that a row of dimension 16 is copied without a loop
                for word in range(8):
                    out[to, first + word] = source[row, first + word]
            for word in range(in_eights, width):
                out[to, word] = source[row, word]


@kernel()
def join_planes(planes: npt.NDArray[np.uint8], base: int, is_gaps: bool, values: Int64s) -> None:
    """Set `values` [R] to the integers of `planes` [P, R], lowest byte first, above `base`, or above the one before."""
    start = np.int64(0 if is_gaps else base)
    for row in range(len(values)):
        values[row] = start
    for plane in range(len(planes)):
        for row in range(len(values)):
            values[row] += np.int64(planes[plane, row]) << np.int64(8 * plane)
    if is_gaps:
        total = np.int64(base)
        for row in range(len(values)):
            total += values[row]
            values[row] = total


def as_words(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous column [R] or [R, width] of any type as words [R, W], the widest that fit, without a copy.

    All copies then use one of a few compiled kernels.
    """
    row_bytes = column.dtype.itemsize * (1 if column.ndim == 1 else column.shape[1])
    word = next(size for size in (8, 4, 1) if row_bytes % size == 0)
    return column.reshape(-1).view(f"u{word}").reshape(len(column), row_bytes // word)
