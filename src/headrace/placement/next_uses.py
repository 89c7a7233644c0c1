"""`NextUses`: chains each use of a key to the next one among the announced batches.

The keys of announced batches have consecutive positions. A key's entry has its newest position, so a later batch that
uses the key finds where it was used before, and writes its number there::

    batch 7: a b    batch 8: b c        position    0   1   2   3
                                        key         a   b   b   c
                                        used next   -   8   -   -
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.placement.key_entries import NEVER, Entries

__all__ = ["NextUses"]

FIRST_PLACES = 1 << 14

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Readers = npt.NDArray[np.unsignedinteger[Any]]


class NextUses:
    """For each key of each announced batch, the batch that uses it next, and the trainers that read it then.

    Args:
        num_trainers: Number of trainers; with one, readers are not recorded.

    Attributes:
        end: Position after the last key of the announced batches.
    """

    def __init__(self, num_trainers: int) -> None:
        self.end = 0
        self._base = 0  # position of the first element
        self._batches = np.empty(FIRST_PLACES, dtype=np.int32)
        bits = next(bits for bits in (8, 16, 32, 64) if num_trainers <= bits)
        self._readers: Readers = np.empty(FIRST_PLACES if num_trainers > 1 else 0, dtype=f"uint{bits}")

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        return self._batches.nbytes + self._readers.nbytes

    def announce(self, entries: Int32s, readers: Int64s | None, records: Entries, *, batch: int, first: int) -> None:
        """Record that a batch uses entries, which get the positions from `end` on.

        Args:
            entries: int32 [U], entries of the batch.
            readers: int64 [U], the trainers that read each, as bits; None with one trainer.
            records: Of all entries.
            batch: Number of the batch.
            first: Position of the first key of all batches that are not trained yet.
        """
        start = self.end
        self._reserve(start + len(entries), first)
        if readers is not None:
            _announce_readers(entries, readers, start, first, self._base, records, self._readers)
        _announce(entries, batch, start, first, self._base, records, self._batches)
        self.end = start + len(entries)

    def batches(self, start: int, count: int) -> Int32s:
        """The batches that use the keys at some positions next, int32 [count]; `NEVER` if none does."""
        return self._batches[start - self._base :][:count]

    def readers(self, start: int, count: int) -> Int64s:
        """The trainers that read the keys at some positions then, int64 [count], as bits; 0 if none does."""
        return self._readers[start - self._base :][:count].astype(np.int64)

    def _reserve(self, end: int, first: int) -> None:
        """Ensure room up to a position, without what comes before the first key that is needed."""
        if end - self._base <= len(self._batches):
            return
        kept = slice(first - self._base, self.end - self._base)
        size = max(len(self._batches), 2 * (end - first))
        self._batches = _moved(self._batches[kept], size)
        if len(self._readers):
            self._readers = _moved(self._readers[kept], size)
        self._base = first


def _moved(kept: npt.NDArray[Any], size: int) -> npt.NDArray[Any]:
    """A larger array that begins with what is kept."""
    grown = np.empty(size, dtype=kept.dtype)
    grown[: len(kept)] = kept
    return grown


@kernel()
def _announce(
    entries: Int32s,
    batch: int,
    start: int,
    first: int,
    base: int,
    records: Entries,
    batches: Int32s,
) -> None:
    for u in range(len(entries)):
        record = records[entries[u]]
        if record.last_place >= first:
            batches[record.last_place - base] = batch
        else:
            record.next_use = batch
        record.last_place = start + u
        batches[start + u - base] = NEVER


@kernel()
def _announce_readers(
    entries: Int32s,
    readers: Int64s,
    start: int,
    first: int,
    base: int,
    records: Entries,
    readers_then: Readers,
) -> None:
    """Record the readers [U] of a batch's entries where they were used before; called before `_announce`."""
    for u in range(len(entries)):
        record = records[entries[u]]
        if record.last_place >= first:
            readers_then[record.last_place - base] = readers[u]
        readers_then[start + u - base] = 0
