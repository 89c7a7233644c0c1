"""Applies results to elements: faults become rejected rows, failures become errors.

All error messages about a failed stage are made here.
"""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.errors import HeadraceError, PipelineError
from headrace.logs.source import REJECT_SCHEMA, Source, SourceBatch, Sources, split_row_id
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.options import StageGroup
from headrace.pipeline.engine.position import Position
from headrace.pipeline.logical_plan import Stage
from headrace.pipeline.row_stats import NO_ROWS, RowStats
from headrace.pipeline.transformations.chain import ChainResult, RowFaults, StageFault

__all__ = [
    "apply_result",
    "describe_element",
    "element_of",
    "open_source",
    "pipeline_error",
    "source_error",
    "stack_of",
    "stuck_error",
]

NUM_NAMED = 5
"""Maximum number of rows or splits named in an error message."""


def element_of(batch: SourceBatch, place: Position) -> Element:
    """Make an element from the source batch at a position."""
    losses = RowStats(num_dropped=batch.num_dropped) if batch.num_dropped else NO_ROWS
    if batch.num_quarantined:
        assert batch.rejects is not None
        losses += RowStats.quarantine(batch.rejects)
    return Element(
        payload=batch.rows if batch.rows.num_rows else None,
        num_rows=batch.rows.num_rows,
        key=(place.split, place.source_batch),
        before=place,
        after=Position(place.split, place.source_batch + 1, segment=place.segment),
        losses=losses,
        splits=(place.split,),
        num_bytes=int(batch.rows.nbytes),
    )


def apply_result(element: Element, result: ChainResult, stages: Sequence[Stage], source: Source) -> None:
    """Update an element with the result of its stages, including the rows they lost."""
    losses = RowStats(num_filtered=result.num_filtered) if result.num_filtered else NO_ROWS
    for faults in result.faults:
        if faults.quarantine:
            losses += RowStats.quarantine(_rejects(faults, stages[faults.transformation].name, element, source))
        else:
            losses += RowStats(num_dropped=len(faults.bad_rows))
    element.payload = result.payload
    element.num_rows = result.num_rows
    element.num_bytes = result.num_bytes
    element.losses += losses


def pipeline_error(fault: StageFault, stages: Sequence[Stage], element: Element, source: Source) -> PipelineError:
    """The error a user sees: stage and function, the exception, and the location of the rows."""
    text = f"{stages[fault.transformation].label}: {fault.reason}"
    if fault.row_ids:
        text += f"; at {_rows(fault.row_ids, source)}"
    text += f"; in {_where(element, source)}"
    if fault.place:
        text += f"; raised at {fault.place}"
    error = PipelineError(text)
    if fault.traceback:
        error.add_note(fault.traceback.rstrip())
    return error


def open_source(sources: Sources, segment: int) -> Source:
    """The source of a segment, which may be opened now.

    Raises:
        HeadraceError: It cannot be opened.
    """
    try:
        return sources[segment]
    except HeadraceError:
        raise
    except Exception as error:
        raise PipelineError(f"stage source: {type(error).__name__}: {error}; while segment {segment} opened") from error


def source_error(error: Exception, source: Source, split: int) -> HeadraceError:
    """The error a user sees when a source raises; errors that it raises deliberately already name the place."""
    if isinstance(error, HeadraceError):
        return error
    return PipelineError(f"stage source: {type(error).__name__}: {error}; in {source.describe(split)}")


def stack_of(thread: threading.Thread) -> str:
    """The current stack of a thread, formatted as a traceback."""
    frame = sys._current_frames().get(thread.ident or 0)
    return "" if frame is None else "".join(traceback.format_stack(frame))


def stuck_error(group: StageGroup, element: Element, source: Source, stack: str) -> PipelineError:
    """The error for an element that exceeds its stage's timeout; the full stack is attached as a note."""
    last = stack.rstrip().rsplit("  File ", 1)[-1].replace("\n", " ").strip()
    error = PipelineError(
        f"{group.stages[0].label}: no result within timeout_s={group.timeout_s:g} for "
        f"{describe_element(element, source)}; it is at {last}"
    )
    error.add_note(f"Stack of the worker:\n{stack.rstrip()}")
    return error


def describe_element(element: Element, source: Source) -> str:
    """Describe the rows of an element, for messages."""
    return f"element {'.'.join(map(str, element.key))} ({element.num_rows} rows of {_where(element, source)})"


def _where(element: Element, source: Source) -> str:
    names = [source.describe(split) for split in element.splits[:NUM_NAMED]]
    more = len(element.splits) - len(names)
    return "; ".join(names) + (f" and {more} more" if more > 0 else "")


def _rows(row_ids: Sequence[int], source: Source) -> str:
    locate = getattr(source, "locate", None)
    names = [locate(row_id) if locate is not None else f"row id {row_id}" for row_id in row_ids[:NUM_NAMED]]
    more = len(row_ids) - len(names)
    return ", ".join(names) + (f" and {more} more rows" if more > 0 else "")


def _file_of(element: Element, row_id: int, source: Source) -> tuple[str, int | None]:
    """File and row group of a row. After regrouping, an element may hold rows of several row groups or files."""
    where = _where(element, source)
    if (len(element.splits) > 1 or ", row groups " in where) and hasattr(source, "locate"):
        return str(source.locate(row_id)).rpartition(", row ")[0], None
    file, _, row_group = where.rpartition(", row group ")
    return (file, int(row_group)) if file and row_group.isdigit() and len(element.splits) == 1 else (where, None)


def _rejects(faults: RowFaults, stage: str, element: Element, source: Source) -> pa.RecordBatch:
    rows: list[dict[str, Any]] = []
    for bad in faults.bad_rows:
        file, row_group = _file_of(element, bad.row_id, source)
        place = {"file": file, "row_group": row_group, "row": split_row_id(bad.row_id)[1], "column": None}
        rows.append({**place, "reason": f"stage {stage}: {bad.reason}", "raw": bad.raw})
    return pa.RecordBatch.from_pylist(rows, schema=REJECT_SCHEMA)
