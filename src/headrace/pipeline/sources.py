"""Sources that are not logs: Arrow tables and re-iterable objects."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import ConfigError, DataError, expect
from headrace.logs import ArrowSource
from headrace.logs.source import ROW_ID, Source, SourceBatch

__all__ = ["IterableSource", "TableSource", "reads_storage", "to_record_batch"]

SPLIT_ROWS = 65_536
"""Rows per split of a table: 10 MB of click logs (26 ids, 13 numbers), small enough to spread over workers."""


def reads_storage(source: Source) -> bool:
    """Whether reading a source may wait for storage or a network; False if its rows are in memory."""
    return not isinstance(source, TableSource | ArrowSource)


class TableSource:
    """The rows of an Arrow table, unchecked; each split is a row range, without a copy."""

    def __init__(self, table: pa.Table, *, split_rows: int = SPLIT_ROWS) -> None:
        """Wrap a table.

        Args:
            table: The rows; they are numbered unless there is a column `__row_id`.
            split_rows: Rows per split.
        """
        if ROW_ID not in table.schema.names:
            ids = pa.array(np.arange(table.num_rows, dtype=np.int64))
            table = table.append_column(pa.field(ROW_ID, pa.int64()), ids)
        self._batches = table.to_batches(max_chunksize=split_rows)

    def __len__(self) -> int:
        return len(self._batches)

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the single batch of a split."""
        batch = self._batches[split]
        yield SourceBatch(batch, batch.num_rows)

    def describe(self, split: int) -> str:
        """The row range of the split, counted from 0."""
        first = sum(batch.num_rows for batch in self._batches[:split])
        return f"table, rows {first} to {first + self._batches[split].num_rows - 1}"


class IterableSource:
    """The batches of another loader, as one split."""

    def __init__(
        self,
        batches: Iterable[Any] | Callable[[], Iterable[Any]],
        *,
        columns: Sequence[str] = (),
        name: str = "iterable",
    ) -> None:
        """Wrap an iterable.

        Args:
            batches: An iterable of values that `to_record_batch` accepts, the same on every pass; or a function that
                returns such an iterable.
            columns: Column names for the fields of a tuple or list.
            name: Name of the source in error messages.

        Raises:
            ConfigError: `batches` is an iterator, which can be read only once.
        """
        if not callable(batches) and not hasattr(batches, "__getitem__"):
            expect(batches, Iterable, where=name, expected="batches, or a function that returns them")
        expect(columns, (list, tuple), where=f"{name}: columns", expected="a list of names")
        if not callable(batches) and iter(batches) is batches:
            raise ConfigError(
                f"{name}: given an iterator ({type(batches).__name__}), which can be read only once; "
                "give a function that returns a new one, so that a stopped job can be resumed"
            )
        self._batches = batches
        self._columns = tuple(columns)
        self._name = name

    def __len__(self) -> int:
        return 1

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield all batches in order; rows without ids are numbered."""
        num_rows = 0
        batches = self._batches() if callable(self._batches) else self._batches
        for number, values in enumerate(batches):
            batch = to_record_batch(values, self._columns, where=f"{self._name}, batch {number}")
            if ROW_ID not in batch.schema.names:
                ids = pa.array(np.arange(num_rows, num_rows + batch.num_rows, dtype=np.int64))
                batch = pa.RecordBatch.from_arrays(
                    [*batch.columns, ids], schema=batch.schema.append(pa.field(ROW_ID, pa.int64()))
                )
            num_rows += batch.num_rows
            yield SourceBatch(batch, batch.num_rows)

    def describe(self, split: int) -> str:
        """The name of the source."""
        return self._name


def to_record_batch(values: Any, columns: Sequence[str] = (), *, where: str = "batch") -> pa.RecordBatch:
    """Convert rows to a record batch, sharing memory where possible.

    Args:
        values: A record batch, a table, an object with `__arrow_c_stream__` (Polars), a pandas DataFrame, a mapping of
            column names to arrays, tensors or lists, a tuple or list of those (named by `columns`), or a list of
            mappings, one per row. A tensor [B, D] becomes a fixed-size list column.
        columns: Column names for the fields of a tuple or list.
        where: Name of the value in error messages.

    Raises:
        DataError: The value has none of these types, or its columns differ in length.
    """
    if isinstance(values, pa.RecordBatch):
        return values
    if hasattr(values, "__arrow_c_stream__") and not isinstance(values, pa.Table):
        values = pa.table(values)
    if isinstance(values, pa.Table):
        batches = values.to_batches()
        return pa.concat_batches(batches) if batches else pa.RecordBatch.from_pylist([], schema=values.schema)
    if type(values).__module__.startswith("pandas."):
        return pa.RecordBatch.from_pandas(values, preserve_index=False)
    if isinstance(values, list) and values and all(isinstance(row, Mapping) for row in values):
        return pa.RecordBatch.from_pylist([dict(row) for row in values])
    if isinstance(values, list | tuple) and columns and len(values) == len(columns):
        values = dict(zip(columns, values, strict=True))
    if not isinstance(values, Mapping):
        hint = "" if columns else "; name the fields of a tuple with columns=[...]"
        raise DataError(f"{where}: given {type(values).__name__}, expected a record batch or columns by name{hint}")
    arrays = {str(name): _to_array(column) for name, column in values.items()}
    lengths = {name: len(array) for name, array in arrays.items()}
    if len(set(lengths.values())) > 1:
        raise DataError(f"{where}: columns differ in length: {lengths}")
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))


def _to_array(column: Any) -> pa.Array:
    if isinstance(column, pa.ChunkedArray):
        return column.combine_chunks()
    if isinstance(column, pa.Array):
        return column
    if hasattr(column, "numpy") and hasattr(column, "detach"):  # torch, without importing it
        column = column.detach().cpu().numpy()
    elif hasattr(column, "numpy"):  # TensorFlow
        column = column.numpy()
    if isinstance(column, np.ndarray) and column.ndim == 2:
        flat = pa.array(np.ascontiguousarray(column).reshape(-1))
        return pa.FixedSizeListArray.from_arrays(flat, column.shape[1])
    return pa.array(column)
