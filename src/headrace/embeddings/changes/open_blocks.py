"""Blocks of segments that are being merged or restored: mapped, or read ahead by a thread in the order of their use."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.encoding import Empty
from headrace.embeddings.changes.row_kernels import as_words, copy_rows
from headrace.embeddings.changes.segments import Block, Held, Segment
from headrace.features.buffers import BufferPool

__all__ = ["BlockReader", "MappedBlocks", "OpenBlock", "ReadBlocks"]

Int64s = npt.NDArray[np.int64]

BLOCKS_AHEAD = 2
"""Blocks of a segment that are read ahead of the one in use."""


class OpenBlock:
    """A block of a segment, each column of which is checked and decoded once, when it is first needed. Thread-safe.

    Args:
        segment: The segment.
        block: Its block.
        keys, others: Bytes of the keys and of the other columns, soon; None to read them from the mapped file.
        empty: Allocates arrays.
    """

    def __init__(
        self,
        segment: Segment,
        block: Block,
        keys: Future[Held] | None = None,
        others: Future[Held] | None = None,
        *,
        empty: Empty = np.empty,
    ) -> None:
        self._segment, self._block, self._empty = segment, block, empty
        self._keys, self._others = keys, others
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

    def copy(self, name: str, first: int, destinations: Int64s, out: npt.NDArray[np.generic]) -> None:
        """Copy rows from `first` on to places in `out`, except those without one.

        Raises:
            TornCheckpoint: The checksum of the column does not match.
        """
        with self._reading:
            if name not in self._columns:
                held = None if self._others is None else self._others.result()
                column = np.ascontiguousarray(self._segment.read(self._block, name, held, self._empty))
                column.flags.writeable = False  # as views of files are: one kernel for both
                self._columns[name] = column
        rows = self._columns[name][first : first + len(destinations)]
        copy_rows(as_words(rows), destinations, as_words(out))


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
        """See `BlockReader`; starts to read the first block."""
        blocks = iter(_with_rows(segment, section))
        ahead = deque(self._start(segment, block) for block in islice(blocks, 1))

        def opened() -> Iterator[OpenBlock]:
            while ahead:
                ahead.extend(self._start(segment, block) for block in islice(blocks, BLOCKS_AHEAD + 1 - len(ahead)))
                ahead[0].load_keys()
                yield ahead.popleft()

        return opened()

    def cancel(self) -> None:
        """See `BlockReader`."""
        self._pool.shutdown(cancel_futures=True)

    def close(self) -> None:
        """See `BlockReader`."""
        self._pool.shutdown()

    def _start(self, segment: Segment, block: Block) -> OpenBlock:
        keys, others = (self._pool.submit(self._read, segment, *block.extent(of_keys=each)) for each in (True, False))
        return OpenBlock(segment, block, keys, others, empty=self._buffers.empty)

    def _read(self, segment: Segment, offset: int, size: int) -> Held:
        data = self._buffers.empty(size, np.uint8).data
        segment.read_into(offset, data)
        return offset, data


def _with_rows(segment: Segment, section: str) -> list[Block]:
    return [block for block in segment.blocks_of(section) if block.num_rows]
