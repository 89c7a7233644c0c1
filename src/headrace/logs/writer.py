"""`ParquetLogWriter`: writes one folder of a log in bounded memory, published atomically."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self
from urllib.parse import quote

import pyarrow as pa
import pyarrow.parquet as pq

from headrace.errors import DataError, expect
from headrace.files import writing
from headrace.logs.footer_checks import seal_footer
from headrace.messages import shorten_list
from headrace.paths import local_path

__all__ = ["MARKER_NAME", "ParquetLogWriter", "partition_folder", "read_marker"]

MARKER_NAME = "_headrace.json"
"""Name of the optional marker file of a finished folder; readers skip it, like any name that starts with an
underscore."""

MAX_GROUP_BYTES = 128 << 20
"""Maximum Arrow bytes of a row group, so that a reader that decodes one row group per thread stays far below a
gigabyte."""


class ParquetLogWriter:
    """Writes record batches to Parquet files in one folder, which is published atomically when the writer is closed.

    Files are written to a hidden folder next to the target (`.NAME.writing`), which is renamed on `close`. A killed
    writer leaves only that hidden folder, which the next writer of the same target removes. At most one row group is
    held in memory. Only one writer per folder; not thread-safe::

        with ParquetLogWriter("logs", schema=schema, partition=[("hour", "12")]) as writer:   # logs/hour=12/
            for batch in batches:
                writer.write(batch)

    Args:
        folder: Local output folder.
        schema: Columns of the files. Batches are reordered and safely cast to it.
        rows_per_group: Rows per row group, the unit of parallel reading.
        rows_per_file: Rows per file; None for a single file.
        partition: (key, value) pairs appended to `folder` as hive partition folders.
        if_exists: "error" refuses a non-empty folder; "append" adds files, numbered after the existing ones.
        marker: JSON-able values stored in the finished folder (see `read_marker`), so that a repeated import can detect
            finished folders.
        compression: Parquet codec.

    Attributes:
        folder: The final folder, including the partition.
        num_rows: Number of rows written so far.

    Raises:
        FileExistsError: The folder is not empty and `if_exists` is "error".
        StorageError: The folder cannot be written, now or later; written data is discarded.
    """

    def __init__(
        self,
        folder: str | Path,
        *,
        schema: pa.Schema,
        rows_per_group: int = 65_536,
        rows_per_file: int | None = None,
        partition: Sequence[tuple[str, str]] = (),
        if_exists: Literal["error", "append"] = "error",
        marker: Mapping[str, Any] | None = None,
        compression: str = "zstd",
    ) -> None:
        expect(schema, pa.Schema, where="ParquetLogWriter: schema", expected="a pyarrow.Schema")
        if rows_per_group < 1 or (rows_per_file is not None and rows_per_file < 1):
            raise ValueError(
                f"rows_per_group and rows_per_file must be at least 1, given {rows_per_group} and {rows_per_file}"
            )
        self.folder = partition_folder(local_path(folder, where="folder"), partition)
        self.num_rows = 0
        self._schema = schema
        self._rows_per_group = rows_per_group
        self._rows_per_file = rows_per_file
        self._marker = marker
        self._compression = compression
        if if_exists == "error" and self.folder.is_dir() and any(self.folder.iterdir()):
            raise FileExistsError(f"{self.folder}: is not empty; remove it, or append to it")
        self._next_number = _first_free_number(self.folder)
        target = self.folder.absolute()
        self._staging = target.parent / f".{target.name}.writing"
        with writing(self.folder):
            shutil.rmtree(self._staging, ignore_errors=True)
            self._staging.mkdir(parents=True)
        self._names: list[str] = []
        self._file: pq.ParquetWriter | None = None
        self._file_rows = 0
        self._pending: list[pa.RecordBatch] = []
        self._pending_rows = 0
        self._pending_bytes = 0
        self._closed = False

    @property
    def files(self) -> tuple[Path, ...]:
        """The files written so far, with their final paths."""
        return tuple(self.folder / name for name in self._names)

    def write(self, rows: pa.RecordBatch | pa.Table) -> None:
        """Add rows; full row groups are written before this returns.

        Raises:
            DataError: A column of the schema is missing, or cannot be cast without loss.
            ValueError: The writer is closed.
        """
        if self._closed:
            raise ValueError(f"{self.folder}: the writer is closed")
        for batch in self._conform(rows).to_batches():
            start = 0
            while start < batch.num_rows:
                part = batch.slice(start, min(batch.num_rows - start, self._room()))
                start += part.num_rows
                self._pending.append(part)
                self._pending_rows += part.num_rows
                self._pending_bytes += part.nbytes
                self.num_rows += part.num_rows
                if self._room() == 0 or self._pending_bytes >= MAX_GROUP_BYTES:
                    self._flush_group()

    def start_file(self) -> None:
        """Start a new file for the following rows; no empty file is created."""
        if self._pending:
            self._flush_group()
        self._finish_file()

    def close(self) -> None:
        """Write pending rows and publish the folder. Idempotent."""
        if self._closed:
            return
        try:
            if self._pending or not self._names:
                self._flush_group()
            self._finish_file()
            with writing(self.folder):
                if self._marker is not None:
                    text = json.dumps(dict(self._marker), indent=1, sort_keys=True)
                    (self._staging / MARKER_NAME).write_text(text + "\n", encoding="utf-8")
                self._publish()
        except BaseException:
            self.abort()
            raise
        self._closed = True

    def abort(self) -> None:
        """Discard everything; nothing is published."""
        if self._closed:
            return
        self._closed = True
        if self._file is not None:
            with suppress(OSError, pa.ArrowException):  # discarded anyway
                self._file.close()
        shutil.rmtree(self._staging, ignore_errors=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _conform(self, rows: pa.RecordBatch | pa.Table) -> pa.Table:
        expect(rows, (pa.RecordBatch, pa.Table), where="write: rows", expected="a pyarrow.RecordBatch or Table")
        table = pa.Table.from_batches([rows]) if isinstance(rows, pa.RecordBatch) else rows
        missing = [name for name in self._schema.names if name not in table.schema.names]
        if missing:
            given = shorten_list(table.schema.names)
            raise DataError(f"{self.folder}: rows to write have no column {shorten_list(missing)}; they have {given}")
        table = table.select(self._schema.names)
        if table.schema.equals(self._schema):
            return table
        try:
            return table.cast(self._schema)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, ValueError) as error:
            raise DataError(f"{self.folder}: rows to write do not fit the schema: {error}") from error

    def _room(self) -> int:
        """Number of rows that still fit into the current row group."""
        room = self._rows_per_group - self._pending_rows
        if self._rows_per_file is not None:
            room = min(room, self._rows_per_file - self._file_rows - self._pending_rows)
        return room

    def _flush_group(self) -> None:
        table = pa.Table.from_batches(self._pending, self._schema)
        with writing(self.folder):
            if self._file is None:
                name = f"part-{self._next_number:05d}.parquet"
                self._next_number += 1
                self._names.append(name)
                # PyArrow would interpret a relative path with a colon as a URL.
                place = str(self._staging / name)
                options = {"compression": self._compression, "write_page_checksum": True}
                self._file = pq.ParquetWriter(place, self._schema, **options)
                self._file_rows = 0
            self._file.write_table(table, row_group_size=max(table.num_rows, 1))
        self._file_rows += table.num_rows
        self._pending, self._pending_rows, self._pending_bytes = [], 0, 0
        if self._rows_per_file is not None and self._file_rows >= self._rows_per_file:
            self._finish_file()

    def _finish_file(self) -> None:
        if self._file is not None:
            with writing(self.folder):
                self._file.close()
                self._file = None
                seal_footer(self._staging / self._names[-1])
        self._file_rows = 0

    def _publish(self) -> None:
        if not self.folder.exists() or not any(self.folder.iterdir()):
            os.replace(self._staging, self.folder)
            return
        for path in sorted(self._staging.iterdir(), key=lambda path: path.name == MARKER_NAME):  # the marker last
            os.replace(path, self.folder / path.name)
        self._staging.rmdir()


def partition_folder(folder: str | Path, partition: Sequence[tuple[str, str]]) -> Path:
    """The folder of a hive partition: `("hour", "12")` in `logs` is `logs/hour=12`."""
    path = Path(folder)
    for key, value in partition:
        path = path / f"{quote(str(key), safe=' ')}={quote(str(value), safe=' ')}"
    return path


def read_marker(folder: str | Path) -> dict[str, Any] | None:
    """Read the marker values of a finished folder, or None if there are none."""
    path = Path(folder) / MARKER_NAME
    if not path.is_file():
        return None
    try:
        values: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{path}: not JSON: {error}") from error
    return values


def _first_free_number(folder: Path) -> int:
    numbers = [
        int(name) for path in folder.glob("part-*.parquet") if (name := path.stem.removeprefix("part-")).isdigit()
    ]
    return max(numbers, default=-1) + 1
