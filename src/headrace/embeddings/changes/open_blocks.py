"""Blocks of segments that are being merged or restored: mapped, or read ahead by a thread in the order of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice, repeat
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.encoding import Empty
from headrace.embeddings.changes.row_kernels import as_words, copy_rows
from headrace.embeddings.changes.segments import Block, Held, Segment
from headrace.features.buffers import BufferPool

__all__ = ["BlockReader", "MappedBlocks", "OpenBlock", "Places", "ReadBlocks"]

Int64s = npt.NDArray[np.int64]
Places = Int64s | slice
"""Where rows belong, int64 [R], -1 for nowhere; or a slice, if they are consecutive."""

BLOCKS_AHEAD = 2
"""Blocks of a segment that are read ahead of the one in use."""


class OpenBlock:
    """A block of a segment, each column of which is checked and decoded once, when it is first needed. Thread-safe.

    Args:
        segment: The segment.
        block: Its block.
        keys: Bytes of the keys, soon; None to read them from the mapped file.
        empty: Allocates arrays.

    Attributes:
        others: Bytes of the other columns, soon; None to read them from the mapped file.
    """

    def __init__(
        self,
        segment: Segment,
        block: Block,
        keys: Future[Held] | None = None,
        *,
        empty: Empty = np.empty,
    ) -> None:
        self.others: Future[Held] | None = None
        self._segment, self._block, self._empty = segment, block, empty
        self._keys = keys
        self._columns: Columns = {}
        self._reading = threading.Lock()

    def load_keys(self) -> None:
        """Wait for the keys.

        Raises:
            TornCheckpoint: A checksum does not match.
        """
        held = None if self._keys is None else self._keys.result()
        self.tables: npt.NDArray[np.int32] = self._segment.read(self._block, "tables", held, self._empty)
        self.ids: Int64s = self._segment.read(self._block, "ids", held, self._empty)

    def copy(self, name: str, first: int, places: Places, out: npt.NDArray[np.generic]) -> None:
        """Copy rows from `first` on to places in `out`.

        Raises:
            TornCheckpoint: The checksum of the column does not match.
        """
        with self._reading:
            if name not in self._columns:
                held = None if self.others is None else self.others.result()
                column = np.ascontiguousarray(self._segment.read(self._block, name, held, self._empty))
                column.flags.writeable = False  # as views of files are: one kernel for both
                self._columns[name] = column
        column, target = as_words(self._columns[name]), as_words(out)
        if isinstance(places, slice):
            target[places] = column[first : first + places.stop - places.start]
        else:
            copy_rows(column[first : first + len(places)], places, target)


class BlockReader(Protocol):
    """Opens the blocks of segments."""

    def open(self, segment: Segment, section: str) -> Iterator[OpenBlock]:
        """The blocks of a section that have rows, with their keys."""

    def cancel(self) -> None:
        """Give up what was not read yet."""

    def close(self) -> None:
        """Read what was started, unless it was cancelled: somebody may still copy from it."""


class MappedBlocks:
    """Blocks of mapped files, which the system reads when they are used; for few bytes."""

    def open(self, segment: Segment, section: str) -> Iterator[OpenBlock]:
        """See `BlockReader`."""
        for block in _with_rows(segment, section):
            opened = OpenBlock(segment, block)
            opened.load_keys()
            yield opened

    def cancel(self) -> None:
        """See `BlockReader`."""

    def close(self) -> None:
        """See `BlockReader`."""


class ReadBlocks:
    """Reads blocks in one thread, each file from its beginning to its end, as the system's own read-ahead expects.

    The disk works while rows are copied, and blocks come into buffers that are used again, so their memory is touched
    for the first time only once. Mapped files take a page fault for each 64 KiB instead, in the threads that copy, and
    with `madvise` for each block this was half as fast as reading in sequence on the disk of a virtual machine.

    Args:
        buffers: Gives them.
    """

    def __init__(self, buffers: BufferPool) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="read-blocks")
        self._buffers = buffers

    def open(self, segment: Segment, section: str) -> Iterator[OpenBlock]:
        """See `BlockReader`; starts to read the first keys.

        Of each segment, the first keys are read before all else, then the other columns of the first block, and from
        the second one on `BLOCKS_AHEAD` blocks: rows can be copied as soon as a block of each segment is there.
        """
        ahead: deque[OpenBlock] = deque()
        starts = self._starts(segment, section, ahead)
        next(starts, None)

        def opened() -> Iterator[OpenBlock]:
            for count in chain([2, 2 + 2 * BLOCKS_AHEAD], repeat(2)):
                deque(islice(starts, count), maxlen=0)
                if not ahead:
                    return
                ahead[0].load_keys()
                yield ahead.popleft()

        return opened()

    def _starts(self, segment: Segment, section: str, ahead: deque[OpenBlock]) -> Iterator[None]:
        """Start to read keys, and then the other columns, of each block in turn, one at each step."""
        for block in _with_rows(segment, section):
            keys = self._pool.submit(self._read, segment, *block.extent(of_keys=True))
            opened = OpenBlock(segment, block, keys, empty=self._buffers.empty)
            ahead.append(opened)
            yield
            opened.others = self._pool.submit(self._read, segment, *block.extent(of_keys=False))
            yield

    def cancel(self) -> None:
        """See `BlockReader`."""
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """See `BlockReader`."""
        self._pool.shutdown()

    def _read(self, segment: Segment, offset: int, size: int) -> Held:
        data = self._buffers.empty(size, np.uint8).data
        segment.read_into(offset, data)
        return offset, data


def _with_rows(segment: Segment, section: str) -> list[Block]:
    return [block for block in segment.blocks_of(section) if block.num_rows]
