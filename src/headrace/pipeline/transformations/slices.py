"""`RowSlice`: a row range of a record batch, gathered by a rebatcher and not copied yet; and functions that join them.

Batching and shuffling regroup rows: first the stream is cut into slices (`engine/rebatcher.py`, cheap and sequential),
then workers join the slices of an element.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat

import numpy as np
import pyarrow as pa

from headrace.errors import PipelineError
from headrace.logs import groups
from headrace.messages import shorten_list

__all__ = ["GrowingSize", "Rebatch", "RowSlice", "narrowed", "same_schema", "slices_of"]


@dataclass(frozen=True)
class GrowingSize:
    """A batch size that grows with the number of rows before the batch.

    It is the largest power of two of at most 1 / `rows_per_row` of these rows, within limits. The sizes of a segment's
    batches depend only on the rows before the segment, so they are the same in every run.

    Attributes:
        smallest: Rows of the first batches.
        largest: Rows of a batch at most.
        rows_per_row: Rows that come before a batch for each row of it.
        rows_before: Rows before the first segment.
        segment_rows: Rows of each segment.
    """

    smallest: int
    largest: int
    rows_per_row: int
    rows_before: int = 0
    segment_rows: tuple[int, ...] = ()

    def after(self, num_rows: int) -> int:
        """The size of the batch behind some rows."""
        share = num_rows // self.rows_per_row
        return min(self.largest, max(self.smallest, 1 << max(0, share.bit_length() - 1)))

    def sizes(self, segment: int, index: int) -> Iterator[int]:
        """The sizes of a segment's batches, from number `index` on."""
        num_rows = self.rows_before + sum(self.segment_rows[:segment])
        while (size := self.after(num_rows)) < self.largest:
            if index <= 0:
                yield size
            index, num_rows = index - 1, num_rows + size
        yield from repeat(self.largest)


@dataclass(frozen=True)
class Rebatch:
    """Parameters of regrouping a stream.

    Attributes:
        num_rows: Rows per element of one rank.
        drop_last: Whether the last, incomplete element is dropped (its rows count as dropped) or kept.
        num_ranks: Ranks that share each element: `num_ranks * num_rows` rows are gathered at once, and each rank keeps
            its slice.
        rank: Index of this rank's slice.
    """

    num_rows: int | GrowingSize
    drop_last: bool = False
    num_ranks: int = 1
    rank: int = 0

    def sizes(self, segment: int, index: int) -> Iterator[int]:
        """Rows of the elements of a segment, from number `index` on, of one rank."""
        return repeat(self.num_rows) if isinstance(self.num_rows, int) else self.num_rows.sizes(segment, index)


@dataclass(frozen=True, slots=True)
class RowSlice:
    """Rows `start` to `stop` of an element's record batch, not copied yet."""

    rows: pa.RecordBatch
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Number of rows in the slice."""
        return self.stop - self.start


def slices_of(gathered: list[RowSlice]) -> list[pa.RecordBatch]:
    """The rows of some slices; if there are several to join, column groups keep only the unique rows in use."""
    slices = [part.rows.slice(part.start, part.num_rows) for part in gathered]
    return slices if len(slices) == 1 else [narrowed(rows) for rows in slices]


def narrowed(rows: pa.RecordBatch) -> pa.RecordBatch:
    """The same rows with dictionaries no larger than needed.

    In session order a slice uses neighbouring unique rows, so the dictionary can be sliced without a copy. (For 550
    features in 22 groups this takes 0.2 ms; gathering, which other orders need, takes 3 ms.)
    """
    arrays = []
    for name, column in zip(rows.schema.names, rows.columns, strict=True):
        if groups.is_group(name) and len(column):
            unique, inverse = groups.group_of(column)
            first, last = int(inverse.min()), int(inverse.max())
            if last - first >= len(inverse):
                return groups.compact(rows)
            indices = pa.array(inverse - np.int32(first))
            column = pa.DictionaryArray.from_arrays(indices, unique.slice(first, last - first + 1), safe=False)
        arrays.append(column)
    return pa.RecordBatch.from_arrays(arrays, schema=rows.schema)


def same_schema(slices: list[pa.RecordBatch]) -> pa.Schema:
    """The common schema of some record batches.

    Raises:
        PipelineError: The schemas differ.
    """
    first = slices[0].schema
    for rows in slices[1:]:
        if not rows.schema.equals(first):
            raise PipelineError(
                f"rows of one batch have different columns: {_columns(first)} and {_columns(rows.schema)}; "
                "functions before it must always return the same columns"
            )
    return first


def _columns(schema: pa.Schema) -> str:
    return shorten_list(f"{field.name} {field.type}" for field in schema)
