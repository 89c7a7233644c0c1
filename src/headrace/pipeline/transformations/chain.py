"""`run_chain`: several transformations applied to one element in one go, with the rows they raise on isolated."""

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
    """What one transformation used for one element: CPU and wall seconds, rows in and out, and bytes out.

    `queued_s` are the wall seconds in which a worker process was runnable without a CPU; 0 where they are not counted.
    """

    cpu_s: float
    wall_s: float
    num_rows_in: int
    num_rows_out: int
    num_bytes_out: int
    queued_s: float = 0.0


@dataclass(frozen=True)
class RowFaults:
    """Rows a transformation raised on, which are left out."""

    transformation: int
    bad_rows: tuple[BadRow, ...]
    quarantine: bool


@dataclass(frozen=True, slots=True)
class ChainResult:
    """An element after all transformations of a chain.

    Attributes:
        payload: What the last transformation returned; None if no row is left.
        num_rows: Rows left.
        num_bytes: Its bytes.
        num_filtered: Rows the transformations took out.
        faults: Rows they raised on.
        uses: What each transformation used.
    """

    payload: Any
    num_rows: int
    num_bytes: int
    num_filtered: int
    faults: tuple[RowFaults, ...]
    uses: tuple[StageUse, ...]


class StageFault(Exception):
    """A transformation failed and the job must stop; turned into a `PipelineError` where the stage's name is known.

    Attributes:
        transformation: Position in the chain.
        reason: Type and text of what was raised.
        row_ids: Rows at fault, if they could be found.
        traceback: The traceback as text.
        place: File, line and text of the line of the user's code that raised; empty if none did.
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
    """Apply transformations one after the other; an element without rows passes untouched.

    Args:
        transformations: What to apply.
        payload: The element's payload.
        num_rows: Its rows.
        num_bytes: Its bytes.
        seed: (epoch, key of the element).
        clock: CPU seconds of whoever runs this.
        queued: Seconds in which whoever runs this was ready without a CPU.

    Raises:
        StageFault: A transformation raised and its policy is "fail", or no rows are to blame.
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
    """The innermost line of the user's own code that led to an error: `file.py line 12, in clean: x = 1 / 0`."""
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
    """Rows of a payload; a dict or tuple of tensors does not tell and keeps its number."""
    if payload is None:
        return 0
    return before if isinstance(payload, dict | tuple) else len(payload)


def _leave_out(
    number: int, transformation: Transformation, payload: Any, seed: tuple[int, ...], error: Exception
) -> tuple[Any, RowFaults]:
    """Apply a transformation that raised to the rows it does not raise on."""

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
