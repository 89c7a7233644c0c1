"""Merges segments: each id once, at its last change. Streams blocks, so that memory does not grow with the tables."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import SECTIONS, Columns
from headrace.embeddings.changes.newest_rows import newest_rows
from headrace.embeddings.changes.segments import BLOCK_ROWS, Segment, SegmentEntry, SegmentWriter

__all__ = ["merge_segments", "merged_blocks"]


def merge_segments(folder: Path, entries: Sequence[SegmentEntry], name: str) -> SegmentEntry:
    """Merge adjacent segments, oldest first, into a new file of the same folder; returns its entry.

    Weights stay int8 if they are so in all of the segments; they keep their values.

    Raises:
        TornCheckpoint: A segment is damaged.
        CheckpointError: The file cannot be written.
    """
    segments = [Segment(folder, entry) for entry in entries]
    is_base = entries[0].is_base
    encodings = {encoding for segment in segments for encoding in segment.encodings_of_weights}
    with SegmentWriter(folder / name, as_int8=encodings == {"int8"}) as writer:
        for section in SECTIONS:
            writer.add(section, segments[0].empty(section))
            if section == "removed" and is_base:
                continue  # a base has nothing earlier that could be taken out
            for columns in merged_blocks(segments, section):
                waits = columns["sightings"] > 0 if section == "waiting" and is_base else slice(None)
                writer.add(section, {key: column[waits] for key, column in columns.items()})
    return writer.entry(entries[0].first, entries[-1].last, is_base=is_base)


def merged_blocks(segments: Sequence[Segment], section: str) -> Iterator[Columns]:
    """The last state of each key of a section, ascending by (table, id), in blocks that are full but for the last one.

    Args:
        segments: Adjacent segments, oldest first.
        section: One of `SECTIONS`. Of `rows`, those that a later segment removes are left out.

    Raises:
        TornCheckpoint: A segment is damaged.
    """
    room, count = 0, 0
    columns = segments[0].empty(section) if segments else {}
    with closing(newest_rows(segments, section)) as steps:
        for step in steps:
            filled = count + len(step.ids)
            if filled > room:
                room = 2 * filled
                columns = {name: _grown(column[:count], room) for name, column in columns.items()}
            for name, column in columns.items():
                step.copy_to(name, column[count:filled])
            full = filled - filled % BLOCK_ROWS
            if full:
                yield {name: column[:full] for name, column in columns.items()}
                columns = {name: _grown(column[full:filled], room) for name, column in columns.items()}
            count = filled - full
    if count:
        yield {name: column[:count] for name, column in columns.items()}


def _grown(column: npt.NDArray[Any], num_rows: int) -> npt.NDArray[Any]:
    grown = np.empty((num_rows, *column.shape[1:]), column.dtype)
    grown[: len(column)] = column
    return grown
