"""Restores the state of a table group from a chain of segments."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.merging import merged_blocks
from headrace.embeddings.changes.segments import Segment, SegmentEntry
from headrace.embeddings.storage.unnamed_files import MappedArray

__all__ = ["restored_state"]

MAPPED_ABOVE = 1 / 4
"""Part of the memory that is free above which restored columns are in unnamed files, which the system can page out."""


def restored_state(
    folder: Path, chain: Sequence[SegmentEntry], whole: Mapping[str, npt.NDArray[Any]], *, free_bytes: int
) -> Columns:
    """The columns of a saved table group, without `rows` if its delta had none.

    Args:
        folder: Folder of the segments.
        chain: The segments, oldest first, of which the first one is a base.
        whole: Columns that are not by key.
        free_bytes: Memory that is free.

    Raises:
        TornCheckpoint: A segment is damaged; the text has the place.
    """
    assert chain[0].is_base
    segments = [Segment(folder, entry) for entry in chain]
    rows = _collected(segments, "rows", folder, free_bytes)
    waiting = _collected(segments, "waiting", folder, free_bytes)
    waits = np.flatnonzero(waiting["sightings"])
    pending = {f"pending.{name}": column[waits] for name, column in waiting.items()}
    if "rows" in rows:  # a row number per row: the group wants them ascending
        order = np.argsort(rows["rows"])
        rows = {name: column[order] for name, column in rows.items()}
    return {**whole, **rows, **pending}


def _collected(segments: Sequence[Segment], section: str, folder: Path, free_bytes: int) -> Columns:
    """All rows of a section, ascending by (table, id)."""
    blocks = [block for segment in segments for block in segment.blocks_of(section)]
    num_rows = sum(block.num_rows for block in blocks)
    shapes: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, (about, *_) in blocks[0].columns.items():
        shapes[name] = about.dtype, (num_rows,) if about.width is None else (num_rows, about.width)
    num_bytes = sum(np.dtype(dtype).itemsize * int(np.prod(shape)) for dtype, shape in shapes.values())
    is_mapped = num_bytes > MAPPED_ABOVE * free_bytes
    columns = {
        name: MappedArray(folder, shape, dtype, random=False).array if is_mapped else np.empty(shape, dtype=dtype)
        for name, (dtype, shape) in shapes.items()
    }
    first = 0
    for block in merged_blocks(segments, section):
        last = first + len(block["ids"])
        for name, column in block.items():
            columns[name][first:last] = column
        first = last
    return {name: column[:first] for name, column in columns.items()}
