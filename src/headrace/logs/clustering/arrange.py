"""Sorts rows into a given order in bounded memory, using temporary files if needed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.files import writing
from headrace.logs.gathering import gather

__all__ = ["Arranger"]

FLUSH_BYTES = 8 << 20
"""Bytes of a partition buffered before writing: small enough for hundreds of partitions, large enough for disks."""


class Arranger:
    """Takes rows with their destinations in any order, and returns them in the order of the destinations.

    Destinations are split into equal parts, as many as the memory budget requires. The rows of each part are appended
    to a temporary file, which is finally read and sorted.

    Args:
        schema: Arrow schema of the rows.
        num_rows: Total rows; destinations are 0 to num_rows - 1, each once.
        row_bytes: Approximate bytes per row in memory.
        memory_bytes: Approximate memory budget.
        folder: Folder for temporary files.
    """

    def __init__(self, schema: pa.Schema, *, num_rows: int, row_bytes: float, memory_bytes: int, folder: Path) -> None:
        # Sorting a part holds it twice, and a third time while it is consumed.
        num_parts = max(1, int(np.ceil(num_rows * row_bytes * 3 / memory_bytes)))
        self.rows_per_part = max(1, -(-num_rows // num_parts))
        self.num_parts = max(1, -(-num_rows // self.rows_per_part))
        self._schema = schema.append(pa.field("__destination", pa.int64()))
        self._num_rows = num_rows
        self._max_held = memory_bytes // 3
        self._folder = folder
        self._held: list[list[pa.RecordBatch]] = [[] for _ in range(self.num_parts)]
        self._bytes = np.zeros(self.num_parts, dtype=np.int64)
        self._files: dict[int, tuple[pa.NativeFile, pa.RecordBatchWriter]] = {}

    def add(self, rows: pa.RecordBatch, destinations: npt.NDArray[np.int64]) -> None:
        """Add rows."""
        rows = pa.RecordBatch.from_arrays([*rows.columns, pa.array(destinations)], schema=self._schema)
        if self.num_parts == 1:
            self._held[0].append(rows)
            return
        parts = destinations // self.rows_per_part
        order = np.argsort(parts, kind="stable")
        ends = np.cumsum(np.bincount(parts, minlength=self.num_parts))
        start = 0
        for part in np.unique(parts).tolist():
            taken = _take(rows, order[start : ends[part]])
            start = int(ends[part])
            self._held[part].append(taken)
            self._bytes[part] += taken.nbytes
            if self._bytes[part] >= FLUSH_BYTES:
                self._flush(part)
        while self._bytes.sum() > self._max_held:
            self._flush(int(self._bytes.argmax()))

    def arranged(self) -> Iterator[pa.RecordBatch]:
        """Yield the rows in order, one part at a time; call it once, after all rows were added."""
        for part in range(self.num_parts):
            if part in self._files:
                self._flush(part)
                sink, writer = self._files.pop(part)
                with writing(self._path(part)):
                    writer.close()
                    sink.close()
                path = self._path(part)
                with pa.OSFile(str(path), "rb") as source, pa.ipc.open_stream(source) as reader:
                    batches = list(reader)
                path.unlink()
            else:
                batches, self._held[part] = self._held[part], []
            if batches:
                rows = self._sort(batches)
                del batches
                yield rows
                del rows
                pa.default_memory_pool().release_unused()

    def close(self) -> None:
        """Remove temporary files."""
        for part, (sink, writer) in self._files.items():
            with suppress(OSError, pa.ArrowException):  # if writing failed, closing may fail too
                writer.close()
                sink.close()
            self._path(part).unlink(missing_ok=True)
        self._files.clear()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _sort(self, batches: list[pa.RecordBatch]) -> pa.RecordBatch:
        destinations = np.concatenate([batch.column(batch.num_columns - 1).to_numpy() for batch in batches])
        order = np.argsort(destinations, kind="stable")
        columns = []
        for index in range(len(self._schema) - 1):  # column by column, so that only one column is held twice
            column = pa.concat_arrays([batch.column(index) for batch in batches])
            columns.append(gather(column, order))
        return pa.RecordBatch.from_arrays(columns, names=self._schema.names[:-1])

    def _flush(self, part: int) -> None:
        if not self._held[part]:
            return
        block = pa.concat_batches(self._held[part])
        with writing(self._path(part)):
            if part not in self._files:
                sink = pa.OSFile(str(self._path(part)), "wb")
                options = pa.ipc.IpcWriteOptions(compression="lz4")
                self._files[part] = sink, pa.ipc.new_stream(sink, self._schema, options=options)
            self._files[part][1].write_batch(block)
        self._held[part] = []
        self._bytes[part] = 0

    def _path(self, part: int) -> Path:
        return self._folder / f"part-{part}.arrow"


def _take(rows: pa.RecordBatch, order: npt.NDArray[np.int64]) -> pa.RecordBatch:
    return pa.RecordBatch.from_arrays([gather(column, order) for column in rows.columns], schema=rows.schema)
