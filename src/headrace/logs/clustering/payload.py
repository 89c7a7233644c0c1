"""Reads the rows to be clustered: all columns of all files of a window, in one set of types, with ids and places."""

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
"""Column with the sessions found by gaps: the id of the first row of each."""

SESSION_NUMBER = "__session"
"""Last column of arranged rows, by position: tells sessions apart; not written."""

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
                raise ConfigError("--user: deriving sessions from gaps needs a timestamp in the schema")
            return cls(schema, config.user, FOUND_SESSION, True, schema.row_id is None, labels)
        if session is None:
            raise ConfigError(
                "no session column: the schema has no session_id; give --session COLUMN, or --user COLUMN and --gap"
            )
        return cls(schema, session, session, False, schema.row_id is None, labels)

    @property
    def apart(self) -> tuple[str, ...]:
        """Columns that belong to one row whatever their values."""
        schema = self.schema
        clock = None if schema.timestamp is None else schema.timestamp.name
        names = [*self.labels, clock, schema.weight, schema.row_id, ORIGINAL_ROW]
        return tuple(name for name in names if name is not None)

    def beside(self, names: Sequence[str]) -> Self:
        """The same parts in a log of the given columns: a session that is found gets a name that none of them has.

        Raises:
            ConfigError: Columns that are needed are missing, or one has the name of the row ids to be added.
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
        """The schema of the clustered log: that of the log, whose row ids readers find in any layout."""
        return schema.model_copy(update={"session_id": self.session})


class PayloadReader:
    """All columns of some files, in their order, with the row's id and session where these are not columns already.

    Args:
        footers: Files with their numbers.
        columns: The parts they play.
        stored: Columns of the log to read, each with the common type of all files; null where a file lacks one.
        max_bytes: Of a batch, about.

    Attributes:
        schema: Of the batches: the columns of the log, those added, and last `SESSION_NUMBER`.
        row_bytes: Bytes of a row in memory, by the first rows and by what the footers say.
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
        """Batches of the rows that have a destination, with it.

        Args:
            destinations: From `RowOrder.destinations`.
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
        """Columns to read of a file; at least one, which counts the rows."""
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
        """Bytes of a row, by the first ones."""
        footer = self._footers[0][1]
        for row_group in range(min(1, footer.metadata.num_row_groups)):
            with open_parquet(footer) as parquet:
                for batch in iter_plain(footer, parquet, row_group, self._names_in(footer), PROBE_ROWS):
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


def widened(array: pa.Array, field: pa.Field, where: str) -> pa.Array:
    """A column in the type that holds it in all files.

    Raises:
        DataError: The type cannot hold a value; names the place.
    """
    try:
        return widen(array, field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"{where}: column {one_line(field.name)} is stored as {array.type}, in other files as other types; "
            f"{field.type}, which would hold them all, cannot hold a value of it ({error}); rewrite them as one type"
        ) from error


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
