"""Reads the rows to cluster: all columns of a window's files, with common types, ids and destinations."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ConfigError, DataError
from headrace.logs.clustering.config import ClusterConfig
from headrace.logs.common_types import widen
from headrace.logs.footers import Footer, iter_plain, open_parquet
from headrace.logs.schema import Schema
from headrace.logs.source import FILE_ROW_BITS, ORIGINAL_ROW
from headrace.messages import one_line

__all__ = ["LogColumns", "PayloadReader", "widened"]

FOUND_SESSION = "session"
"""Column of sessions derived from gaps: the id of the session's first row."""

SESSION_NUMBER = "__session"
"""Last column of sorted rows, which distinguishes sessions; it is not written."""

PROBE_ROWS = 256


@dataclass(frozen=True)
class LogColumns:
    """Roles of columns in clustering.

    Attributes:
        schema: Schema of the log.
        key: Session column, or user column from which sessions are derived.
        session: Session column of the clustered log.
        adds_session: Whether clustering adds that column.
        adds_row_id: Whether clustering adds the column `original_row`.
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
        """Determine the session.

        Raises:
            ConfigError: There is no session.
        """
        session = config.session or schema.session_id
        labels = tuple(label.name for label in schema.labels)
        if config.user is not None:
            if schema.timestamp is None:
                raise ConfigError("--user: deriving sessions from gaps needs a timestamp in the schema")
            return cls(schema, config.user, FOUND_SESSION, True, schema.row_id is None, labels)
        if session is None:
            raise ConfigError(
                "no session column: the schema has no session_id; give --session COLUMN, or --user COLUMN and --gap"
            )
        return cls(schema, session, session, False, schema.row_id is None, labels)

    @property
    def apart(self) -> tuple[str, ...]:
        """Columns that always belong to a single row."""
        schema = self.schema
        clock = None if schema.timestamp is None else schema.timestamp.name
        names = [*self.labels, clock, schema.weight, schema.row_id, ORIGINAL_ROW]
        return tuple(name for name in names if name is not None)

    def beside(self, names: Sequence[str]) -> Self:
        """The same roles for a log with the given columns; derived sessions get an unused column name.

        Raises:
            ConfigError: Required columns are missing, or one has the name of the row id column to add.
        """
        session = self.session
        while self.adds_session and session in names:
            session = f"found_{session}"
        if self.adds_row_id and ORIGINAL_ROW in names:
            raise ConfigError(
                f"the log already has a column {ORIGINAL_ROW}, which clustering would add; rename it, or name it as "
                f"row_id in the schema"
            )
        return replace(self, session=session)

    def output_schema_of(self, schema: Schema) -> Schema:
        """The schema of the clustered log, which is the log's: readers find row ids in any layout."""
        return schema.model_copy(update={"session_id": self.session})


class PayloadReader:
    """Reads all columns of some files in order, adding row ids and sessions if they are not columns.

    Args:
        footers: Files with their numbers.
        columns: Roles of the columns.
        stored: Columns of the log to read, each with the common type of all files; null where a file lacks it.
        max_bytes: Approximate bytes per batch.

    Attributes:
        schema: Schema of the batches: the columns of the log, added columns, and last `SESSION_NUMBER`.
        row_bytes: Bytes per row in memory, estimated from the first rows and the footers.
    """

    def __init__(
        self, footers: Sequence[tuple[int, Footer]], columns: LogColumns, stored: pa.Schema, *, max_bytes: int
    ) -> None:
        self._footers = footers
        self._columns = columns
        self._stored = stored
        added = [columns.session] if columns.adds_session else []
        added += [ORIGINAL_ROW] if columns.adds_row_id else []
        fields = [*(pa.field(name, pa.int64()) for name in added), pa.field(SESSION_NUMBER, pa.uint64())]
        self.schema = pa.schema([*stored, *fields])
        self.row_bytes = max(self._probe(), _footer_bytes(footers[0][1])) + 8.0 * len(fields)
        self._batch_rows = int(max(1, min(65_536, max_bytes / self.row_bytes)))

    def read(self, destinations: Iterator[pa.RecordBatch]) -> Iterator[tuple[pa.RecordBatch, npt.NDArray[np.int64]]]:
        """Yield batches of the rows that have a destination, with their destinations.

        Args:
            destinations: Result of `RowOrder.destinations`.
        """
        places = _Places(destinations)
        for number, footer in self._footers:
            row = 0
            for row_group in range(footer.metadata.num_row_groups):
                with open_parquet(footer) as parquet:
                    for batch in iter_plain(footer, parquet, row_group, self._names_in(footer), self._batch_rows):
                        start = (number << FILE_ROW_BITS) | row
                        row += batch.num_rows
                        found = places.take(start + batch.num_rows)
                        if found.num_rows:
                            where = f"{footer.file.path}, row group {row_group}"
                            yield self._complete(batch, start, found, where), found.column("destination").to_numpy()

    def _names_in(self, footer: Footer) -> list[str]:
        """Columns to read from a file; at least one, to count the rows."""
        there = set(footer.schema.names)
        return [name for name in self._stored.names if name in there]

    def _complete(self, batch: pa.RecordBatch, start: int, found: pa.RecordBatch, where: str) -> pa.RecordBatch:
        rows = found.column("row_id").to_numpy() - start
        there = set(batch.schema.names)
        arrays = [
            widened(batch.column(field.name), field, where)
            if field.name in there
            else pa.nulls(batch.num_rows, field.type)
            for field in self._stored
        ]
        if len(rows) < batch.num_rows:
            arrays = [array.take(pa.array(rows)) for array in arrays]
        if self._columns.adds_session:
            arrays.append(found.column("name"))
        if self._columns.adds_row_id:
            arrays.append(found.column("row_id"))
        return pa.RecordBatch.from_arrays([*arrays, found.column("session")], schema=self.schema)

    def _probe(self) -> float:
        """Bytes per row, measured on the first rows."""
        footer = self._footers[0][1]
        for row_group in range(min(1, footer.metadata.num_row_groups)):
            with open_parquet(footer) as parquet:
                for batch in iter_plain(footer, parquet, row_group, self._names_in(footer), PROBE_ROWS):
                    return float(batch.nbytes / max(batch.num_rows, 1))
        return 8.0


class _Places:
    """A stream of destinations, consumed along with the rows read."""

    def __init__(self, batches: Iterator[pa.RecordBatch]) -> None:
        self._batches = batches
        self._held: list[pa.RecordBatch] = []

    def take(self, stop: int) -> pa.RecordBatch:
        """Take the remaining destinations of rows with ids below `stop`."""
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


def widened(array: pa.Array, field: pa.Field, where: str) -> pa.Array:
    """Cast a column to its common type in all files.

    Raises:
        DataError: The type cannot represent a value; the message names the place.
    """
    try:
        return widen(array, field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"{where}: column {one_line(field.name)} is stored as {array.type}, and as other types in other files; "
            f"{field.type}, the common type, cannot represent a value of it ({error}); rewrite the files with one type"
        ) from error


def _footer_bytes(footer: Footer) -> float:
    """Bytes per row in memory according to a file's footer, with numbers at the size of their type."""
    total = 0
    for row_group in range(footer.metadata.num_row_groups):
        group = footer.metadata.row_group(row_group)
        for leaf in range(group.num_columns):
            chunk = group.column(leaf)
            width = 8 if chunk.physical_type in ("INT64", "DOUBLE") else 4
            total += max(chunk.total_uncompressed_size, width * chunk.num_values)
    return total / max(footer.num_rows, 1)
