"""Writes clustered sessions to a Parquet file in either layout, published atomically after verification."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DataError
from headrace.files import writing
from headrace.logs.clustering.config import ClusterConfig
from headrace.logs.clustering.payload import LogColumns
from headrace.logs.encodings import fitting_encodings, writer_options
from headrace.logs.files import LogFile
from headrace.logs.footer_checks import seal_footer
from headrace.logs.footers import iter_plain, open_parquet, read_footer
from headrace.logs.nested.build import build_nested, session_starts
from headrace.logs.nested.choose import choose_layout
from headrace.logs.nested.layout import LAYOUT_KEY, SOURCES_KEY, Layout

__all__ = ["ClusteredFile", "SessionRows", "Sessions"]

SAMPLE_ROWS = 32_768
"""Rows from which a layout is chosen, if they fit into an eighth of the memory."""

READ_ROWS = 2048
"""Rows per batch when reading back."""


class Sessions(NamedTuple):
    """The rows of a row group.

    Attributes:
        rows: Rows with sessions adjacent, each in time order.
        is_new: bool [rows], True for the first row of each session.
    """

    rows: pa.RecordBatch
    is_new: npt.NDArray[np.bool_]


class SessionRows:
    """Cuts sorted rows into row groups that end at session boundaries.

    Args:
        rows_per_group: Rows per group; longer sessions are split.
    """

    def __init__(self, rows_per_group: int) -> None:
        self._rows_per_group = rows_per_group
        self._last: int | None = None

    def cut(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Sessions]:
        """Yield the row groups of the batches."""
        held: list[pa.RecordBatch] = []
        num_held = 0
        for batch in batches:
            start = 0
            while start < batch.num_rows:
                part = batch.slice(start, self._rows_per_group + 1 - num_held)
                start += part.num_rows
                held.append(part)
                num_held += part.num_rows
                if num_held > self._rows_per_group:
                    rows = pa.concat_batches(held)
                    stop = self._last_border(rows)
                    yield self._make(rows.slice(0, stop))
                    held, num_held = [rows.slice(stop)], rows.num_rows - stop
        if num_held:
            yield self._make(pa.concat_batches(held))

    def _last_border(self, rows: pa.RecordBatch) -> int:
        """Rows of the group: up to the start of the last session, or all that fit if there is only one."""
        numbers = rows.column(rows.num_columns - 1).to_numpy()
        borders = np.flatnonzero(numbers[1:] != numbers[:-1]) + 1
        return int(borders[-1]) if len(borders) else self._rows_per_group

    def _make(self, rows: pa.RecordBatch) -> Sessions:
        numbers = rows.column(rows.num_columns - 1).to_numpy()
        is_new = np.ones(len(numbers), dtype=np.bool_)
        is_new[1:] = numbers[1:] != numbers[:-1]
        is_new[0] = self._last is None or int(numbers[0]) != self._last
        self._last = int(numbers[-1])
        return Sessions(rows.select(list(range(rows.num_columns - 1))), is_new)


class ClusteredFile:
    """A file of a clustered log being written.

    Args:
        path: Final path.
        config: Layout and sizes.
        columns: Roles of the columns.
        layout: Layout of the log, if it has one; else it is chosen from the first rows.

    Attributes:
        layout: Layout of the log, available once the file is finished.

    """

    layout: Layout

    def __init__(self, path: Path, config: ClusterConfig, columns: LogColumns, layout: Layout | None) -> None:
        self._path = path
        self._staging = path.with_name(f".{path.name}.writing")
        self._config = config
        self._columns = columns
        self._given = layout
        self._sample: list[Sessions] = []
        self._sample_rows = 0
        self._sample_bytes = 0
        self._writer: pq.ParquetWriter | None = None

    def write(self, sessions: Sessions) -> None:
        """Add a row group."""
        if self._writer is not None:
            self._write(sessions)
            return
        self._sample.append(sessions)
        self._sample_rows += sessions.rows.num_rows
        self._sample_bytes += sessions.rows.nbytes
        if (
            self._given is not None
            or self._sample_rows >= SAMPLE_ROWS
            or self._sample_bytes >= self._config.memory_bytes // 8
        ):
            self._begin()

    def finish(self, sources: Mapping[str, Any]) -> None:
        """Close the file, with metadata about the origin of its rows; it is not published yet."""
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        writer, self._writer = self._writer, None
        with writing(self._path):
            writer.add_key_value_metadata({SOURCES_KEY.decode(): json.dumps(dict(sources))})
            writer.close()
            seal_footer(self._staging)

    def read_back(self) -> Iterator[pa.RecordBatch]:
        """Yield all rows of the finished file."""
        footer = read_footer(LogFile(str(self._staging), self._staging.stat().st_size))
        for row_group in range(footer.metadata.num_row_groups):
            with open_parquet(footer) as parquet:
                yield from iter_plain(footer, parquet, row_group, list(self.layout.columns), READ_ROWS)

    def publish(self) -> None:
        """Publish the finished file."""
        with writing(self._path):
            os.replace(self._staging, self._path)

    def __enter__(self) -> Self:
        with writing(self._path):
            self._path.parent.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._writer is not None:
            with suppress(OSError, pa.ArrowException):  # it is discarded anyway
                self._writer.close()
        self._staging.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Choose the layout, and write the sample rows."""
        if not self._sample:
            raise DataError(f"{self._path}: no rows to write")
        sample, self._sample = self._sample, []
        layout = self._given if self._given is not None else self._choose(sample)
        self.layout = layout
        first = self._table(sample[0])
        encodings = fitting_encodings(layout.encodings, first)
        if not layout.encodings:
            self.layout = layout.model_copy(update={"encodings": encodings})
        schema = first.schema.with_metadata({LAYOUT_KEY: self.layout.model_dump_json()})
        with writing(self._path):
            # PyArrow would interpret a relative path with a colon as a URL.
            place = str(self._staging.absolute())
            self._writer = pq.ParquetWriter(place, schema, **writer_options(encodings))
        for sessions in sample:
            self._write(sessions)

    def _choose(self, sample: list[Sessions]) -> Layout:
        rows = pa.concat_batches([sessions.rows for sessions in sample])
        is_new = np.concatenate([sessions.is_new for sessions in sample])
        return choose_layout(
            self._config.layout, rows, is_new, session=self._columns.session, apart=self._columns.apart
        )

    def _table(self, sessions: Sessions) -> pa.RecordBatch:
        if self.layout.kind == "clustered":
            return sessions.rows
        starts = session_starts(sessions.rows, sessions.is_new, self.layout, max_rows=self._config.max_session_rows)
        return build_nested(sessions.rows, starts, self.layout)

    def _write(self, sessions: Sessions) -> None:
        assert self._writer is not None
        table = self._table(sessions)
        with writing(self._path):
            self._writer.write_batch(table, row_group_size=max(table.num_rows, 1))
