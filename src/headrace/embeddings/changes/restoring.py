"""Restores the state of a table group from a chain of segments."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.newest_rows import NewestRows, newest_rows
from headrace.embeddings.changes.segments import ALIGNMENT, Segment, SegmentEntry
from headrace.embeddings.storage.unnamed_files import MappedArray
from headrace.resources.cpus import effective_cpus
from headrace.resources.memory import effective_memory

__all__ = ["restored_state"]

MAPPED_ABOVE = 1 / 4
"""Part of the memory that is free above which restored columns are in unnamed files, which the system can page out."""
SMALL_BYTES = 32 << 20
"""Bytes of the restored columns up to which they are never in files."""
THREADS_ABOVE = 16 << 20
"""Bytes of the restored columns above which threads are started for them."""


def restored_state(
    folder: Path, chain: Sequence[SegmentEntry], whole: Mapping[str, npt.NDArray[Any]], *, free_bytes: int | None = None
) -> Columns:
    """The columns of a saved table group, without `rows` if its delta had none.

    Args:
        folder: Folder of the segments.
        chain: The segments, oldest first, of which the first one is a base.
        whole: Columns that are not by key.
        free_bytes: Memory that is free; None to find out, if there are many rows.

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


def _collected(segments: Sequence[Segment], section: str, folder: Path, free_bytes: int | None) -> Columns:
    """All rows of a section, ascending by (table, id)."""
    num_rows = sum(block.num_rows for segment in segments for block in segment.blocks_of(section))
    empty = segments[0].empty(section)
    num_bytes = sum(num_rows * column.dtype.itemsize * math.prod(column.shape[1:]) for column in empty.values())
    if free_bytes is None and num_bytes > SMALL_BYTES:
        free_bytes = effective_memory().available_bytes
    is_mapped = free_bytes is not None and num_bytes > MAPPED_ABOVE * free_bytes
    columns = _mapped_like(empty, num_rows, folder) if is_mapped else _like(empty, num_rows)
    num_threads = effective_cpus().num_threads if num_bytes > THREADS_ABOVE else 0
    with closing(newest_rows(segments, section)) as steps:
        count = _copy(steps, columns, num_threads)
    return {name: column[:count] for name, column in columns.items()}


def _mapped_like(empty: Columns, num_rows: int, folder: Path) -> Columns:
    """Columns with rows, in unnamed files."""
    return {
        name: MappedArray(folder, (num_rows, *column.shape[1:]), column.dtype.str, random=False).array
        for name, column in empty.items()
    }


def _like(empty: Columns, num_rows: int) -> Columns:
    """Columns with rows, in one block of memory: few huge pages, while smaller blocks have a fault per 4 KiB.

    Of keys that are in several segments, the rest of the rows is never touched.
    """
    sizes = {name: num_rows * column.dtype.itemsize * math.prod(column.shape[1:]) for name, column in empty.items()}
    starts = np.cumsum([0, *(-(-size // ALIGNMENT) * ALIGNMENT for size in sizes.values())]).tolist()
    memory = np.empty(starts[-1], np.uint8)
    return {
        name: memory[start : start + sizes[name]].view(column.dtype).reshape(num_rows, *column.shape[1:])
        for start, (name, column) in zip(starts, empty.items(), strict=False)
    }


def _copy(steps: Iterator[NewestRows], columns: Columns, num_threads: int) -> int:
    """Copy the rows of all steps to columns, with some threads beside this one; returns their number."""

    def copy_one(step: NewestRows, first: int) -> None:
        for name, column in columns.items():
            step.copy_to(name, column[first : first + len(step.ids)])

    count = 0
    if num_threads == 0:
        for step in steps:
            copy_one(step, count)
            count += len(step.ids)
        return count
    pool, started = ThreadPoolExecutor(num_threads, thread_name_prefix="restore"), deque[Future[None]]()
    try:
        for step in steps:
            started.append(pool.submit(copy_one, step, count))
            count += len(step.ids)
            if len(started) > 2 * num_threads:  # so that few blocks are open
                started.popleft().result()
        for each in started:
            each.result()
    finally:
        pool.shutdown(cancel_futures=True)
    return count
