"""`run_chain`: several operations applied to one element in one go, with the rows they raise on isolated."""

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
from headrace.pipeline.transformations.operations import Operation

__all__ = ["ChainResult", "RowFaults", "StageFault", "StageUse", "run_chain", "size_of"]

HEADRACE = str(Path(__file__).parents[1])
EXAMPLES = str(Path(__file__).parents[1] / "testing")
STANDARD_LIBRARY = sysconfig.get_path("stdlib")


@dataclass(frozen=True, slots=True)
class StageUse:
    """What one operation used for one element: CPU and wall seconds, rows in and out, and bytes out."""

    cpu_s: float
    wall_s: float
    num_rows_in: int
    num_rows_out: int
    num_bytes_out: int


@dataclass(frozen=True)
class RowFaults:
    """Rows an operation raised on, which are left out."""

    operation: int
    bad_rows: tuple[BadRow, ...]
    quarantine: bool


@dataclass(frozen=True, slots=True)
class ChainResult:
    """An element after all operations of a chain.

    Attributes:
        payload: What the last operation returned; None if no row is left.
        num_rows: Rows left.
        num_bytes: Its bytes.
        num_filtered: Rows the operations took out.
        faults: Rows they raised on.
        uses: What each operation used.
    """

    payload: Any
    num_rows: int
    num_bytes: int
    num_filtered: int
    faults: tuple[RowFaults, ...]
    uses: tuple[StageUse, ...]


class StageFault(Exception):
    """An operation failed and the job must stop; turned into a `PipelineError` where the stage's name is known.

    Attributes:
        operation: Position in the chain.
        reason: Type and text of what was raised.
        row_ids: Rows at fault, if they could be found.
        traceback: The traceback as text.
        place: File, line and text of the line of the user's code that raised; empty if none did.
    """

    def __init__(
        self, operation: int, reason: str, row_ids: tuple[int, ...] = (), traceback: str = "", place: str = ""
    ) -> None:
        super().__init__(operation, reason, row_ids, traceback, place)
        self.place = place
        self.operation = operation
        self.reason = reason
        self.row_ids = row_ids
        self.traceback = traceback


def run_chain(
    operations: Sequence[Operation],
    payload: Any,
    num_rows: int,
    num_bytes: int,
    seed: tuple[int, ...],
    clock: Callable[[], float] = time.thread_time,
) -> ChainResult:
    """Apply operations one after the other; an element without rows passes untouched.

    Args:
        operations: What to apply.
        payload: The element's payload.
        num_rows: Its rows.
        num_bytes: Its bytes.
        seed: (epoch, key of the element).
        clock: CPU seconds of whoever runs this.

    Raises:
        StageFault: An operation raised and its policy is "fail", or no rows are to blame.
    """
    faults: list[RowFaults] = []
    uses: list[StageUse] = []
    num_filtered = 0
    for number, operation in enumerate(operations):
        if num_rows == 0:
            uses.append(StageUse(0.0, 0.0, 0, 0, 0))
            continue
        wall, cpu, rows_before, was_cut = time.perf_counter(), clock(), num_rows, isinstance(payload, list)
        try:
            payload = operation(payload, seed)
        except Exception as error:
            payload, fault = _leave_out(number, operation, payload, seed, error)
            faults.append(fault)
            rows_before -= len(fault.bad_rows)
        num_rows = _num_rows_of(payload, num_rows)
        num_filtered += rows_before - num_rows
        if not was_cut:  # joining cuts moves bytes; what a view of a larger element shows must not count as all of it
            num_bytes = size_of(payload, num_bytes)
        uses.append(StageUse(clock() - cpu, time.perf_counter() - wall, rows_before, num_rows, num_bytes))
    return ChainResult(payload if num_rows else None, num_rows, num_bytes, num_filtered, tuple(faults), tuple(uses))


def size_of(payload: Any, expected: int = 0) -> int:
    """Bytes of a payload.

    Args:
        payload: A record batch, an object that tells its `num_bytes` or `nbytes`, or a collection of those.
        expected: A record batch whose buffers hold more than twice this is taken for a view of a larger one, of which
            only its own rows count, and of groups the unique rows they have. (Counting those costs 70 us for 40
            columns, the buffers 1 us.)
    """
    if isinstance(payload, pa.RecordBatch):
        total = int(payload.get_total_buffer_size())
        if total <= 2 * expected:
            return total
        own = groups.num_bytes(payload) if groups.has_groups(payload.schema) else int(payload.nbytes)
        return min(total, own)
    size = getattr(payload, "num_bytes", None)
    if isinstance(size, int):
        return size
    if isinstance(payload, dict):
        return sum(size_of(value) for value in payload.values())
    if isinstance(payload, list | tuple):
        return sum(size_of(value) for value in payload)
    size = getattr(payload, "nbytes", 0)  # numpy arrays, torch tensors
    return size if isinstance(size, int) else 0


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
    number: int, operation: Operation, payload: Any, seed: tuple[int, ...], error: Exception
) -> tuple[Any, RowFaults]:
    """Apply an operation that raised to the rows it does not raise on."""

    def call(rows: pa.RecordBatch) -> Any:
        return operation(rows, seed)

    def fault(cause: Exception, row_ids: tuple[int, ...] = ()) -> StageFault:
        text = str(cause) if isinstance(cause, PipelineError) else f"{type(cause).__name__}: {cause}"
        told = "".join(traceback.format_exception(cause))
        return StageFault(number, text, row_ids, told, _place_of(cause))

    if operation.bad_rows is None or isinstance(error, PipelineError) or not isinstance(payload, pa.RecordBatch):
        raise fault(error) from error
    payload = groups.expand(payload)
    try:
        bad = find_bad_rows(call, payload, error)
    except Exception as whole:
        raise fault(whole) from whole
    if operation.bad_rows == "fail":
        raise fault(error, tuple(row.row_id for row in bad)) from error
    rows = without_rows(payload, [row.row for row in bad])
    try:
        result = call(rows) if rows.num_rows else None
    except Exception as rest:
        raise fault(rest) from rest
    return result, RowFaults(number, tuple(bad), operation.bad_rows == "quarantine")
