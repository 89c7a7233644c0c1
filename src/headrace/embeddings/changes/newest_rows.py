"""The newest row of each key in several segments, found from keys alone, and copied straight to where it is needed.

Segments are read side by side, ascending by (table, id), a step at a time: from each, the rows of its current block up
to the first end of a block. So memory does not depend on the size of the tables, and a column of a block is read and
checked once, when a row of it is needed, by whichever thread needs it first.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.row_kernels import as_words, copy_rows, merge_ids, number_kept
from headrace.embeddings.changes.segments import Block, Segment

__all__ = ["NewestRows", "newest_rows"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Removed = dict[int, Int64s]
"""Ids by table, ascending."""


class _OpenBlock:
    """A block of a segment, each column of which is read and checked once, when it is first needed. Thread-safe."""

    def __init__(self, segment: Segment, block: Block, tables: Int32s, ids: Int64s) -> None:
        self._segment, self._block = segment, block
        self.tables, self.ids = tables, ids
        self._columns: Columns = {}
        self._reading = threading.Lock()

    def copy(self, name: str, first: int, destinations: Int64s, out: npt.NDArray[np.generic]) -> None:
        """Copy rows from `first` on to places in `out`, except those without one."""
        with self._reading:
            if name not in self._columns:
                column = np.ascontiguousarray(self._segment.read(self._block, name))
                column.flags.writeable = False  # as views of files are: one kernel for both
                self._columns[name] = column
        rows = self._columns[name][first : first + len(destinations)]
        copy_rows(as_words(rows), destinations, as_words(out))


@dataclass(frozen=True)
class _Source:
    """Rows of a block from `first` on, and where each is in the result; -1 if it is not the newest one of its key."""

    block: _OpenBlock
    first: int
    destinations: Int64s


@dataclass(frozen=True)
class NewestRows:
    """Rows of one table, whose ids (int64 [R]) are ascending and follow those of the step before."""

    table: int
    ids: Int64s
    sources: tuple[_Source, ...]

    def copy_to(self, name: str, out: npt.NDArray[np.generic]) -> None:
        """Write a column of these rows to `out` [R] or [R, width], which is contiguous.

        Raises:
            TornCheckpoint: Its checksum does not match.
        """
        if name == "ids":
            out[:] = self.ids
        elif name == "tables":
            out[:] = self.table
        else:
            for source in self.sources:
                source.block.copy(name, source.first, source.destinations, out)


def newest_rows(segments: Sequence[Segment], section: str) -> Iterator[NewestRows]:
    """The last state of each key of a section, ascending by (table, id).

    Args:
        segments: Adjacent segments, oldest first.
        section: One of `SECTIONS`. Of `rows`, those that a later segment removes are left out.

    Raises:
        TornCheckpoint: A segment is damaged.
    """
    newest_first = list(reversed(segments))
    removed = [_removed_by(segment) for segment in newest_first] if section == "rows" else []
    pending = [_Cursor(segment, section) for segment in newest_first]
    while heads := [(place, cursor) for place, cursor in enumerate(pending) if cursor.head is not None]:
        table = min(cursor.table for _, cursor in heads)
        heads = [(place, cursor) for place, cursor in heads if cursor.table == table]
        until = min(int(cursor.ids[-1]) for _, cursor in heads)
        taken = [(place, *cursor.take(until)) for place, cursor in heads]
        kept = [_kept(ids, removed[:place], table) for place, _, _, ids in taken]
        ids, destinations = _merged([ids for *_, ids in taken], kept)
        if len(ids):
            parts = zip(taken, destinations, strict=True)
            yield NewestRows(table, ids, tuple(_Source(block, first, to) for (_, block, first, _), to in parts))


class _Cursor:
    """A place in a section of a segment: the rest of a run of ascending ids of one table.

    Attributes:
        head: The block of the run; None at the end.
        table: Table of the run.
        ids: int64 [R], its ids that are left.
    """

    def __init__(self, segment: Segment, section: str) -> None:
        self._blocks = (_OpenBlock(segment, *found) for found in segment.keys(section))
        self.head = next(self._blocks, None)
        self._start = 0  # of the run within the block
        self.table = 0
        self.ids: Int64s = np.empty(0, dtype=np.int64)
        self._open_run()

    def take(self, until: int) -> tuple[_OpenBlock, int, Int64s]:
        """Take the ids of the run up to one; returns its block, the first of the rows, and the ids."""
        assert self.head is not None
        count = int(np.searchsorted(self.ids, until, side="right"))
        taken = self.head, self._start, self.ids[:count]
        self._start += count
        self.ids = self.ids[count:]
        if not len(self.ids):
            if self._start == len(self.head.ids):
                self.head, self._start = next(self._blocks, None), 0
            self._open_run()
        return taken

    def _open_run(self) -> None:
        if self.head is not None:
            tables = self.head.tables
            self.table = int(tables[self._start])
            self.ids = self.head.ids[self._start : int(np.searchsorted(tables, self.table, side="right"))]


def _removed_by(segment: Segment) -> Removed:
    found: dict[int, list[Int64s]] = {}
    for _, tables, ids in segment.keys("removed"):
        for table in np.unique(tables).tolist():
            found.setdefault(table, []).append(ids[tables == table])
    return {table: np.concatenate(ids) for table, ids in found.items()}


def _kept(ids: Int64s, newer: Sequence[Removed], table: int) -> Int64s:
    """Places of the ids that no newer segment removes."""
    places = np.arange(len(ids))
    for removed in newer:
        if table in removed and len(ids):
            gone = removed[table]
            found = np.minimum(np.searchsorted(gone, ids[places]), len(gone) - 1)
            places = places[gone[found] != ids[places]]
    return places


def _merged(ids: Sequence[Int64s], kept: Sequence[Int64s]) -> tuple[Int64s, list[Int64s]]:
    """Merge runs of ids, newest first; returns them, and for each run where its ids are in the result."""
    starts = np.cumsum([0, *map(len, ids)])
    runs = [
        (np.ascontiguousarray(of_run[places]), places + start)
        for of_run, places, start in zip(ids, kept, starts, strict=False)
    ]
    while len(runs) > 1:  # neighbours, so that the older of two runs is never newer than a part of the other
        pairs = [runs[first : first + 2] for first in range(0, len(runs), 2)]
        runs = [_merged_two(*pair[0], *pair[1]) if len(pair) == 2 else pair[0] for pair in pairs]
    ((merged, places),) = runs
    destinations = np.empty(starts[-1], dtype=np.int64)
    number_kept(places, destinations)
    return merged, [destinations[first:last] for first, last in itertools.pairwise(starts)]


def _merged_two(newer: Int64s, newer_places: Int64s, older: Int64s, older_places: Int64s) -> tuple[Int64s, Int64s]:
    ids, places = (np.empty(len(newer) + len(older), dtype=np.int64) for _ in range(2))
    count = merge_ids(newer, newer_places, older, older_places, ids, places)
    return ids[:count], places[:count]
