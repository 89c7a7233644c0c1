"""Finding the rows a function raises on, by halving the batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.logs.raw_rows import encode_rows, values_at
from headrace.logs.source import ROW_ID

__all__ = ["BadRow", "find_bad_rows", "without_rows"]

MAX_BAD_ROWS = 16
"""Bad rows of one element that are searched for one by one, at least; see `MAX_BAD_SHARE`."""

MAX_BAD_SHARE = 0.1
"""A function that raises on more than this share of an element's rows is itself wrong; the search stops."""


@dataclass(frozen=True)
class BadRow:
    """A row a function raised on.

    Attributes:
        row: Position in the batch.
        row_id: Value of `ROW_ID`.
        reason: Type and text of the exception.
        raw: The row as the function was given it, as JSON that `replay_source` reads.
    """

    row: int
    row_id: int
    reason: str
    raw: str


def find_bad_rows(call: Callable[[pa.RecordBatch], Any], batch: pa.RecordBatch, error: Exception) -> list[BadRow]:
    """The rows that make `call` raise, each found alone by halving the batch.

    Calls are about 2 log2(rows) for each bad row.

    Args:
        call: The function that raised; it must not change its argument.
        batch: The rows it raised on.
        error: What it raised; raised again where no single row is to blame.

    Returns:
        The bad rows in order, at least one.

    Raises:
        Exception: `error`, if no half of a failing stretch fails, or if more rows fail than data can be blamed for.
    """
    limit = max(MAX_BAD_ROWS, int(batch.num_rows * MAX_BAD_SHARE))
    bad: list[BadRow] = []
    stretches = [(0, batch.num_rows, error)]  # all known to fail; the first is on top
    while stretches:
        start, stop, failure = stretches.pop()
        if stop - start == 1:
            if len(bad) == limit and batch.num_rows > 1:
                raise error
            bad.append(_bad_row(batch, start, failure))
            continue
        middle = (start + stop) // 2
        failing = []
        for first, last in ((start, middle), (middle, stop)):
            half_failure = _failure(call, batch.slice(first, last - first))
            if half_failure is not None:
                failing.append((first, last, half_failure))
        if not failing:
            raise error
        stretches.extend(reversed(failing))
    return bad


def without_rows(batch: pa.RecordBatch, rows: list[int]) -> pa.RecordBatch:
    """The batch without the rows at some positions."""
    left_out = set(rows)
    return batch.take(pa.array([row for row in range(batch.num_rows) if row not in left_out], pa.int64()))


def _failure(call: Callable[[pa.RecordBatch], Any], rows: pa.RecordBatch) -> Exception | None:
    try:
        call(rows)
    except Exception as error:
        return error
    return None


def _bad_row(batch: pa.RecordBatch, row: int, error: Exception) -> BadRow:
    values = batch.slice(row, 1)
    row_ids = np.asarray(values.column(ROW_ID), dtype=np.int64)
    (raw,) = encode_rows(values_at(values.drop_columns([ROW_ID]), np.arange(1)), row_ids)
    return BadRow(row, int(row_ids[0]), f"{type(error).__name__}: {error}", raw)
