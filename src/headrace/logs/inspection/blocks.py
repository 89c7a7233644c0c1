"""Blocks of columns: a wide log is read a block at a time, so memory does not grow with its number of columns."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import DataError
from headrace.logs.footers import Footer, iter_groups, open_parquet

__all__ = ["Span", "group_ends", "iter_batches", "rows_of_sample", "spans_of", "split_columns"]

BLOCK_COLUMNS = 128
"""Columns read side by side. Until it is read, each holds a page, a dictionary and a buffer: 0.2 MiB as a rule, at most
about 3 MiB."""

BATCH_ROWS = 32_768
"""Enough to keep kernels busy; of wide rows a batch has fewer, see `BATCH_BYTES`."""

BATCH_BYTES = 64 << 20
"""Of a batch and what is computed from it, about."""

SAMPLE_BATCHES = 4

Span = tuple[list[int], int, int]
"""Row groups that follow each other, their first row in the file, and the row after their last."""


def split_columns(names: Sequence[str], together: Mapping[str, str]) -> list[list[str]]:
    """Blocks of columns, in order.

    Args:
        names: Of the columns.
        together: Columns that must be in one block with another one.
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
    """The row groups of a file: large ones alone, small ones with their neighbours, since opening costs milliseconds.

    Args:
        footer: Of the file.
        num_columns: Of the log.
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
    """Yield (first row in the file, batch) with some columns as the file stores them; null where it lacks one.

    Args:
        footer: Of the file.
        span: Row groups of it.
        stored: The columns, with their common types.
        num_columns: Of the log.
        report_damage: Told of each row group that cannot be decoded, and why; its rows from there on are left out.
    """
    there = set(footer.schema.names)
    names = [name for name in stored.names if name in there] or footer.schema.names[:1]
    batch_rows = _batch_rows(footer, num_columns)
    row_groups, start, _ = span
    # Small ones are read whole before any is passed on, and one by one if one is damaged: it costs none of the others.
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
    """Rows from which a schema is guessed first."""
    return SAMPLE_BATCHES * _batch_rows(footer, num_columns)


def group_ends(footer: Footer) -> npt.NDArray[np.int64]:
    """int64 [row groups], rows of the log in the file up to the end of each."""
    counts = [footer.group_rows(number) for number in range(footer.metadata.num_row_groups)]
    return np.cumsum(counts, dtype=np.int64)


def _batch_rows(footer: Footer, num_columns: int) -> int:
    """Rows of which the values of a block, with a hash of each in two arrays, fit in `BATCH_BYTES`."""
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
