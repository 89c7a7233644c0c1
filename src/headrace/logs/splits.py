"""Splits of a Parquet source: the selected part of a row group, or of consecutive small row groups."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DataError
from headrace.logs.cursor import Selection
from headrace.logs.footers import Footer, iter_groups, iter_plain

__all__ = ["RowGroupSplit", "decode_together", "splits_of"]

JOINED_ROWS = 1024
JOINED_BYTES = 1 << 20
"""Maximum consecutive row groups read together. Each read takes a millisecond, regardless of size. (A log of 20,000 row
groups of one row: 22 s of CPU time one by one, 1.2 s together.)"""


@dataclass(frozen=True)
class RowGroupSplit:
    """The selected part of a row group, or of consecutive small row groups.

    Attributes:
        row_groups: Numbers of the row groups.
        group_start: First row of the first row group, within the file.
        start: First selected row, relative to `group_start`.
        stop: End of the selected rows, relative to `group_start`.
    """

    selection: Selection
    footer: Footer
    row_groups: range
    group_start: int
    start: int
    stop: int

    @property
    def place(self) -> str:
        """The file and row groups, for error messages."""
        first, last = self.row_groups[0], self.row_groups[-1]
        return f"{self.footer.file.path}, row group{f' {first}' if first == last else f's {first} to {last}'}"

    def row_groups_of(self, rows: npt.NDArray[np.int64]) -> int | list[int]:
        """The row group of each row, or of all rows if there is only one."""
        if len(self.row_groups) == 1:
            return self.row_groups[0]
        ends = np.cumsum([self.footer.group_rows(row_group) for row_group in self.row_groups])
        found: list[int] = (np.searchsorted(ends, rows, side="right") + self.row_groups.start).tolist()
        return found


def splits_of(selection: Selection, footer: Footer, max_rows: int) -> Iterator[RowGroupSplit]:
    """Yield the splits of a selection, in order.

    Args:
        selection: Rows of a file.
        footer: Footer of the file.
        max_rows: Maximum rows of joined small row groups.

    Raises:
        DataError: The file has fewer rows than selected.
    """
    return _joined(_splits_by_group(selection, footer), min(JOINED_ROWS, max_rows))


def decode_together(
    part: RowGroupSplit, parquet: pq.ParquetFile, names: list[str], max_rows: int
) -> list[pa.RecordBatch]:
    """Decode several small row groups as one batch; if that fails, decode them one by one to find the damaged one."""
    batches: list[pa.RecordBatch] = []
    try:
        batches = list(iter_groups(part.footer, parquet, part.row_groups, names, max_rows))
    except DataError:
        for row_group in part.row_groups:
            batches += iter_plain(part.footer, parquet, row_group, names, max_rows)
    # Batch boundaries must be deterministic, even for types whose chunks the decoder does not join.
    return batches if len(batches) == 1 else pa.Table.from_batches(batches).combine_chunks().to_batches()


def _splits_by_group(selection: Selection, footer: Footer) -> Iterator[RowGroupSplit]:
    metadata = footer.metadata
    if selection.stop_row > footer.num_rows:
        raise DataError(
            f"{footer.file.path}: has {footer.num_rows:,} rows, but rows up to {selection.stop_row:,} are needed; "
            f"it changed since the window was planned"
        )
    planned = None if selection.row_groups is None else set(selection.row_groups)
    start = 0
    for row_group in range(metadata.num_row_groups):
        stop = start + footer.group_rows(row_group)
        first, last = max(selection.start_row, start), min(selection.stop_row, stop)
        if first < last and (planned is None or row_group in planned):
            yield RowGroupSplit(selection, footer, range(row_group, row_group + 1), start, first - start, last - start)
        start = stop


def _joined(splits: Iterable[RowGroupSplit], max_rows: int) -> Iterator[RowGroupSplit]:
    """Join splits of consecutive small row groups of a plain file."""
    held: RowGroupSplit | None = None
    num_bytes = 0
    for split in splits:
        group = split.footer.metadata.row_group(split.row_groups[0])
        size = group.total_byte_size
        if held is not None:
            before = split.group_start - held.group_start
            follows = held.stop == before + split.start and not split.footer.is_nested
            if follows and before + group.num_rows <= max_rows and num_bytes + size <= JOINED_BYTES:
                row_groups = range(held.row_groups.start, split.row_groups.stop)
                held, num_bytes = replace(held, row_groups=row_groups, stop=before + split.stop), num_bytes + size
                continue
            yield held
        held, num_bytes = split, size
    if held is not None:
        yield held
