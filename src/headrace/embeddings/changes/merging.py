"""Merges segments: each id once, at its last change. Streams blocks, so that memory does not grow with the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import SECTIONS, Columns
from headrace.embeddings.changes.segments import Block, Segment, SegmentEntry, SegmentWriter

__all__ = ["merge_segments", "merged_blocks"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Removed = dict[int, Int64s]
"""Ids by table, ascending."""


def merge_segments(folder: Path, entries: Sequence[SegmentEntry], name: str) -> SegmentEntry:
    """Merge adjacent segments, oldest first, into a new file of the same folder; returns its entry.

    Raises:
        TornCheckpoint: A segment is damaged.
        CheckpointError: The file cannot be written.
    """
    segments = [Segment(folder, entry) for entry in entries]
    is_base = entries[0].is_base
    with SegmentWriter(folder / name) as writer:
        for section in SECTIONS:
            writer.add(section, segments[0].empty(section))
            if section == "removed" and is_base:
                continue  # a base has nothing earlier that could be taken out
            for block in merged_blocks(segments, section):
                waits = block["sightings"] > 0 if section == "waiting" and is_base else slice(None)
                writer.add(section, {key: column[waits] for key, column in block.items()})
    return writer.entry(entries[0].first, entries[-1].last, is_base=is_base)


def merged_blocks(segments: Sequence[Segment], section: str) -> Iterator[Columns]:
    """The last state of each key of a section, ascending by (table, id), in blocks of any size.

    Args:
        segments: Adjacent segments, oldest first.
        section: One of `SECTIONS`. Of `rows`, those that a later segment removes are left out.
    """
    newest_first = list(reversed(segments))
    removed = [_removed_by(segment) for segment in newest_first] if section == "rows" else []
    pending = [_Runs(segment, section) for segment in newest_first]
    names = next((list(block.columns) for segment in segments for block in segment.blocks_of(section)), [])
    while heads := [(place, runs) for place, runs in enumerate(pending) if runs.head is not None]:
        table = min(runs.table for _, runs in heads)
        heads = [(place, runs) for place, runs in heads if runs.table == table]
        until = min(int(runs.ids[-1]) for _, runs in heads)
        taken = [(place, runs.take(until)) for place, runs in heads]
        parts = [_without_removed(part, removed[:place], table) for place, part in taken]
        parts = [part for part in parts if len(part.places)]
        if parts:
            yield _newest(parts, names)


class _OpenBlock:
    """A block of a segment, each column of which is read and checked once, when it is first needed."""

    def __init__(self, segment: Segment, block: Block, tables: Int32s, ids: Int64s) -> None:
        self._segment, self._block = segment, block
        self.tables, self.ids = tables, ids
        self._columns: Columns = {"tables": tables, "ids": ids}

    def column(self, name: str) -> npt.NDArray[Any]:
        """A column of all rows."""
        if name not in self._columns:
            self._columns[name] = self._segment.read(self._block, name)
        return self._columns[name]


@dataclass(frozen=True)
class _Part:
    """Some rows of a block: `places` [R], ascending, with their ids."""

    block: _OpenBlock
    places: Int64s
    ids: Int64s


class _Runs:
    """A cursor over a section of a segment: runs of ascending ids of one table.

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

    def take(self, until: int) -> _Part:
        """Take the ids of the run up to one."""
        assert self.head is not None
        count = int(np.searchsorted(self.ids, until, side="right"))
        part = _Part(self.head, np.arange(self._start, self._start + count), self.ids[:count])
        self._start += count
        self.ids = self.ids[count:]
        if not len(self.ids):
            if self._start == len(self.head.ids):
                self.head, self._start = next(self._blocks, None), 0
            self._open_run()
        return part

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


def _without_removed(part: _Part, newer: Sequence[Removed], table: int) -> _Part:
    """The rows that no newer segment removes."""
    places, ids = part.places, part.ids
    for removed in newer:
        if table in removed and len(ids):
            gone = removed[table]
            found = np.minimum(np.searchsorted(gone, ids), len(gone) - 1)
            kept = np.flatnonzero(gone[found] != ids)
            places, ids = places[kept], ids[kept]
    return _Part(part.block, places, ids)


def _newest(parts: Sequence[_Part], names: Sequence[str]) -> Columns:
    """The rows of parts of one table, newest first; of an id that is in several, only the first."""
    if len(parts) == 1:
        return {name: _take(parts[0], name) for name in names}
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids, kind="stable")  # of sorted runs: they are merged
    is_first = np.ones(len(ids), dtype=np.bool_)
    is_first[1:] = np.diff(ids[order]) != 0
    order = order[is_first]
    return {name: np.take(np.concatenate([_take(part, name) for part in parts]), order, axis=0) for name in names}


def _take(part: _Part, name: str) -> npt.NDArray[Any]:
    """A column of a part, without a copy if its rows are adjacent."""
    column = part.block.column(name)
    first, last = int(part.places[0]), int(part.places[-1]) + 1
    return column[first:last] if last - first == len(part.places) else np.take(column, part.places, axis=0)
