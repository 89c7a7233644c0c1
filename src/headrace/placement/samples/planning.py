"""`SamplePlanner`: gives the samples of each global batch to trainers, from the keys of all its samples. Pure.

All trainers plan from the same keys, and so decide alike. A row is expected where it was read last: with one reader it
is there, with several at one of them, and each can become its owner. So the plan of a batch depends on the keys of the
batches before it alone, and not on how far ahead a pipeline is, or on which rows had to leave, and a run can be
repeated. Rows that were not read for long are forgotten, because they have left most likely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.placement.joining import join_entries
from headrace.placement.key_entries import KeyEntries
from headrace.placement.samples.assignment import SampleRows, place_samples
from headrace.placement.samples.sample_keys import SampleKeys

__all__ = ["KEY_BYTES", "SamplePlan", "SamplePlanner", "ToldBatch", "row_prices"]

KEY_BYTES = 80
"""Bytes of a row that is remembered, at most, if the hash table has just grown."""

Int8s = npt.NDArray[np.int8]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


def row_prices(num_trainers: int, move_bytes: int, use_bytes: int) -> Int64s:
    """Bytes that a row costs in a step, with one owner.

    If no reader has it, it moves to one, or is used from afar. Each other reader gets its value and sends a gradient. A
    row that no trainer has comes from the shards in any case.

    Args:
        num_trainers: Number of trainers W.
        move_bytes: Bytes of a row with its state.
        use_bytes: Bytes of a value and a gradient.

    Returns:
        int64 [W + 1, W + 1, W + 1], see `place_samples`.
    """
    held, read, both = np.ogrid[: num_trainers + 1, : num_trainers + 1, : num_trainers + 1]
    moved = np.where((held > 0) & (both == 0), min(move_bytes, use_bytes), 0)
    prices: Int64s = np.where(read == 0, 0, moved + (read - 1) * use_bytes).astype(np.int64)
    return prices


@dataclass(frozen=True, eq=False)
class ToldBatch:
    """What all trainers know of one trainer's part of a global batch.

    Attributes:
        keys: For each key layout, the keys of its samples.
        sample_bytes: About how many bytes a sample has, if it moves.
        form: Which groups of features it has; samples can only move between parts of equal form.
    """

    keys: tuple[SampleKeys, ...]
    sample_bytes: int
    form: int

    @property
    def num_samples(self) -> int:
        """Number of samples."""
        return self.keys[0].num_samples


@dataclass(frozen=True, eq=False)
class SamplePlan:
    """Who trains the samples of a global batch.

    Attributes:
        assignment: int8 [S], the trainer of each sample, first those of trainer 0's part, then those of trainer 1's.
        shares: int64 [W], the number of samples of each trainer, which is that of its own part.
        keys: For each key layout, the unique keys of each trainer's samples, with their counts.
    """

    assignment: Int8s
    shares: Int64s
    keys: tuple[tuple[Keys, ...], ...]

    def samples(self, source: int, target: int) -> Int64s:
        """Positions in one trainer's part of the samples that another, or itself, trains."""
        start = int(self.shares[:source].sum())
        return np.flatnonzero(self.assignment[start : start + self.shares[source]] == target)

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return self.assignment.nbytes + sum(keys.num_bytes for parts in self.keys for keys in parts)


class SamplePlanner:
    """Plans the global batches of W trainers, in order.

    Args:
        prices: For each key layout, int64 [W + 1, W + 1, W + 1], see `row_prices`.
        max_keys: Rows of each layout that are remembered; those of one batch always are.
    """

    def __init__(self, prices: Sequence[Int64s], max_keys: int) -> None:
        self._prices = np.stack(prices)
        self._last = [_LastReaders(max_keys) for _ in prices]

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return sum(last.num_bytes for last in self._last)

    def plan(self, parts: Sequence[ToldBatch]) -> SamplePlan:
        """Plan the next global batch.

        Args:
            parts: The parts of all trainers.
        """
        shares = np.array([part.num_samples for part in parts], dtype=np.int64)
        joint = [last.join([part.keys[number] for part in parts]) for number, last in enumerate(self._last)]
        if len({part.form for part in parts}) == 1:
            assignment = self._assign(joint, shares, np.array([part.sample_bytes for part in parts]))
        else:
            assignment = np.repeat(np.arange(len(parts), dtype=np.int8), shares)
        keys = []
        for each, last in zip(joint, self._last, strict=True):
            counts = np.zeros((len(each.entries), len(parts)), dtype=np.int32)
            _count(*each.rows, each.times, assignment, counts)
            keys.append(tuple(each.keys_with(counts[:, trainer]) for trainer in range(len(parts))))
            last.record(each.entries, (counts > 0) @ (np.int64(1) << np.arange(len(parts))))
        return SamplePlan(assignment, shares, tuple(keys))

    def _assign(self, joint: Sequence[_Joint], shares: Int64s, sample_bytes: Int64s) -> Int8s:
        rows, prices_of = _side_by_side([each.rows for each in joint], [len(each.entries) for each in joint])
        holders = [last.readers(each.entries) for each, last in zip(joint, self._last, strict=True)]
        origin = np.repeat(np.arange(len(shares)), shares)
        moves = np.where(np.arange(len(shares)) == origin[:, None], 0, sample_bytes[origin][:, None])
        return place_samples(rows, np.concatenate(holders), self._prices, shares, prices_of=prices_of, moves=moves)


