"""The newest row of each key in several segments, found from keys alone, and copied straight to where it is needed.

Segments are read side by side, ascending by (table, id), a step at a time: from each, the rows of its current block up
to the first end of a block. So memory does not depend on the size of the tables, and a column of a block is read and
checked once, when a row of it is needed, by whichever thread needs it first.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.encoding import Empty
from headrace.embeddings.changes.open_blocks import BlockReader, MappedBlocks, OpenBlock, Places, ReadBlocks
from headrace.embeddings.changes.row_kernels import find_places, merge_ids
from headrace.embeddings.changes.segments import Segment
from headrace.features.buffers import BufferPool

__all__ = ["NewestRows", "newest_rows"]

Int64s = npt.NDArray[np.int64]
SLAB_BYTES = 16 << 20
"""Bytes of memory for blocks and ids that are allocated at a time: three blocks. With less, four segments of together
100 MB took 8,000 page faults and half as long again."""
READ_ABOVE = 8 << 20
"""Bytes of a section above which a thread reads them ahead."""
Removed = dict[int, Int64s]
"""Ids by table, ascending."""


@dataclass(frozen=True)
class _Source:
    """Rows of a block from `first` on, and where each belongs in the result; see `OpenBlock.copy`."""

    block: OpenBlock
    first: int
    places: Places


@dataclass(frozen=True)
class NewestRows:
    """Rows of one table, whose ids (int64 [R]) are ascending and follow those of the step before.

    Sources are newest first. They are copied oldest first, so that newer rows replace older ones: leaving those out
    would take a branch that nobody can predict, which costs more than copying a row.
    """

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
            for source in reversed(self.sources):
                source.block.copy(name, source.first, source.places, out)


def newest_rows(segments: Sequence[Segment], section: str) -> Generator[NewestRows]:
    """The last state of each key of a section, ascending by (table, id). To be closed: that ends the thread that reads.

    Args:
        segments: Adjacent segments, oldest first.
        section: One of `SECTIONS`. Of `rows`, those that a later segment removes are left out.

    Raises:
        TornCheckpoint: A segment is damaged.
    """
    num_bytes = sum(block.num_bytes for segment in segments for block in segment.blocks_of(section))
    buffers = BufferPool(slab_bytes=SLAB_BYTES)
    reader: BlockReader = ReadBlocks(buffers) if num_bytes > READ_ABOVE else MappedBlocks()
    try:
        yield from _steps(segments, section, reader, buffers.empty)
    except BaseException:
        reader.cancel()
        raise
    finally:
        reader.close()


def _steps(segments: Sequence[Segment], section: str, reader: BlockReader, empty: Empty) -> Iterator[NewestRows]:
    newest_first = list(reversed(segments))
    opened = [reader.open(segment, section) for segment in newest_first]
    removed = [_removed_by(segment) for segment in newest_first] if section == "rows" else []
    pending = [_Cursor(blocks) for blocks in opened]
    while heads := [(place, cursor) for place, cursor in enumerate(pending) if cursor.head is not None]:
        table = min(cursor.table for _, cursor in heads)
        heads = [(place, cursor) for place, cursor in heads if cursor.table == table]
        until = min(int(cursor.ids[-1]) for _, cursor in heads)
        taken = [(place, *cursor.take(until)) for place, cursor in heads]
        kept = [_kept(ids, removed[:place], table) for place, _, _, ids in taken]
        ids, places = _merged([ids for *_, ids in taken], kept, empty)
        if len(ids):
            parts = zip(taken, places, strict=True)
            yield NewestRows(table, ids, tuple(_Source(block, first, to) for (_, block, first, _), to in parts))


class _Cursor:
    """A place in a section of a segment: the rest of a run of ascending ids of one table.

    Attributes:
        head: The block of the run; None at the end.
        table: Table of the run.
        ids: int64 [R], its ids that are left.
    """

    def __init__(self, blocks: Iterator[OpenBlock]) -> None:
        self._blocks = blocks
        self.head = next(self._blocks, None)
        self._start = 0  # of the run within the block
        self.table = 0
        self.ids: Int64s = np.empty(0, dtype=np.int64)
        self._open_run()

    def take(self, until: int) -> tuple[OpenBlock, int, Int64s]:
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
    for block in MappedBlocks().open(segment, "removed"):
        for table in np.unique(block.tables).tolist():
            found.setdefault(table, []).append(block.ids[block.tables == table])
    return {table: np.concatenate(ids) for table, ids in found.items()}


def _kept(ids: Int64s, newer: Sequence[Removed], table: int) -> Int64s | None:
    """Places of the ids that no newer segment removes; None for all."""
    places: Int64s | None = None
    for removed in newer:
        if table in removed and len(ids):
            gone = removed[table]
            places = np.arange(len(ids)) if places is None else places
            found = np.minimum(np.searchsorted(gone, ids[places]), len(gone) - 1)
            places = places[gone[found] != ids[places]]
    return places


def _merged(ids: Sequence[Int64s], kept: Sequence[Int64s | None], empty: Empty) -> tuple[Int64s, list[Places]]:
    """Merge runs of ids, newest first; returns those that are kept, and for each run where its ids are among them.

    Of an id that a later segment removes, no earlier row is kept either.
    """
    runs = [of_run if places is None else of_run[places] for of_run, places in zip(ids, kept, strict=True)]
    while len(runs) > 1:
        pairs = [runs[first : first + 2] for first in range(0, len(runs), 2)]
        runs = [_merged_two(pair[0], pair[1], empty) if len(pair) == 2 else pair[0] for pair in pairs]
    (merged,) = runs
    return merged, [_places_of(of_run, merged, empty) for of_run in ids]


def _merged_two(some: Int64s, others: Int64s, empty: Empty) -> Int64s:
    ids = empty(len(some) + len(others), np.int64)
    return ids[: merge_ids(some, others, ids)]


def _places_of(ids: Int64s, merged: Int64s, empty: Empty) -> Places:
    places = empty(len(ids), np.int64)
    if find_places(ids, merged, places):
        return slice(int(places[0]), int(places[0]) + len(ids))
    return places
