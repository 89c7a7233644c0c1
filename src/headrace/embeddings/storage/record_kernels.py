"""Kernels that move records between the arrays of rows in memory and pages of a file."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.prefetch import prefetch_row

__all__ = ["add_uses", "find_slots", "pack_records", "score_slots", "take_records", "unpack_records"]

CHUNK = 512  # rows per task of a thread
NEVER = np.float32(-1e30)

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Bytes = npt.NDArray[np.uint8]
Records = npt.NDArray[Any]


@kernel(parallel=True)
def find_slots(where: Int32s, rows: Int64s, out: Int64s) -> None:
    """`where` of rows [U]; negative row numbers stay as they are."""
    at = where.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(at, 4, rows, u)
            out[u] = rows[u] if rows[u] < 0 else where[rows[u]]


@kernel()
def take_records(weights: Bytes, state: Bytes, slots: Int64s, out: Bytes) -> None:
    """Copy weights uint8 [S, A] and state uint8 [S, B] of slots [R] to records uint8 [R, A + B]."""
    width, rest = weights.shape[1], state.shape[1]
    for r in range(len(slots)):
        for i in range(width):
            out[r, i] = weights[slots[r], i]
        for i in range(rest):
            out[r, width + i] = state[slots[r], i]


@kernel()
def pack_records(records: Bytes, order: Int64s, rows: Int64s, uses: Float32s, pages: Bytes, per_page: int) -> None:
    """Write records in an order into pages, with a header of their row numbers and uses; unused places have row 0."""
    width = records.shape[1]
    for p in range(len(pages)):
        page, first = pages[p], p * per_page
        numbers, last_uses = page[: 4 * per_page].view(np.int32), page[4 * per_page : 8 * per_page].view(np.float32)
        for j in range(per_page):
            if first + j >= len(order):
                numbers[j] = 0
                continue
            r = order[first + j]
            numbers[j], last_uses[j] = rows[r], uses[r]
            begin = 8 * per_page + j * width
            for i in range(width):
                page[begin + i] = records[r, i]


@kernel()
def unpack_records(
    pages: Bytes,
    places: Int64s,
    per_page: int,
    rows: Int64s,
    slots: Int64s,
    weights: Bytes,
    state: Bytes,
    uses: Float32s,
) -> int:
    """Copy the records of rows [R] at places [R] (page n + j) of some pages, and their uses, to slots [R].

    Returns:
        -1, or the place of a record that is not that of its row.
    """
    width, rest = weights.shape[1], state.shape[1]
    for r in range(len(places)):
        page, j, slot = pages[places[r] // per_page], places[r] % per_page, slots[r]
        if page[: 4 * per_page].view(np.int32)[j] != rows[r]:
            return int(places[r])
        uses[slot] = page[4 * per_page : 8 * per_page].view(np.float32)[j]
        begin = 8 * per_page + j * (width + rest)
        for i in range(width):
            weights[slot, i] = page[begin + i]
        for i in range(rest):
            state[slot, i] = page[begin + width + i]
    return -1


@kernel()
def add_uses(uses: Float32s, slots: Int64s, now: np.float32) -> None:
    """Add a use at a time to slots [U]: log2(2^use + 2^now)."""
    for u in range(len(slots)):
        slot = slots[u]
        if slot > 0:
            most, least = max(uses[slot], now), min(uses[slot], now)
            uses[slot] = most + np.log2(np.float32(1.0) + np.exp2(least - most))


@kernel()
def score_slots(
    row_of: Int32s, uses: Float32s, due: Int32s, pending: Int32s, first: int, clock: int, out: Float64s
) -> None:
    """How much slots `first` to `first` + W - 1 are worth keeping, float64 [W], around the end of the arrays.

    Least of all one that is not due, by its use; then the one that is due last. Empty ones and those that are being
    filled cannot leave: infinity.
    """
    for i in range(len(out)):
        slot = (first + i) % len(row_of)
        if row_of[slot] == 0 or pending[slot] != 0 or due[slot] == np.int32(2**31 - 1):
            out[i] = np.inf
        elif due[slot] <= clock:
            out[i] = uses[slot]
        else:
            out[i] = 1e15 - due[slot]
