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
"""Bad rows per element that are always located one by one; see `MAX_BAD_SHARE`."""

MAX_BAD_SHARE = 0.1
"""The search stops if a function raises on more than this share of an element's rows: then the function is wrong."""


@dataclass(frozen=True)
class BadRow:
    """A row on which a function raised.

    Attributes:
        row: Position of the row in the batch.
        row_id: The row's `ROW_ID`.
        reason: Type and message of the exception.
        raw: The function's input row, as JSON that `replay_source` reads.
    """

    row: int
    row_id: int
    reason: str
    raw: str


def find_bad_rows(call: Callable[[pa.RecordBatch], Any], batch: pa.RecordBatch, error: Exception) -> list[BadRow]:
    """Find the rows that make `call` raise, by bisecting the batch.

    This takes about 2 log2(rows) calls per bad row.

    Args:
        call: The function that raised; it must not modify its argument.
        batch: The rows on which it raised.
        error: The exception, which is raised again if no single row is to blame.

    Returns:
        The bad rows in order, at least one.

    Raises:
        Exception: `error`, if neither half of a failing range fails alone, or if too many rows fail.
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
    """Remove the rows at these positions from a batch."""
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
