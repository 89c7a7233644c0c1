"""`Source`: a log as splits, and what reading one yields: batches of good rows, with the bad ones beside them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

__all__ = [
    "FILE_ROW_BITS",
    "ORIGINAL_ROW",
    "REJECT_SCHEMA",
    "ROW_ID",
    "Source",
    "SourceBatch",
    "make_row_id",
    "split_row_id",
]

ROW_ID = "__row_id"
"""Name of the int64 column that says which row of the logs a row is; user functions keep it."""

ORIGINAL_ROW = "original_row"
"""Column of a clustered log with the ids its rows had in the log they come from, where that has no row id column."""

Ids = TypeVar("Ids", int, npt.NDArray[np.int64])

FILE_ROW_BITS = 36
"""Bits of a derived row id that count rows inside a file: 68 billion rows a file, 134 million files."""

REJECT_SCHEMA = pa.schema(
    [
        pa.field("file", pa.string()),
        pa.field("row_group", pa.int32()),
        pa.field("row", pa.int64()),
        pa.field("column", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("raw", pa.string()),
    ],
    metadata={"headrace": "rejects", "version": "1"},
)
"""Columns of a quarantine file; `row` counts from the start of the file, `raw` is the row as JSON."""


@dataclass(frozen=True)
class SourceBatch:
    """Good rows of one stretch of a log, in file order.

    Attributes:
        rows: The good rows: the columns asked for, and `ROW_ID`.
        num_read: Rows looked at, good and bad.
        rejects: Bad rows to quarantine, with `REJECT_SCHEMA`, or None.
        num_dropped: Bad rows dropped; num_read = good + dropped + rejected.
    """

    rows: pa.RecordBatch
    num_read: int
    rejects: pa.RecordBatch | None = None
    num_dropped: int = 0

    @property
    def num_quarantined(self) -> int:
        """Bad rows to quarantine."""
        return 0 if self.rejects is None else int(self.rejects.num_rows)


class Source(Protocol):
    """Where a pipeline reads from: a fixed sequence of splits, each yielding batches of rows in a fixed order.

    Any split may be read at any time by any thread, several times; the same split always yields the same batches.
    """

    def __len__(self) -> int:
        """Number of splits, for instance row groups."""
        ...

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the batches of one split in order, each small enough to hold in memory."""
        ...

    def describe(self, split: int) -> str:
        """Where the split lies, for error texts: "logs/a.parquet, row group 3"."""
        ...


def make_row_id(file_number: int, row: int) -> int:
    """The id of a row known by its file's number and its position in that file."""
    return (file_number << FILE_ROW_BITS) | row


def split_row_id(row_id: Ids) -> tuple[Ids, Ids]:
    """The file number and the row in that file, of one id or an int64 array of them; undoes `make_row_id`."""
    return row_id >> FILE_ROW_BITS, row_id & ((1 << FILE_ROW_BITS) - 1)
