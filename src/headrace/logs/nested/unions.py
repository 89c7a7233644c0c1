"""Unions: the shifting lists of a session, stored once as slices of one list.

A history that gains a new id and loses its oldest from row to row (newest last)::

    row 0   [5, 6, 7]                   union    [5, 6, 7, 8, 9]
    row 1      [6, 7, 8]                start      0, 1, 2
    row 2         [7, 8, 9]             length     3, 3, 3

A list that does not overlap with the end of the union is appended completely. With the newest id first, rows are
processed from last to first.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.compiling import kernel
from headrace.logs.gathering import gather, list_parts
from headrace.logs.nested.changes import codes_of

__all__ = ["Unions", "make_unions"]

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]


class Unions(NamedTuple):
    """Lists as slices.

    Attributes:
        values: `list` array with the union of each session.
        starts: int32 [lists], start of each list in its session's union; 0 for an empty list.
        lengths: int32 [lists].
        valid: bool [lists], or None if no list is null.
    """

    values: pa.ListArray
    starts: npt.NDArray[np.int32]
    lengths: npt.NDArray[np.int32]
    valid: npt.NDArray[np.bool_] | None


def make_unions(lists: pa.Array, session_offsets: npt.NDArray[np.int64], *, newest_first: bool) -> Unions:
    """Find the union of each session's lists.

    Args:
        lists: List array; lists of a session are consecutive and in time order.
        session_offsets: int64 [sessions + 1], start of each session's lists.
        newest_first: Whether lists grow at the front.
    """
    starts, lengths, elements, valid = list_parts(lists)
    positions = np.empty(int(lengths.sum()), dtype=np.int64)
    union_offsets = np.empty(len(session_offsets), dtype=np.int32)
    slice_starts = np.empty(len(lists), dtype=np.int32)
    codes = codes_of(elements)
    total = _find_unions(codes, starts, lengths, session_offsets, newest_first, positions, union_offsets, slice_starts)
    values = gather(elements, positions[:total])
    unions = pa.ListArray.from_arrays(pa.array(union_offsets), values)
    return Unions(unions, slice_starts, lengths.astype(np.int32), valid)


@kernel()
def _find_unions(
    codes: npt.NDArray[np.generic],
    starts: Ints,
    lengths: Ints,
    session_offsets: npt.NDArray[np.int64],
    newest_first: bool,
    positions: npt.NDArray[np.int64],
    union_offsets: npt.NDArray[np.int32],
    slice_starts: npt.NDArray[np.int32],
) -> int:
    """Write the positions in `codes` of each union's elements; returns their number."""
    end = 0
    union_offsets[0] = 0
    for s in range(len(session_offsets) - 1):
        begin = end
        before = end  # start of the previous list: earlier elements are not considered
        for k in range(session_offsets[s + 1] - session_offsets[s]):
            i = session_offsets[s + 1] - 1 - k if newest_first else session_offsets[s] + k
            length, start = int(lengths[i]), int(starts[i])
            if length == 0:
                slice_starts[i] = 0
                continue
            at = before
            while at < end:
                overlap = min(length, end - at)
                j = 0
                while j < overlap and codes[positions[at + j]] == codes[start + j]:
                    j += 1
                if j == overlap:
                    break
                at += 1
            for j in range(end - at, length):
                positions[at + j] = start + j
            end = max(end, at + length)
            slice_starts[i] = at - begin
            before = at
        union_offsets[s + 1] = end
    return end
