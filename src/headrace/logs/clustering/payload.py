"""Reads the rows to be clustered: all columns of all files of a window, in one set of types, with ids and places."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.errors import ConfigError, DataError
from headrace.logs.clustering.config import ClusterConfig
from headrace.logs.footers import Footer, iter_plain, open_parquet, reading
from headrace.logs.pieces import FILE_ROW_BITS, ORIGINAL_ROW
from headrace.logs.schema import Schema

__all__ = ["SESSION_NUMBER", "LogColumns", "PayloadReader", "normal_type"]

FOUND_SESSION = "session"
"""Column with the sessions found by gaps: the id of the first row of each."""

SESSION_NUMBER = "__session"
"""Column that tells sessions apart while rows are arranged; not written."""

PROBE_ROWS = 256


@dataclass(frozen=True)
class LogColumns:
    """The parts that columns play in clustering.

    Attributes:
        schema: Of the log.
        key: Column that names the session, or the user whose sessions are found.
        session: Column of the clustered log that names the session.
        adds_session: Whether that column is made here.
        adds_row_id: Whether the column `original_row` is.
        labels: Label columns.
    """

    schema: Schema
    key: str
    session: str
    adds_session: bool
    adds_row_id: bool
    labels: tuple[str, ...]

    @classmethod
    def of(cls, schema: Schema, config: ClusterConfig) -> Self:
        """Find the session.

        Raises:
            ConfigError: There is none.
        """
        session = config.session or schema.session_id
        labels = tuple(label.name for label in schema.labels)
        if config.user is not None:
            if schema.timestamp is None:
                raise ConfigError("--user: sessions are found by gaps in time, but the schema has no timestamp")
            return cls(schema, config.user, FOUND_SESSION, True, schema.row_id is None, labels)
        if session is None:
            raise ConfigError(
                "no session: the schema names no session_id; give --session COLUMN, or --user COLUMN and --gap"
            )
        return cls(schema, session, session, False, schema.row_id is None, labels)

    @property
    def apart(self) -> tuple[str, ...]:
        """Columns that belong to one row whatever their values."""
        schema = self.schema
        clock = None if schema.timestamp is None else schema.timestamp.name
        names = [*self.labels, clock, schema.weight, schema.row_id, ORIGINAL_ROW]
        return tuple(name for name in names if name is not None)

    def written(self, names: Sequence[str]) -> list[str]:
        """Of the columns of an arranged batch, those that are written."""
        return [name for name in names if name != SESSION_NUMBER]

    def output_schema_of(self, schema: Schema) -> Schema:
        """The schema of the clustered log: that of the log, whose row ids readers find in any layout."""
        return schema.model_copy(update={"session_id": self.session})


class PayloadReader:
    """All columns of some files, in their order, with the row's id and session where these are not columns already.

    Args:
        footers: Files with their numbers.
        columns: The parts they play.
        max_bytes: Of a batch, about.

    Attributes:
        schema: Of the batches: the columns of the log, those added, and `SESSION_NUMBER`.
        row_bytes: Bytes of a row in memory, by the first rows and by what the footers say.

    Raises:
        ConfigError: The key is not a column, or a column has the name of one to be added.
        DataError: Files have other columns than the first.
    """

    def __init__(self, footers: Sequence[tuple[int, Footer]], columns: LogColumns, *, max_bytes: int) -> None:
        self._footers = footers
        self._columns = columns
        first = footers[0][1]
        names = first.schema.names
        if columns.key not in names:
            raise ConfigError(f"{first.file.path}: no column {columns.key}; the file has {', '.join(names)}")
        added = [SESSION_NUMBER]
        if columns.adds_row_id:
            added.insert(0, ORIGINAL_ROW)
        if columns.adds_session:
            added.insert(0, FOUND_SESSION)
        taken = [name for name in added if name in names]
        if taken:
            raise ConfigError(
                f"{first.file.path}: has a column {taken[0]} already, which clustering would add; rename it"
            )
        for _, footer in footers:
            if set(footer.schema.names) != set(names):
                differ = sorted(set(footer.schema.names) ^ set(names))
                raise DataError(
                    f"{footer.file.path}: columns differ from those of {first.file.path}: {', '.join(differ)}"
                )
        self._stored = pa.schema([pa.field(field.name, normal_type(field.type)) for field in first.schema])
        fields = [pa.field(name, pa.uint64() if name == SESSION_NUMBER else pa.int64()) for name in added]
        self.schema = pa.schema([*self._stored, *fields])
        self.row_bytes = max(self._probe(), _footer_bytes(first)) + 8.0 * len(added)
        self._batch_rows = int(max(1, min(65_536, max_bytes / self.row_bytes)))

    def read(self, destinations: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
        """Batches of the rows that have a destination, with it.

        Args:
            destinations: From `RowOrder.destinations`.
        """
        places = _Places(destinations)
        for number, footer in self._footers:
            row = 0
            for row_group in range(footer.metadata.num_row_groups):
                with reading(footer.file, row_group), open_parquet(footer) as parquet:
                    for batch in iter_plain(footer, parquet, row_group, self._stored.names, self._batch_rows):
                        start = (number << FILE_ROW_BITS) | row
                        row += batch.num_rows
                        found = places.take(start + batch.num_rows)
                        if found.num_rows:
                            yield self._complete(batch, start, found), found.column("destination").to_numpy()

    def _complete(self, batch: pa.RecordBatch, start: int, found: pa.RecordBatch) -> pa.RecordBatch:
        rows = found.column("row_id").to_numpy() - start
        arrays = [normal_array(batch.column(field.name), field.type) for field in self._stored]
        if len(rows) < batch.num_rows:
            arrays = [array.take(pa.array(rows)) for array in arrays]
        if self._columns.adds_session:
            arrays.append(found.column("name"))
        if self._columns.adds_row_id:
            arrays.append(found.column("row_id"))
        return pa.RecordBatch.from_arrays([*arrays, found.column("session")], schema=self.schema)

    def _probe(self) -> float:
        """Bytes of a row, by the first ones."""
        footer = self._footers[0][1]
        for row_group in range(min(1, footer.metadata.num_row_groups)):
            with reading(footer.file, row_group), open_parquet(footer) as parquet:
                for batch in iter_plain(footer, parquet, row_group, self._stored.names, PROBE_ROWS):
                    return float(batch.nbytes / max(batch.num_rows, 1))
        return 8.0


class _Places:
    """A stream of destinations, taken as far as the rows read."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: list[pa.RecordBatch] = []

    def take(self, stop: int) -> pa.RecordBatch:
        """Those of rows with ids below `stop` that have not been taken."""
        while not self._held or self._held[-1].column("row_id")[-1].as_py() < stop - 1:
            batch = next(self._batches, None)
            if batch is None:
                break
            if batch.num_rows:
                self._held.append(batch)
        if not self._held:
            return pa.RecordBatch.from_pydict({"row_id": [], "destination": []})
        held = pa.concat_batches(self._held)
        count = int(np.searchsorted(held.column("row_id").to_numpy(), stop))
        self._held = [held.slice(count)] if count < held.num_rows else []
        return held.slice(0, count)


def normal_type(kind: pa.DataType) -> pa.DataType:
    """The type a column is arranged and written as: dictionaries as their values, large lists and views as lists."""
    if pt.is_dictionary(kind):
        return kind.value_type
    if pt.is_large_list(kind) or pt.is_list_view(kind) or pt.is_large_list_view(kind) or pt.is_list(kind):
        return pa.list_(normal_type(kind.value_type))
    return kind


def normal_array(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """A column in its normal type."""
    return array if array.type.equals(kind) else array.cast(kind)


def _footer_bytes(footer: Footer) -> float:
    """Bytes of a row in memory by a file's footer: numbers take what their type does, however well they were packed."""
    total = 0
    for row_group in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(row_group)
        for leaf in range(group.num_columns):
            chunk = group.column(leaf)
            width = 8 if chunk.physical_type in ("INT64", "DOUBLE") else 4
            total += max(chunk.total_uncompressed_size, width * chunk.num_values)
    return total / max(footer.num_rows, 1)