@dataclass(frozen=True, eq=False)
class _Joint:
    """The keys of all samples of a global batch, of one layout.

    Attributes:
        entries: int32 [U], entries of the distinct keys, with tables ascending.
        keys: These keys.
        rows: The rows of each sample, as positions among them.
        times: int32 [M], how often it has each.
    """

    entries: Int32s
    keys: Keys
    rows: SampleRows
    times: Int32s

    def keys_with(self, counts: Int32s) -> Keys:
        """Those of the keys that have a count."""
        places = np.flatnonzero(counts)
        return Keys(self.keys.tables[places], self.keys.ids[places], counts[places])


class _LastReaders:
    """The trainers that read each key last, of the keys that were read most recently.

    Args:
        max_keys: Number of keys from which on those of the oldest batches are forgotten.
    """

    def __init__(self, max_keys: int) -> None:
        self._max_keys = max_keys
        self._entries = KeyEntries()
        self._readers: Int64s = np.zeros(0, dtype=np.int64)
        self._marks: Int32s = np.zeros(0, dtype=np.int32)
        self._batches: deque[tuple[int, Int32s]] = deque()  # by number, with the entries of their keys
        self._num_listed = 0  # entries of all of them
        self._number = 0

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        own = self._readers.nbytes + self._marks.nbytes + sum(entries.nbytes for _, entries in self._batches)
        return self._entries.num_bytes + own

    def join(self, parts: Sequence[SampleKeys]) -> _Joint:
        """The keys of the next global batch, of which each trainer has a part."""
        found = [self._entries.add(part.keys) for part in parts]
        missing = len(self._entries.records) - len(self._readers)
        if missing > 0:
            self._readers = np.concatenate([self._readers, np.zeros(missing, dtype=np.int64)])
            self._marks = np.zeros(len(self._readers), dtype=np.int32)
        entries, places, _ = join_entries(found, self._marks)
        keys = self._entries.keys_of(entries)
        order = np.argsort(keys.tables, kind="stable")
        rank = np.empty(len(order), dtype=np.int32)
        rank[order] = np.arange(len(order), dtype=np.int32)
        starts, values, times, end = [np.zeros(1, dtype=np.int64)], [], [], 0
        for part, place in zip(parts, places, strict=True):
            rows, often = part.rows()
            starts.append(end + rows.starts[1:])
            values.append(rank[place][rows.values])
            times.append(often)
            end += len(rows.values)
        joined = SampleRows(np.concatenate(starts), np.concatenate(values))
        return _Joint(entries[order], keys.take(order), joined, np.concatenate(times))

    def readers(self, entries: Int32s) -> Int64s:
        """int64 [U], the trainers that read some keys last, as bits; 0 if that is not known."""
        return np.where(self._entries.column("last_use")[entries] >= 0, self._readers[entries], 0)

    def record(self, entries: Int32s, readers: Int64s) -> None:
        """Record that trainers, int64 [U] as bits, read some keys in the next batch."""
        self._readers[entries] = readers
        self._entries.column("last_use")[entries] = self._number
        self._batches.append((self._number, entries))
        self._num_listed += len(entries)
        while self._entries.num_entries > self._max_keys and len(self._batches) > 1:
            number, oldest = self._batches.popleft()
            self._num_listed -= len(oldest)
            self._entries.remove(self._not_read_since(number, oldest))
        if self._num_listed > 2 * self._entries.num_entries:
            listed = [(number, self._not_read_since(number, entries)) for number, entries in self._batches]
            self._batches = deque((number, entries) for number, entries in listed if len(entries))
            self._num_listed = sum(len(entries) for _, entries in self._batches)
        self._number += 1

    def _not_read_since(self, number: int, entries: Int32s) -> Int32s:
        """Those of a batch's entries that no later batch has read."""
        newest: Int32s = entries[self._entries.column("last_use")[entries] == number]
        return newest


def _side_by_side(rows: Sequence[SampleRows], num_rows: Sequence[int]) -> tuple[SampleRows, Int32s]:
    """The rows of samples in several layouts, numbered one layout after the other, and the layout of each row."""
    layout_of = np.repeat(np.arange(len(rows), dtype=np.int32), num_rows)
    if len(rows) == 1:
        return rows[0], layout_of
    sizes = [np.diff(each.starts) for each in rows]
    starts = np.concatenate([[0], np.cumsum(sum(sizes))])
    values = np.empty(starts[-1], dtype=np.int32)
    at = starts[:-1].copy()
    for each, size, first in zip(rows, sizes, np.cumsum([0, *num_rows]), strict=False):
        offsets = np.repeat(at - each.starts[:-1], size)
        values[np.arange(len(each.values)) + offsets] = each.values + first
        at += size
    return SampleRows(starts, values), layout_of


@kernel()
def _count(starts: Int64s, values: Int32s, times: Int32s, assignment: Int8s, counts: Int32s) -> None:
    """Add how often the samples of each trainer have each row."""
    for sample in range(len(assignment)):
        for place in range(starts[sample], starts[sample + 1]):
            counts[values[place], assignment[sample]] += times[place]
