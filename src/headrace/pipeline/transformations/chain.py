"""`run_chain`: applies several transformations to one element and isolates the rows on which they raise."""

from __future__ import annotations

import sysconfig
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from headrace.errors import PipelineError
from headrace.logs import groups
from headrace.pipeline.transformations.bad_rows import BadRow, find_bad_rows, without_rows
from headrace.pipeline.transformations.transformation import Transformation

__all__ = ["ChainResult", "RowFaults", "StageFault", "StageUse", "run_chain"]

HEADRACE = str(Path(__file__).parents[2])
EXAMPLES = str(Path(__file__).parents[2] / "testing")
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@dataclass(frozen=True, slots=True)
class StageUse:
    """Resources that one transformation used for one element: CPU and wall seconds, rows in and out, and bytes out.

    `queued_s` counts wall seconds in which a worker process was runnable but had no CPU; 0 where this is not measured.
    """

    cpu_s: float
    wall_s: float
    num_rows_in: int
    num_rows_out: int
    num_bytes_out: int
    queued_s: float = 0.0


@dataclass(frozen=True)
class RowFaults:
    """Rows on which a transformation raised, and which are skipped."""

    transformation: int
    bad_rows: tuple[BadRow, ...]
    quarantine: bool


@dataclass(frozen=True, slots=True)
class ChainResult:
    """The result of a chain for one element.

    Attributes:
        payload: Result of the last transformation; None if no row is left.
        num_rows: Rows left.
        num_bytes: Bytes of the payload.
        num_filtered: Rows that the transformations removed.
        faults: Rows on which they raised.
        uses: Resources used by each transformation.
    """

    payload: Any
    num_rows: int
    num_bytes: int
    num_filtered: int
    faults: tuple[RowFaults, ...]
    uses: tuple[StageUse, ...]


class StageFault(Exception):
    """A transformation failed and the job must stop; becomes a `PipelineError` where the stage's name is known.

    Attributes:
        transformation: Position of the transformation in the chain.
        reason: Type and message of the exception.
        row_ids: Ids of the rows at fault, if they could be located.
        traceback: The traceback as text.
        place: File, line number and text of the user's line that raised; empty if none did.
    """

    def __init__(
        self, transformation: int, reason: str, row_ids: tuple[int, ...] = (), traceback: str = "", place: str = ""
    ) -> None:
        super().__init__(transformation, reason, row_ids, traceback, place)
        self.place = place
        self.transformation = transformation
        self.reason = reason
        self.row_ids = row_ids
        self.traceback = traceback


def run_chain(
    transformations: Sequence[Transformation],
    payload: Any,
    num_rows: int,
    num_bytes: int,
    seed: tuple[int, ...],
    clock: Callable[[], float] = time.thread_time,
    queued: Callable[[], float] = lambda: 0.0,
) -> ChainResult:
    """Apply transformations in order; an element without rows passes through unchanged.

    Args:
        transformations: The transformations.
        payload: The element's payload.
        num_rows: Rows of the payload.
        num_bytes: Bytes of the payload.
        seed: (epoch, key of the element).
        clock: Returns the CPU seconds of the calling thread or process.
        queued: Returns the seconds in which the caller was runnable but had no CPU.

    Raises:
        StageFault: A transformation raised, and its policy is "fail" or no single rows are to blame.
    """
    faults: list[RowFaults] = []
    uses: list[StageUse] = []
    num_filtered = 0
    for number, transformation in enumerate(transformations):
        if num_rows == 0:
            uses.append(StageUse(0.0, 0.0, 0, 0, 0))
            continue
        wall, cpu, ready, rows_before = time.perf_counter(), clock(), queued(), num_rows
        try:
            payload = transformation(payload, seed)
        except Exception as error:
            payload, fault = _leave_out(number, transformation, payload, seed, error)
            faults.append(fault)
            rows_before -= len(fault.bad_rows)
        num_rows = _num_rows_of(payload, num_rows)
        num_filtered += rows_before - num_rows
        num_bytes = transformation.num_bytes(payload, num_bytes)
        cpu, wall, ready = clock() - cpu, time.perf_counter() - wall, queued() - ready
        uses.append(StageUse(cpu, wall, rows_before, num_rows, num_bytes, ready))
    return ChainResult(payload if num_rows else None, num_rows, num_bytes, num_filtered, tuple(faults), tuple(uses))


def _place_of(error: Exception) -> str:
    """The innermost line of user code in a traceback: `file.py line 12, in clean: x = 1 / 0`."""
    ours = [frame for frame in traceback.extract_tb(error.__traceback__) if not _is_of_a_library(frame.filename)]
    if not ours:
        return ""
    frame = ours[-1]
    return f"{frame.filename} line {frame.lineno}, in {frame.name}" + (f": {frame.line}" if frame.line else "")


def _is_of_a_library(file: str) -> bool:
    if file.startswith(("<frozen", STANDARD_LIBRARY)) or "site-packages" in Path(file).parts:
        return True
    return file.startswith(HEADRACE) and not file.startswith(EXAMPLES)


def _num_rows_of(payload: Any, before: int) -> int:
    """Number of rows of a payload; for a dict or tuple of tensors, which does not say, the number before."""
    if payload is None:
        return 0
    return before if isinstance(payload, dict | tuple) else len(payload)


def _leave_out(
    number: int, transformation: Transformation, payload: Any, seed: tuple[int, ...], error: Exception
) -> tuple[Any, RowFaults]:
    """Apply a transformation that raised to the rows on which it does not raise."""

    def call(rows: pa.RecordBatch) -> Any:
        return transformation(rows, seed)

    def fault(cause: Exception, row_ids: tuple[int, ...] = ()) -> StageFault:
        text = str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}"
        told = "".join(traceback.format_exception(cause))
        return StageFault(number, text, row_ids, told, _place_of(cause))

    if transformation.bad_rows is None or isinstance(error, PipelineError) or not isinstance(payload, pa.RecordBatch):
        raise fault(error) from error
    payload = groups.expand(payload)
    try:
        bad = find_bad_rows(call, payload, error)
    except Exception as whole:
        raise fault(whole) from whole
    if transformation.bad_rows == "fail":
        raise fault(error, tuple(row.row_id for row in bad)) from error
    rows = without_rows(payload, [row.row for row in bad])
    try:
        result = call(rows) if rows.num_rows else None
    except Exception as rest:
        raise fault(rest) from rest
    return result, RowFaults(number, tuple(bad), transformation.bad_rows == "quarantine")
