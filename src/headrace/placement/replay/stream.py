"""`RowStream`: the input of a replay: for every global batch, which rows its samples use, and when each is used next.

Rows are numbered densely from 0, in any order; a replay never needs tables or ids. A batch of two samples::

    sample 0 uses rows 4, 9        starts = [0, 2, 5]
    sample 1 uses rows 9, 1, 3     values = [4, 9, 9, 1, 3]        rows = [4, 9, 1, 3]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.errors import ConfigError
from headrace.placement.joining import popcount
from headrace.placement.key_entries import NEVER

__all__ = ["NEVER", "GlobalBatch", "RowStream", "Samples", "popcounts", "readers_of"]

Int8s = npt.NDArray[np.int8]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]

Samples = tuple[Int64s, Int32s]
"""Samples of a batch: starts int64 [B + 1], and rows int32 [N], each row once per sample."""


@dataclass(frozen=True, eq=False)
class GlobalBatch:
    """One global batch, which all trainers share.

    Attributes:
        number: Position in the stream.
        starts: int64 [B + 1], where the rows of each sample begin.
        values: int32 [N], rows of the samples, each once per sample.
        rows: int32 [U], the unique rows, in the order of first occurrence.
        next_use: int32 [U], number of the next batch that uses each row, or `NEVER`.
    """

    number: int
    starts: Int64s
    values: Int32s
    rows: Int32s
    next_use: Int32s

    @property
    def num_samples(self) -> int:
        """Number of samples B."""
        return len(self.starts) - 1


@dataclass(frozen=True, eq=False)
class RowStream:
    """A sequence of global batches of equal size.

    Attributes:
        batches: The batches.
        num_rows: Rows are numbered from 0 to `num_rows` - 1.
    """

    batches: tuple[GlobalBatch, ...]
    num_rows: int

    @classmethod
    def of(cls, samples: Iterable[Samples], num_rows: int) -> RowStream:
        """Make a stream from the samples of each batch.

        Raises:
            ConfigError: There are no batches, or their sizes differ.
        """
        samples = list(samples)
        sizes = {len(starts) - 1 for starts, _ in samples}
        if len(sizes) != 1:
            raise ConfigError(f"stream: batches of {sorted(sizes)} samples, expected one or more of equal size")
        stamps = np.full(num_rows, -1, dtype=np.int32)
        unique = [_unique(values, stamps, number) for number, (_, values) in enumerate(samples)]
        following = np.full(num_rows, NEVER, dtype=np.int32)
        next_uses = []
        for number in reversed(range(len(unique))):
            next_uses.append(following[unique[number]])
            following[unique[number]] = number
        parts = zip(samples, unique, reversed(next_uses), strict=True)
        batches = (
            GlobalBatch(number, starts, values, rows, next_use)
            for number, ((starts, values), rows, next_use) in enumerate(parts)
        )
        return cls(tuple(batches), num_rows)

    def __len__(self) -> int:
        return len(self.batches)

    @property
    def num_samples(self) -> int:
        """Samples per batch."""
        return self.batches[0].num_samples

    @cached_property
    def num_used(self) -> int:
        """Number of distinct rows that occur."""
        return sum(int(np.count_nonzero(batch.next_use == NEVER)) for batch in self.batches)

    def samples(self) -> Sequence[Samples]:
        """Samples of each batch, for `RowStream.of`."""
        return [(batch.starts, batch.values) for batch in self.batches]

    def of_trainer(self, trainer: int, num_trainers: int) -> RowStream:
        """The stream of one trainer that gets an equal slice of every batch."""
        share = self.num_samples // num_trainers
        first, last = trainer * share, (trainer + 1) * share
        slices = (
            (
                batch.starts[first : last + 1] - batch.starts[first],
                batch.values[batch.starts[first] : batch.starts[last]],
            )
            for batch in self.batches
        )
        return RowStream.of(slices, self.num_rows)

    def resident_rows(self, window: int) -> Int64s:
        """int64 [batches], the rows of each batch, and those that were used before and are again in the window.

        A cache of so many rows misses none that the window could have kept.
        """
        change = np.zeros(len(self) + 1, dtype=np.int64)
        for batch in self.batches:  # between two uses at most `window` batches apart, a row waits
            ends = batch.next_use[batch.next_use <= batch.number + window]
            change[batch.number + 1] += len(ends)
            change -= np.bincount(ends, minlength=len(self) + 1)
        own = np.array([len(batch.rows) for batch in self.batches], dtype=np.int64)
        return np.cumsum(change)[:-1] + own

    def distinct_rows(self, num_batches: int) -> Int64s:
        """int64, the number of distinct rows in each range of `num_batches` adjacent batches (at least one range)."""
        num_batches = min(num_batches, len(self))
        last_seen = np.full(self.num_rows, -1, dtype=np.int64)
        first_in_range = np.zeros(len(self) + 1, dtype=np.int64)
        for batch in self.batches:  # a row is new in ranges that begin after its previous use and include this batch
            begin = np.maximum(last_seen[batch.rows] + 1, batch.number - num_batches + 1)
            begin = np.maximum(begin, 0)
            first_in_range[: batch.number + 1] += np.cumsum(np.bincount(begin, minlength=batch.number + 1))
            last_seen[batch.rows] = batch.number
        return first_in_range[: len(self) - num_batches + 1]


@kernel()
def popcounts(bits: Int64s) -> Int64s:
    """int64 [n], number of trainers in each set of int64 [n]."""
    out = np.empty(len(bits), dtype=np.int64)
    for i in range(len(bits)):
        out[i] = popcount(bits[i])
    return out


@kernel()
def _unique(values: Int32s, stamps: Int32s, stamp: int) -> Int32s:
    """The unique values in the order of first occurrence; marks them with the stamp."""
    out = np.empty(len(values), dtype=np.int32)
    count = 0
    for value in values:
        if stamps[value] != stamp:
            stamps[value] = stamp
            out[count] = value
            count += 1
    return out[:count].copy()


@kernel()
def readers_of(
    starts: Int64s, values: Int32s, rows: Int32s, assignment: Int8s, bits: Int64s, counts: Int32s
) -> tuple[Int64s, Int32s]:
    """Trainers that read each row of a batch, and how many samples use it.

    Args:
        starts: int64 [B + 1], see `GlobalBatch`.
        values: int32 [N].
        rows: int32 [U].
        assignment: int8 [B], trainer of each sample.
        bits: int64 zeros, one per row of the stream; zeros again afterwards.
        counts: int32 zeros, likewise.

    Returns:
        int64 [U], trainer w as bit w, and int32 [U], numbers of samples.
    """
    for sample in range(len(starts) - 1):
        bit = np.int64(1) << np.int64(assignment[sample])
        for place in range(starts[sample], starts[sample + 1]):
            bits[values[place]] |= bit
            counts[values[place]] += 1
    readers = np.empty(len(rows), dtype=np.int64)
    num_samples = np.empty(len(rows), dtype=np.int32)
    for u in range(len(rows)):
        row = rows[u]
        readers[u], num_samples[u] = bits[row], counts[row]
        bits[row], counts[row] = 0, 0
    return readers, num_samples
