"""Writes the rows of sessions as one Parquet file, in either layout, which appears whole when it has been verified."""

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
"""Rows that a layout is chosen from, as far as they fit in an eighth of the memory."""

READ_ROWS = 2048
"""Rows read back at a time."""


class Sessions(NamedTuple):
    """Rows of a row group.

    Attributes:
        rows: Sessions adjacent, in order of time.
        is_new: bool [rows], true for the first row of each session.
    """

    rows: pa.RecordBatch
    is_new: npt.NDArray[np.bool_]


class SessionRows:
    """Cuts arranged rows into row groups that end where sessions end.

    Args:
        rows_per_group: Rows of a group; one session may have more, then it is cut.
    """

    def __init__(self, rows_per_group: int) -> None:
        self._rows_per_group = rows_per_group
        self._last: int | None = None

    def cut(self, batches: Iterator[pa.RecordBatch]) -> Iterator[Sessions]:
        """Row groups of the batches."""
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
        """Rows of the group: up to where the last session begins, or all that fit if it is a single one."""
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
    """A file of a clustered log while it is written.

    Args:
        path: Where it appears.
        config: Layout and sizes.
        columns: The parts columns play.
        layout: Of the log, if it has one already; else it is chosen from the first rows.

    Attributes:
        layout: Of the log; there once the file is finished.

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
        """Close the file, with a note of where its rows come from; it does not appear yet."""
        if self._writer is None:
            self._begin()
        assert self._writer is not None
        writer, self._writer = self._writer, None
        with writing(self._path):
            writer.add_key_value_metadata({SOURCES_KEY.decode(): json.dumps(dict(sources))})
            writer.close()
            seal_footer(self._staging)

    def read_back(self) -> Iterator[pa.RecordBatch]:
        """All rows as they are in the finished file."""
        footer = read_footer(LogFile(str(self._staging), self._staging.stat().st_size))
        for row_group in range(footer.metadata.num_row_groups):
            with open_parquet(footer) as parquet:
                yield from iter_plain(footer, parquet, row_group, list(self.layout.columns), READ_ROWS)

    def publish(self) -> None:
        """Let the finished file appear."""
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
            with suppress(OSError, pa.ArrowException):  # it is thrown away
                self._writer.close()
        self._staging.unlink(missing_ok=True)

    def _begin(self) -> None:
        """Choose the layout, and write what it was chosen from."""
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
            # An absolute path: PyArrow takes a relative one with a colon for a URL.
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
