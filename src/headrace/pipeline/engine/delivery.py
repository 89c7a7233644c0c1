"""What happens to an element between its stage and the consumer: faults become rejects, failures become errors."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from headrace.errors import HeadraceError, PipelineError
from headrace.logs.source import REJECT_SCHEMA, Piece, Source, split_row_id
from headrace.pipeline.engine.element import NO_LOSSES, Element, Losses
from headrace.pipeline.pipeline import Stage
from headrace.pipeline.transformations.chain import ChainResult, RowFaults, StageFault

__all__ = ["apply_result", "describe_element", "element_of_piece", "pipeline_error", "source_error"]

NUM_NAMED = 5
"""Rows and items named in an error text."""


def element_of_piece(piece: Piece, item: int, number: int) -> Element:
    """The element a source's piece becomes."""
    rejects = () if piece.rejects is None or not piece.rejects.num_rows else (piece.rejects,)
    losses = Losses(num_dropped=piece.num_dropped, rejects=rejects) if piece.num_dropped or rejects else NO_LOSSES
    return Element(
        payload=piece.batch if piece.batch.num_rows else None,
        num_rows=piece.batch.num_rows,
        key=(item, number),
        before=(item, number),
        after=(item, number + 1),
        losses=losses,
        items=(item,),
        num_bytes=int(piece.batch.nbytes),
    )


def apply_result(element: Element, result: ChainResult, stages: Sequence[Stage], source: Source) -> None:
    """Change an element into what its stages made of it, with the rows they lost."""
    losses = Losses(num_filtered=result.num_filtered) if result.num_filtered else NO_LOSSES
    for faults in result.faults:
        if faults.quarantine:
            losses += Losses(rejects=(_rejects(faults, stages[faults.operation].name, element, source),))
        else:
            losses += Losses(num_dropped=len(faults.bad_rows))
    element.payload = result.payload
    element.num_rows = result.num_rows
    element.num_bytes = result.num_bytes
    element.losses += losses


def pipeline_error(fault: StageFault, stages: Sequence[Stage], element: Element, source: Source) -> PipelineError:
    """The error a user sees: stage and function, what was raised, and where the rows lie."""
    stage = stages[fault.operation]
    label = f" ({stage.operation.label})" if stage.operation.label else ""
    text = f"stage {stage.name}{label}: {fault.reason}"
    if fault.row_ids:
        text += f"; at {_rows(fault.row_ids, source)}"
    text += f"; in {_where(element, source)}"
    if fault.place:
        text += f"; raised at {fault.place}"
    error = PipelineError(text)
    if fault.traceback:
        error.add_note(fault.traceback.rstrip())
    return error


def source_error(error: Exception, source: Source, item: int) -> HeadraceError:
    """The error a user sees when a source raises; what it raises on purpose names the place itself."""
    if isinstance(error, HeadraceError):
        return error
    return PipelineError(f"stage source: {type(error).__name__}: {error}; in {source.describe(item)}")


def describe_element(element: Element, source: Source) -> str:
    """Which rows an element holds, for texts."""
    return f"element {'.'.join(map(str, element.key))} ({element.num_rows} rows of {_where(element, source)})"


def _where(element: Element, source: Source) -> str:
    names = [source.describe(item) for item in element.items[:NUM_NAMED]]
    more = len(element.items) - len(names)
    return "; ".join(names) + (f" and {more} more" if more > 0 else "")


def _rows(row_ids: Sequence[int], source: Source) -> str:
    locate = getattr(source, "locate", None)
    names = [locate(row_id) if locate is not None else f"row id {row_id}" for row_id in row_ids[:NUM_NAMED]]
    more = len(row_ids) - len(names)
    return ", ".join(names) + (f" and {more} more rows" if more > 0 else "")


def _file_of(element: Element, row_id: int, source: Source) -> tuple[str, int | None]:
    """File and row group of a row; behind a cut an element may have rows of several groups or files."""
    where = _where(element, source)
    if (len(element.items) > 1 or ", row groups " in where) and hasattr(source, "locate"):
        return str(source.locate(row_id)).rpartition(", row ")[0], None
    file, _, row_group = where.rpartition(", row group ")
    return (file, int(row_group)) if file and row_group.isdigit() and len(element.items) == 1 else (where, None)


def _rejects(faults: RowFaults, stage: str, element: Element, source: Source) -> pa.RecordBatch:
    rows: list[dict[str, Any]] = []
    for bad in faults.bad_rows:
        file, row_group = _file_of(element, bad.row_id, source)
        place = {"file": file, "row_group": row_group, "row": split_row_id(bad.row_id)[1], "column": None}
        rows.append({**place, "reason": f"stage {stage}: {bad.reason}", "raw": bad.raw})
    return pa.RecordBatch.from_pylist(rows, schema=REJECT_SCHEMA)
