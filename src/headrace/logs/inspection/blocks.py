"""Splits wide logs into blocks of columns, so that memory does not grow with the number of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import DataError
from headrace.logs.footers import Footer, iter_groups, open_parquet

__all__ = ["Span", "group_ends", "iter_batches", "rows_of_sample", "spans_of", "split_columns"]

BLOCK_COLUMNS = 128
"""Columns per block. While it is read, each column holds a page, a dictionary and a buffer: typically 0.2 MiB, at most
about 3 MiB."""

BATCH_ROWS = 32_768
"""Rows per batch, enough to keep kernels busy; batches of wide rows have fewer, see `BATCH_BYTES`."""

BATCH_BYTES = 64 << 20
"""Approximate bytes of a batch and the arrays computed from it."""

SAMPLE_BATCHES = 4

Span = tuple[list[int], int, int]
"""Consecutive row groups, their first row in the file, and the end of their rows."""


def split_columns(names: Sequence[str], together: Mapping[str, str]) -> list[list[str]]:
    """Split columns into blocks, in order.

    Args:
        names: Column names.
        together: Columns that must be in the same block as another one.
    """
    blocks: list[list[str]] = [[]]
    for name in names:
        if name in together.values():
            continue
        unit = [name, *([together[name]] if together.get(name) in names else [])]
        if len(blocks[-1]) + len(unit) > BLOCK_COLUMNS:
            blocks.append([])
        blocks[-1] += unit
    return blocks


def spans_of(footer: Footer, num_columns: int) -> Iterator[Span]:
    """Yield the row groups of a file: large ones alone, small ones with their neighbours, because opening takes
    milliseconds.

    Args:
        footer: Footer of the file.
        num_columns: Number of columns of the log.
    """
    max_rows = _batch_rows(footer, num_columns)
    held: list[int] = []
    start = stop = 0
    for number in range(footer.metadata.num_row_groups):
        end = stop + footer.group_rows(number)
        if held and end - start > max_rows:
            yield held, start, stop
            held, start = [], stop
        held.append(number)
        stop = end
    if held:
        yield held, start, stop


def iter_batches(
    footer: Footer, span: Span, stored: pa.Schema, num_columns: int, report_damage: Callable[[int, str], None]
) -> Iterator[tuple[int, pa.RecordBatch]]:
    """Yield (first row in the file, batch) with columns as stored; null for missing columns.

    Args:
        footer: Footer of the file.
        span: Row groups to read.
        stored: The columns, with their common types.
        num_columns: Number of columns of the log.
        report_damage: Called with each row group that cannot be decoded and the reason; its remaining rows are skipped.
    """
    there = set(footer.schema.names)
    names = [name for name in stored.names if name in there] or footer.schema.names[:1]
    batch_rows = _batch_rows(footer, num_columns)
    row_groups, start, _ = span
    # Small row groups are read completely first, and one by one if one is damaged, so that the others are not lost.
    with open_parquet(footer, num_columns=len(names)) as parquet:
        if len(row_groups) > 1:
            try:
                batches = list(iter_groups(footer, parquet, row_groups, names, batch_rows))
            except DataError:
                pass
            else:
                for batch in batches:
                    yield start, _complete(batch, stored)
                    start += batch.num_rows
                return
        for number in row_groups:
            position = start
            try:
                for batch in iter_groups(footer, parquet, [number], names, batch_rows):
                    yield position, _complete(batch, stored)
                    position += batch.num_rows
            except DataError as error:
                report_damage(number, str(error))
            start += footer.group_rows(number)


def rows_of_sample(footer: Footer, num_columns: int) -> int:
    """Number of rows for the first guess of a schema."""
    return SAMPLE_BATCHES * _batch_rows(footer, num_columns)


def group_ends(footer: Footer) -> npt.NDArray[np.int64]:
    """int64 [row groups], cumulative number of log rows at the end of each row group."""
    counts = [footer.group_rows(number) for number in range(footer.metadata.num_row_groups)]
    return np.cumsum(counts, dtype=np.int64)


def _batch_rows(footer: Footer, num_columns: int) -> int:
    """Number of rows whose values in a block, with two arrays of hashes, fit into `BATCH_BYTES`."""
    sizes = [footer.metadata.row_group(n).total_byte_size for n in range(min(footer.metadata.num_row_groups, 100))]
    num_rows = sum(footer.group_rows(number) for number in range(len(sizes)))
    row_bytes = 2 * sum(sizes) / max(1, num_rows) + 24 * num_columns
    share = min(1.0, BLOCK_COLUMNS / max(1, num_columns))
    return int(max(64, min(BATCH_ROWS, BATCH_BYTES / max(1, share * row_bytes))))


def _complete(batch: pa.RecordBatch, stored: pa.Schema) -> pa.RecordBatch:
    there = set(batch.schema.names)
    columns = [
        batch.column(field.name) if field.name in there else pa.nulls(batch.num_rows, field.type) for field in stored
    ]
    return pa.RecordBatch.from_arrays(columns, names=stored.names)
