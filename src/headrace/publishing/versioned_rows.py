"""`VersionedRows`: the rows of a table group at several versions, read by many threads while one changes them."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.embeddings.storage.host import aligned_zeros
from headrace.publishing.versioned_index import RECORD, enter, release, undo, unmarked, write

__all__ = ["RowArrays", "VersionedRows"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

MAX_LOAD = 0.6  # linear probing: 1.75 probes for a hit, 3.6 for a miss
FIRST_PLACES, FIRST_SLOTS = 1024, 2048
PIECE = 65_536
"""Keys that are written at a time."""


class RowArrays(NamedTuple):
    """The arrays of a table group. Place 0 has zeros.

    Attributes:
        slots: int32 [a power of two], see `versioned_index`.
        records: `RECORD` [P].
        weights: [P, width], rows as stored.
    """

    slots: Int32s
    records: npt.NDArray[np.void]
    weights: npt.NDArray[Any]

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays, also of pages that were never written."""
        return self.slots.nbytes + self.records.nbytes + self.weights.nbytes


class VersionedRows:
    """The rows of a table group. One thread at a time may change them; see `RowArrays` and `locate` for reading.

    Arrays are replaced by larger ones, never resized, so readers of the old ones see what they saw before. The system
    allocates pages when they are first written.

    Args:
        width: Stored numbers of a row.
        dtype: Their dtype.

    Attributes:
        arrays: The current arrays.
    """

    def __init__(self, width: int, dtype: npt.DTypeLike) -> None:
        weights = aligned_zeros((FIRST_PLACES, width), np.dtype(dtype))
        self.arrays = RowArrays(np.zeros(FIRST_SLOTS, np.int32), np.zeros(FIRST_PLACES, RECORD), weights)
        self._next_place = 1
        self._free: list[Int64s] = []
        self._num_used_slots = self._num_deleted = 0
        self._written: dict[int, list[Int64s]] = {}  # places of the version that is being written
        self._superseded: dict[int, list[Int64s]] = {}  # by version: what its readers cannot reach any more
        self._removed: dict[int, list[Int64s]] = {}  # by version: places of removed keys
        self._marks: npt.NDArray[np.uint8] = np.empty(0, np.uint8)

    @property
    def num_places(self) -> int:
        """Places in use: states of keys at all versions that are kept, and those that wait until readers end."""
        return self._next_place - 1 - sum(map(len, self._free))

    @property
    def num_bytes(self) -> int:
        """Bytes of places in use and of the index."""
        arrays = self.arrays
        return arrays.slots.nbytes + self._next_place * (RECORD.itemsize + arrays.weights.strides[0])

    def begin(self, version: int, *, everything: bool) -> None:
        """Begin a version, later than all others.

        Args:
            version: The version.
            everything: Whether all rows are given, so that the others are removed.
        """
        self._written = {version: []}
        self._superseded[version], self._removed[version] = [], []
        self._marks = np.zeros(len(self.arrays.records), np.uint8) if everything else np.empty(0, np.uint8)

    def write(self, tables: Int32s, ids: Int64s, weights: npt.NDArray[Any] | None) -> None:
        """Write rows [R] of unique keys at the new version; None if they lose their rows."""
        for first in range(0, len(ids), PIECE):
            part = slice(first, first + PIECE)
            self._write(tables[part], ids[part], None if weights is None else weights[part])

    def complete(self) -> Int64s:
        """End the new version; returns the places of the states that it wrote: of keys that changed, once or twice."""
        if len(self._marks):
            places = unmarked(self.arrays.slots, self.arrays.records, self._marks)
            self._marks = np.empty(0, np.uint8)
            gone = self.arrays.records[places]
            self.write(np.ascontiguousarray(gone["table"]), np.ascontiguousarray(gone["id"]), None)
        (written,) = self._written.values()
        self._written = {}
        return _joined(written)

    def abort(self) -> Int64s:
        """Take the new version back; returns places to `give_back` when no reader can get to them."""
        ((version, written),) = self._written.items()
        places = _joined(written)
        undo(self.arrays.slots, self.arrays.records, places)
        firsts = places[self.arrays.records["earlier"][places] == 0]
        self._num_deleted += len(firsts)
        self._written, self._marks = {}, np.empty(0, np.uint8)
        del self._superseded[version], self._removed[version]
        return places

    def forget_before(self, version: int) -> Int64s:
        """Give up all versions before one; returns places to `give_back` when no reader can get to them."""
        superseded = [self._superseded.pop(each) for each in sorted(self._superseded) if each <= version]
        removed = [self._removed.pop(each) for each in sorted(self._removed) if each <= version]
        places = _joined([part for parts in removed for part in parts])
        count = release(self.arrays.slots, self.arrays.records, places)
        self._num_deleted += count
        return _joined([*(part for parts in superseded for part in parts), places[:count]])

    def give_back(self, places: Int64s) -> None:
        """Let places be written again."""
        if len(places):
            self._free.append(places)

    def _write(self, tables: Int32s, ids: Int64s, weights: npt.NDArray[Any] | None) -> None:
        places = self._take(len(ids))
        arrays, (version,) = self.arrays, self._written
        bits = np.dtype(f"u{arrays.weights.itemsize}")
        values = np.empty((0, 0), bits) if weights is None else np.ascontiguousarray(weights).view(bits)
        superseded = np.empty(len(ids), dtype=np.int64)
        used, entered, reentered, num_superseded = write(
            arrays.slots,
            arrays.records,
            arrays.weights.view(bits),
            version,
            np.ascontiguousarray(tables, dtype=np.int32),
            np.ascontiguousarray(ids, dtype=np.int64),
            values,
            weights is None,
            places,
            self._marks,
            superseded,
        )
        self._num_used_slots += entered
        self._num_deleted -= reentered
        self._written[version].append(places[:used].copy())
        self._superseded[version].append(superseded[:num_superseded].copy())
        if weights is None:
            self._removed[version].append(places[:used].copy())
        self.give_back(places[used:])

    def _take(self, count: int) -> Int64s:
        """Free places, and room for as many keys in the index."""
        taken: list[Int64s] = []
        missing = count
        while missing and self._free:
            places = self._free.pop()
            if len(places) > missing:
                self._free.append(places[missing:])
            taken.append(places[:missing])
            missing -= len(taken[-1])
        if self._next_place + missing > len(self.arrays.records):
            self._grow(self._next_place + missing)
        taken.append(np.arange(self._next_place, self._next_place + missing))
        self._next_place += missing
        if self._num_used_slots + count > MAX_LOAD * len(self.arrays.slots):
            self._rebuild(count)
        return _joined(taken)

    def _grow(self, num_places: int) -> None:
        """Replace all arrays: readers of the old slots must not meet places that their records do not have."""
        old, capacity = self.arrays, max(num_places, 2 * len(self.arrays.records))
        records, weights = (
            np.zeros(capacity, RECORD),
            aligned_zeros((capacity, old.weights.shape[1]), old.weights.dtype),
        )
        records[: self._next_place] = old.records[: self._next_place]
        weights[: self._next_place] = old.weights[: self._next_place]
        self.arrays = RowArrays(old.slots.copy(), records, weights)
        if len(self._marks):
            self._marks = np.concatenate([self._marks, np.zeros(capacity - len(self._marks), np.uint8)])

    def _rebuild(self, num_more: int) -> None:
        num_keys = self._num_used_slots - self._num_deleted + num_more
        slots = np.zeros(1 << max(11, int(2 * num_keys / MAX_LOAD).bit_length()), np.int32)
        self._num_used_slots = enter(self.arrays.slots, self.arrays.records, slots)
        self._num_deleted = 0
        self.arrays = self.arrays._replace(slots=slots)


def _joined(parts: list[Int64s]) -> Int64s:
    return np.concatenate([np.empty(0, np.int64), *parts])
