"""`Source`: a log as a sequence of splits, which are read as batches of good rows with rejects."""

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
    "Sources",
    "make_row_id",
    "split_row_id",
]

ROW_ID = "__row_id"
"""Name of the int64 column with row ids; user functions must keep it."""

ORIGINAL_ROW = "original_row"
"""Column of a clustered log with original row ids, if the original log has no row id column."""

Ids = TypeVar("Ids", int, npt.NDArray[np.int64])

FILE_ROW_BITS = 36
"""Bits of a derived row id for the row within a file: 68 billion rows per file, 134 million files."""

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
"""Columns of a quarantine file; `row` is the position in the file, `raw` is the row as JSON."""


@dataclass(frozen=True)
class SourceBatch:
    """Good rows of a part of a log, in file order, with counts of bad rows.

    Attributes:
        rows: Good rows, with the requested columns and `ROW_ID`.
        num_read: Rows read, good and bad.
        rejects: Bad rows to quarantine, with `REJECT_SCHEMA`, or None.
        num_dropped: Bad rows dropped; num_read = good + dropped + rejected.
    """

    rows: pa.RecordBatch
    num_read: int
    rejects: pa.RecordBatch | None = None
    num_dropped: int = 0

    @property
    def num_quarantined(self) -> int:
        """Number of bad rows to quarantine."""
        return 0 if self.rejects is None else int(self.rejects.num_rows)


class Source(Protocol):
    """The input of a pipeline: a fixed sequence of splits, each yielding batches of rows in a fixed order.

    Any thread may read any split at any time, repeatedly; a split always yields the same batches.
    """

    def __len__(self) -> int:
        """Number of splits, for instance row groups."""
        ...

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the batches of a split in order, each small enough to fit into memory."""
        ...

    def describe(self, split: int) -> str:
        """Describe the location of a split, for error messages: "logs/a.parquet, row group 3"."""
        ...


class Sources(Protocol):
    """A sequence of sources that a pipeline reads in order, for instance a tuple.

    Each is asked for when its turn comes near, by any thread, so an implementation may open it as late as that.
    """

    def __len__(self) -> int:
        """Number of sources."""
        ...

    def __getitem__(self, segment: int, /) -> Source:
        """Source number `segment`; always the same object."""
        ...


def make_row_id(file_number: int, row: int) -> int:
    """Derive a row id from a file number and a position in that file."""
    return (file_number << FILE_ROW_BITS) | row


def split_row_id(row_id: Ids) -> tuple[Ids, Ids]:
    """Split a row id, or an int64 array of ids, into file number and position, the inverse of `make_row_id`."""
    return row_id >> FILE_ROW_BITS, row_id & ((1 << FILE_ROW_BITS) - 1)
