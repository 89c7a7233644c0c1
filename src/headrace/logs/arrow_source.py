"""`ArrowSource`: the rows of an Arrow table, with the same checks as rows of files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.errors import DataError
from headrace.logs.casting import Mask
from headrace.logs.checks import BadRowPolicy, RowChecker, RowOrigin, columns_asked
from headrace.logs.raw_rows import values_at
from headrace.logs.schema import Schema
from headrace.logs.source import FILE_ROW_BITS, SourceBatch, split_row_id
from headrace.logs.time_units import check_column_unit
from headrace.messages import shorten_list

__all__ = ["ArrowSource"]


class ArrowSource:
    """The rows of an Arrow table; implements `headrace.logs.source.Source`.

    A split is a range of at most `max_rows_per_batch` rows, read as one batch.

    Args:
        table: The rows.
        schema: The schema of the log.
        columns: Schema columns to read and check; None for all.
        policy: How to handle bad rows.
        max_rows_per_batch: Maximum rows per split.
        name: Name of the table in errors and rejects.
        file_number: Number of the table in derived row ids.

    Raises:
        DataError: The table lacks a column.
        ConfigError: A requested column is not in the schema, or the timestamp is read and has a different unit.
    """

    def __init__(
        self,
        table: pa.Table,
        schema: Schema,
        *,
        columns: Sequence[str] | None = None,
        policy: BadRowPolicy | None = None,
        max_rows_per_batch: int = 65_536,
        name: str = "table",
        file_number: int = 0,
    ) -> None:
        columns = columns_asked(schema, columns, policy, where="ArrowSource")
        wanted = dict.fromkeys([*columns, *([schema.row_id] if schema.row_id else [])])
        missing = [column for column in wanted if column not in table.column_names]
        if missing:
            raise DataError(
                f"{name}: no column {shorten_list(missing)}; the table has {shorten_list(table.column_names)}"
            )
        self._table = table
        self._checker = RowChecker(schema, columns, BadRowPolicy() if policy is None else policy, table.schema)
        self._max_rows = max_rows_per_batch
        self._name = name
        self._file_number = file_number
        self._has_row_id = schema.row_id is not None
        self._kept = [column for column in schema.columns if column in table.column_names]
        if schema.timestamp is not None and schema.timestamp.name in self._checker.inputs and table.num_rows:
            check_column_unit(self._slice(0, [schema.timestamp.name]).column(0), schema.timestamp)

    @property
    def output_schema(self) -> pa.Schema:
        """Names and types of the batches' columns: the requested columns, then `ROW_ID`."""
        return self._checker.output_schema

    def __len__(self) -> int:
        return -(-int(self._table.num_rows) // self._max_rows)

    def describe(self, split: int) -> str:
        """Describe a split: the table and its rows."""
        start = split * self._max_rows
        return f"{self._name}, rows {start} to {start + self.num_rows(split)}"

    def locate(self, row_id: int) -> str:
        """Describe the row of a derived row id, for error messages; only the id if the schema has a row id column."""
        return f"row id {row_id}" if self._has_row_id else f"{self._name}, row {split_row_id(row_id)[1]}"

    def num_rows(self, split: int) -> int:
        """Number of rows of a split."""
        return int(min(self._max_rows, self._table.num_rows - split * self._max_rows))

    def estimate_bytes(self, split: int) -> int:
        """Bytes of a split's columns."""
        return int(self._slice(split, self._checker.inputs).nbytes)

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the single batch of a split.

        Raises:
            DataError: A row is bad and the policy is "fail".
        """
        rows = np.arange(self.num_rows(split), dtype=np.int64) + split * self._max_rows
        origin = RowOrigin(self._name, 0, rows, rows | np.int64(self._file_number << FILE_ROW_BITS))
        rest = [name for name in self._kept if name not in self._checker.inputs]

        def rest_of(bad: Mask) -> dict[str, list[Any]]:
            return values_at(self._slice(split, rest), np.flatnonzero(bad)) if rest else {}

        yield self._checker.check(self._slice(split, self._checker.inputs), origin, rest_of)

    def _slice(self, split: int, names: Sequence[str]) -> pa.RecordBatch:
        part = self._table.select(list(names)).slice(split * self._max_rows, self._max_rows)
        (batch,) = part.combine_chunks().to_batches()
        return batch
