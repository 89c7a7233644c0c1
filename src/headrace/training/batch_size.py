"""`batch_size: auto`: small batches while a run has seen few rows, larger ones as the log grows.

A log of 10,000 rows gives ten steps of 1,024 rows, in which nothing is learned, but a hundred of 64. On a long log
larger batches cost no quality and are faster. The measurements are in `docs/design/0014-defaults.md`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Literal

from headrace.config import whole_number_or
from headrace.pipeline import GrowingSize

__all__ = ["AskedBatchSize", "batch_sizes", "largest_batch", "smallest_batch"]

AskedBatchSize = Annotated[int | Literal["auto"], whole_number_or("auto", at_least=1)]

SMALLEST_BATCH = 128
LARGEST_BATCH = 1024
ROWS_PER_ROW = 32
"""Rows seen before a batch for each row of it, so about this many steps are made with each size."""


def batch_sizes(
    asked: AskedBatchSize, first: int | None, rows_before: int, window_rows: Sequence[int]
) -> int | GrowingSize:
    """Rows of the batches of some windows.

    Args:
        asked: The job's `batch_size`.
        first: Its `first_batch_size`.
        rows_before: Rows of the windows before them.
        window_rows: Rows of each.
    """
    if asked != "auto":
        return asked
    smallest = smallest_batch(asked, first)
    return GrowingSize(smallest, LARGEST_BATCH, ROWS_PER_ROW, rows_before, tuple(window_rows))


def largest_batch(asked: AskedBatchSize) -> int:
    """Rows of the largest batches."""
    return LARGEST_BATCH if asked == "auto" else asked


def smallest_batch(asked: AskedBatchSize, first: int | None) -> int:
    """Rows of the first batches."""
    return first or SMALLEST_BATCH if asked == "auto" else asked
