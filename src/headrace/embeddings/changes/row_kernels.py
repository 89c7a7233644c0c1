"""Kernels that read segments: the newest rows of several runs of ids, copies of them, and integers from planes."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel

__all__ = ["as_words", "copy_rows", "join_planes", "merge_ids", "number_from", "number_kept"]

Int64s = npt.NDArray[np.int64]


@kernel()
def merge_ids(
    newer: Int64s, newer_places: Int64s, older: Int64s, older_places: Int64s, ids: Int64s, places: Int64s
) -> int:
    """Merge two ascending runs of ids, each with a place; of an id in both, the newer one stays.

    Args:
        newer, newer_places: int64 [A].
        older, older_places: int64 [B].
        ids, places: int64 [A + B], set to the result.

    Returns:
        Number of ids.
    """
    a, b, count = 0, 0, 0
    while a < len(newer) and b < len(older):  # without branches on ids, which nobody can predict
        of_newer, of_older = newer[a], older[b]
        ids[count] = min(of_newer, of_older)
        places[count] = newer_places[a] if of_newer <= of_older else older_places[b]
        a += of_newer <= of_older
        b += of_older <= of_newer
        count += 1
    while a < len(newer):
        ids[count], places[count] = newer[a], newer_places[a]
        a, count = a + 1, count + 1
    while b < len(older):
        ids[count], places[count] = older[b], older_places[b]
        b, count = b + 1, count + 1
    return count


@kernel()
def number_from(start: int, places: Int64s) -> None:
    """Set `places` [P] to `start`, `start` + 1, ..."""
    for position in range(len(places)):
        places[position] = start + position


@kernel()
def number_kept(places: Int64s, destinations: Int64s) -> None:
    """Set `destinations` [P] to the position of each place in `places` [K], and to -1 where it has none."""
    destinations[:] = -1
    for position in range(len(places)):
        destinations[places[position]] = position


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
    for row in range(len(values)):
        values[row] = 0
    for plane in range(len(planes)):
        for row in range(len(values)):
            values[row] |= np.int64(planes[plane, row]) << np.int64(8 * plane)
    total = np.int64(base)
    for row in range(len(values)):
        if is_gaps:
            total += values[row]
            values[row] = total
        else:
            values[row] += total


def as_words(column: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A contiguous column [R] or [R, width] of any type as words [R, W], the widest that fit, without a copy.

    All copies then use one of a few compiled kernels.
    """
    row_bytes = column.dtype.itemsize * (1 if column.ndim == 1 else column.shape[1])
    word = next(size for size in (8, 4, 1) if row_bytes % size == 0)
    return column.reshape(-1).view(f"u{word}").reshape(len(column), row_bytes // word)
