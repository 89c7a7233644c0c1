"""Miss-ratio curves: how many rows of a step one trainer's cache lacks, for every cache size, in one pass.

A cache holds the rows of the step before any of them is used, so a row that it lacks is a miss wherever it is in the
batch, and rows of the step are not evicted in it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.replay.stream import Int32s, Int64s, RowStream

__all__ = ["MissCurve", "belady_misses", "lru_distances", "miss_curve"]


@dataclass(frozen=True, eq=False)
class MissCurve:
    """Misses of one trainer's cache, by its size.

    Attributes:
        sizes: int64 [n], rows of cache.
        lru: int64 [n], misses of an LRU cache over the whole stream.
        belady: int64 [n], the fewest misses of any cache.
        num_reads: Rows that all steps read.
        num_distinct: Distinct rows: misses of any cache that starts empty.
    """

    sizes: Int64s
    lru: Int64s
    belady: Int64s
    num_reads: int
    num_distinct: int


def miss_curve(stream: RowStream, sizes: Sequence[int]) -> MissCurve:
    """Misses for some cache sizes.

    Args:
        stream: The stream, as one trainer reads it.
        sizes: Rows of cache; at least the rows of the largest batch.
    """
    distances = lru_distances(stream)
    num_reads = len(distances)
    seen = np.sort(distances[distances > 0])
    lru = num_reads - np.searchsorted(seen, np.asarray(sizes), side="right")
    belady = [belady_misses(stream, size) for size in sizes]
    return MissCurve(
        np.asarray(sizes, dtype=np.int64), lru, np.array(belady, dtype=np.int64), num_reads, num_reads - len(seen)
    )


def lru_distances(stream: RowStream) -> Int64s:
    """Stack distance of every read, batch by batch, in the order of `GlobalBatch.rows` (Mattson et al., 1970).

    An LRU cache of C rows holds a row before a step exactly if its distance is at most C: the number of distinct rows
    used since its last use, with itself. The count is a sum in a Fenwick tree over all reads, so a read costs
    O(log reads).

    Returns:
        int64 [reads]; 0 for the first use of a row.
    """
    rows = np.concatenate([batch.rows for batch in stream.batches])
    ends = np.cumsum([len(batch.rows) for batch in stream.batches])
    out = np.empty(len(rows), dtype=np.int64)
    _distances(rows, ends, np.full(stream.num_rows, -1, dtype=np.int64), out)
    return out


def belady_misses(stream: RowStream, size: int) -> int:
    """Misses of a cache of `size` rows that evicts the farthest next use.

    Only the number of resident rows with each next use matters, not which rows they are.
    """
    num_batches = len(stream)
    resident = np.zeros(num_batches + 1, dtype=np.int64)  # by next use; the last is never
    num_resident = misses = 0
    for batch in stream.batches:
        hits = int(resident[batch.number])
        misses += len(batch.rows) - hits
        resident[batch.number] = 0
        num_resident -= hits
        excess = num_resident + len(batch.rows) - size
        last = num_batches
        while excess > 0 and last > batch.number:
            leaving = min(excess, int(resident[last]))
            resident[last] -= leaving
            num_resident -= leaving
            excess -= leaving
            last -= 1
        next_uses = np.minimum(batch.next_use, num_batches)
        resident += np.bincount(next_uses, minlength=num_batches + 1)
        num_resident += len(batch.rows)
    return misses


@kernel()
def _add(tree: Int32s, place: int, value: int) -> None:
    place += 1
    while place < len(tree):
        tree[place] += value
        place += place & -place


@kernel()
def _sum_before(tree: Int32s, place: int) -> int:
    total = 0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total


@kernel()
def _distances(rows: Int32s, ends: npt.NDArray[np.int64], last_read: Int64s, out: Int64s) -> None:
    tree = np.zeros(len(rows) + 1, dtype=np.int32)  # 1 at the last read of each row
    num_seen = 0
    begin = 0
    for end in ends:
        for read in range(begin, end):  # all rows of a batch, before any of them is used again
            last = last_read[rows[read]]
            out[read] = 0 if last < 0 else num_seen - _sum_before(tree, last)
        for read in range(begin, end):
            last = last_read[rows[read]]
            if last < 0:
                num_seen += 1
            else:
                _add(tree, last, -1)
            _add(tree, read, 1)
            last_read[rows[read]] = read
        begin = end
