"""`PageFile`: rows in pages of an unnamed file, appended in runs, read by page number with many requests in flight.

A page has the row numbers and uses of its records, then the records (weights and optimizer state), so that its living
rows can be found again::

    rows int32 [n] | uses float32 [n] | n records of `row_bytes` bytes | unused

The record at place j of page p has the position p n + j. Pages are never written again while a record in them lives:
adjacent pages form a *segment*, which is free once no record in it lives.
"""

from __future__ import annotations

import heapq
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.storage.page_readers import PageReader
from headrace.embeddings.storage.record_kernels import unpack_records
from headrace.embeddings.storage.unnamed_files import UnnamedFile
from headrace.errors import StorageError

__all__ = ["PageFile", "PageReading", "empty_pages"]

PAGE_BYTES = 4096
"""Smallest unit that can be read directly. Rows of more bytes have pages of a multiple of this."""

HEADER_BYTES = 8  # per record
ALLOCATED_SEGMENTS = 64
"""Segments that the file grows by, at least: 64 MiB."""

MAX_WRITES = 4  # runs that are written at the same time

Int64s = npt.NDArray[np.int64]
Bytes = npt.NDArray[np.uint8]


class PageReading:
    """Pages that are being read.

    Attributes:
        pages: Numbers of the pages, int64 [P], ascending.
        buffer: uint8 [P, page_bytes], complete after `wait`.
    """

    def __init__(self, pages: Int64s, buffer: Bytes, parts: Sequence[Future[int]], folder: Path) -> None:
        self.pages, self.buffer = pages, buffer
        self._parts, self._folder = parts, folder

    @property
    def is_done(self) -> bool:
        """Whether `wait` returns at once."""
        return all(part.done() for part in self._parts)

    def wait(self) -> None:
        """Wait until all pages are read.

        Raises:
            StorageError: A page cannot be read.
        """
        failed = [page for page in (part.result() for part in self._parts) if page >= 0]
        if failed:
            raise self._error(failed[0])

    def unpack(self, places: Int64s, per_page: int, rows: Int64s, *to: npt.NDArray[Any]) -> None:
        """Wait, and copy the records of rows; see `unpack_records` for the arguments.

        Raises:
            StorageError: A page cannot be read, or has other rows.
        """
        self.wait()
        place = unpack_records(self.buffer, places, per_page, rows, *to)
        if place >= 0:
            raise self._error(int(self.pages[place // per_page]))

    def _error(self, page: int) -> StorageError:
        return StorageError(
            f"{self._folder}: page {page} of the rows in files cannot be read back; is the disk in order? Training "
            "resumes from the newest checkpoint"
        )


class PageFile:
    """Rows in an unnamed file, by position. Not thread-safe, but its threads read and write in the background.

    Args:
        folder: An existing folder.
        row_bytes: Bytes of a record.
        segment_pages: Pages of a segment.

    Raises:
        ConfigError: The folder does not exist, or cannot be written to.

    Attributes:
        page_bytes: Bytes of a page.
        per_page: Number n of records in a page.
        segment_pages: Pages of a segment.
        num_live: Number of living records.
        num_read_pages: Pages read so far.
        num_written_pages: Pages written so far.
    """

    def __init__(self, folder: str | Path, row_bytes: int, *, segment_pages: int) -> None:
        self._file = UnnamedFile(folder, direct=True)
        self.page_bytes = -(-(row_bytes + HEADER_BYTES) // PAGE_BYTES) * PAGE_BYTES
        self.per_page = self.page_bytes // (row_bytes + HEADER_BYTES)
        self.segment_pages = segment_pages
        self.num_live = self.num_read_pages = self.num_written_pages = 0
        self._live: Int64s = np.zeros(0, dtype=np.int64)  # living records of each segment
        self._is_used: npt.NDArray[np.bool_] = np.zeros(0, dtype=np.bool_)
        self._free: list[int] = []  # segments, lowest first
        self._open, self._next_page = -1, segment_pages  # segment that is being filled
        self._kept: set[int] = set()  # segments that are being compacted
        self._reader = PageReader(self._file.descriptor, self.page_bytes, is_direct=self._file.is_direct)
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="headrace rows written")
        self._writes: list[tuple[Int64s, Future[None]]] = []

    @property
    def segment_rows(self) -> int:
        """Number of records of a segment."""
        return self.segment_pages * self.per_page

    @property
    def num_used_segments(self) -> int:
        """Segments that are not free."""
        return len(self._live) - len(self._free)

    def append(self, buffer: Bytes, num_rows: int) -> Int64s:
        """Write records in the background.

        Args:
            buffer: uint8 [P, page_bytes] from `empty_pages`, filled; must not change afterwards.
            num_rows: Number of records in it.

        Returns:
            Their positions, int64 [num_rows].

        Raises:
            StorageError: The disk is full, or an earlier run could not be written.
        """
        self._finish_writes(down_to=MAX_WRITES - 1)
        pages = np.array([self._take_page() for _ in range(len(buffer))], dtype=np.int64)
        places = np.arange(num_rows)
        positions: Int64s = pages[places // self.per_page] * self.per_page + places % self.per_page
        self._live += self._per_segment(positions)
        self.num_live += num_rows
        self.num_written_pages += len(pages)
        self._writes.append((pages, self._writer.submit(self._write, pages, buffer)))
        return positions

    def read(self, pages: Int64s) -> PageReading:
        """Start to read pages int64 [P], unique and ascending.

        Raises:
            StorageError: A page is still being written, and cannot be.
        """
        for written, future in self._writes:
            if np.isin(pages, written, assume_unique=True).any():
                future.result()
        buffer = empty_pages(len(pages), self.page_bytes)
        self.num_read_pages += len(pages)
        return PageReading(pages, buffer, self._reader.read(pages, buffer), self._file.folder)

    def release(self, positions: Int64s) -> None:
        """Records at these positions no longer live."""
        self._live -= self._per_segment(positions)
        self.num_live -= len(positions)
        if len(positions):
            self._free_empty()

    def keep_sparsest(self, num_segments: int) -> Int64s:
        """The pages of the segments with the fewest living records, which are not freed before `let_go`."""
        full = self._is_used.copy()
        if self._open >= 0:
            full[self._open] = False
        candidates = np.flatnonzero(full)
        found = np.sort(candidates[np.argsort(self._live[candidates], kind="stable")[:num_segments]]).tolist()
        self._kept = set(found)
        return np.concatenate([np.empty(0, dtype=np.int64), *map(self.pages_of, found)])

    def let_go(self) -> None:
        """The segments of `keep_sparsest` may be freed."""
        self._kept = set()
        self._free_empty()

    def pages_of(self, segment: int) -> Int64s:
        """Pages of a segment."""
        return np.arange(segment * self.segment_pages, (segment + 1) * self.segment_pages)

    def used_segments(self) -> list[int]:
        """Segments that are not free."""
        return np.flatnonzero(self._is_used).tolist()

    def start_segment(self) -> None:
        """Write the next records to another segment."""
        self._open, self._next_page = -1, self.segment_pages

    def headers(self, buffer: Bytes) -> tuple[Int64s, npt.NDArray[np.float32]]:
        """Row numbers int64 [P, n], 0 where there is none, and uses float32 [P, n] of pages."""
        n = self.per_page
        rows = np.ascontiguousarray(buffer[:, : 4 * n]).view(np.int32).astype(np.int64)
        return rows, np.ascontiguousarray(buffer[:, 4 * n : 8 * n]).view(np.float32)

    def _take_page(self) -> int:
        if self._next_page == self.segment_pages:
            self._open, self._next_page = self._free_segment(), 0
        self._next_page += 1
        return self._open * self.segment_pages + self._next_page - 1

    def _free_segment(self) -> int:
        if not self._free:
            first, more = len(self._live), max(1, min(ALLOCATED_SEGMENTS, len(self._live)))
            self._file.allocate((first + more) * self.segment_pages * self.page_bytes)
            self._live = np.concatenate([self._live, np.zeros(more, dtype=np.int64)])
            self._is_used = np.concatenate([self._is_used, np.zeros(more, dtype=np.bool_)])
            self._free = list(range(first, first + more))
        segment = heapq.heappop(self._free)
        self._is_used[segment] = True
        return segment

    def _free_empty(self) -> None:
        for segment in np.flatnonzero(self._is_used & (self._live == 0)).tolist():
            if segment != self._open and segment not in self._kept:
                self._is_used[segment] = False
                heapq.heappush(self._free, segment)

    def _per_segment(self, positions: Int64s) -> Int64s:
        return np.bincount(positions // self.segment_rows, minlength=len(self._live))

    def _write(self, pages: Int64s, buffer: Bytes) -> None:
        ends = [*np.flatnonzero(np.diff(pages) != 1) + 1, len(pages)]
        first = 0
        for last in ends:
            data = memoryview(buffer[first:last].reshape(-1).data)
            offset = int(pages[first]) * self.page_bytes
            while data:
                written = os.pwrite(self._file.descriptor, data, offset)
                data, offset = data[written:], offset + written
            first = last

    def _finish_writes(self, *, down_to: int) -> None:
        """Forget finished writes, and wait until so many are left."""
        while self._writes and (len(self._writes) > down_to or self._writes[0][1].done()):
            _, future = self._writes.pop(0)
            try:
                future.result()
            except OSError as error:
                raise StorageError(f"{self._file.folder}: rows cannot be written: {error.strerror}") from error


def empty_pages(num_pages: int, page_bytes: int) -> Bytes:
    """uint8 [num_pages, page_bytes] at an address for direct access."""
    raw = np.empty(num_pages * page_bytes + PAGE_BYTES, dtype=np.uint8)
    begin = -raw.ctypes.data % PAGE_BYTES
    return raw[begin : begin + num_pages * page_bytes].reshape(num_pages, page_bytes)
