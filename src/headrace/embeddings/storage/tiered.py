"""`TieredStorage`: rows in use in memory, the others in a file, read ahead if their keys are announced.

A row is in one place: a *slot* in memory, with its optimizer state, or a record in the file. It comes to memory when it
is announced, read or updated, and leaves when its slot is needed. Which slots leave:

1. Slots that no announced batch needs, the least used first. A use counts half as much after every `HALF_LIFE` times
   the memory's rows that were used meanwhile (LRFU: Lee and others, IEEE Trans. Computers 2001).
2. If these are not enough, those whose batch comes last.

Slots leave in runs, sorted by use, so that rows of equal use are in the same pages, together with the living rows of
the sparsest part of the file, which is free afterwards.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headrace.buffers import empty
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.host import aligned_zeros, gather_rows
from headrace.embeddings.storage.inheritance import inherited_columns
from headrace.embeddings.storage.mapped import BLOCK_ROWS, spilled_columns
from headrace.embeddings.storage.page_file import PAGE_BYTES, PageFile, PageReading, empty_pages
from headrace.embeddings.storage.protocol import Columns, Inheritance, MakeStorage, RowLayout, StorageCounters
from headrace.embeddings.storage.record_kernels import (
    NEVER,
    add_uses,
    find_slots,
    pack_records,
    score_slots,
    take_records,
)
from headrace.embeddings.storage.row_formats import FORMATS, as_tensor, storage_dtype
from headrace.embeddings.storage.unnamed_files import MappedArray
from headrace.errors import ConfigError

__all__ = ["TieredStorage"]

HALF_LIFE = 8.0
"""In units of the rows in memory. Rows read, for Zipf exponents 0.9 to 1.2 with and without drift and a table of ten
times the memory: least at 8 or 32, up to 9 % more at 4, 16 to 47 % more at 0.5."""
BUFFER_SHARE = 8
"""One part in this of the memory is for pages that are being read or written."""
LEAST_BUFFER_BYTES = 1 << 20
SLOT_BYTES = 16
MIN_ROWS = 256
RUN_BYTES = 4 << 20
"""Rows leave memory in runs of up to so many bytes."""
SCANNED = 16
"""Slots looked at for each one that leaves: it is among the 6 % that are worth least."""
SLACK, SPARE_SEGMENTS = 1.5, 4
"""The file is compacted when it has more than `SLACK` times the pages that its living rows need, and some segments."""
SEGMENTS, SEGMENT_PAGES = 128, 256
"""With little memory, so many segments have the bytes of the memory; with more, a segment has `SEGMENT_PAGES` pages."""
RUNS = 32
"""A run has at most one in so many of the rows in memory, in whole pages."""
BLOCK_PAGES = 2048
"""Pages read at once for copies of rows."""

HELD = 2**31 - 1
MOST_ROWS = 2**31 - 4

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, eq=False)
class _Fetch:
    """Rows on their way to memory: `places` of their records in the pages of `reading`."""

    number: int
    reading: PageReading
    places: Int64s
    rows: Int64s
    slots: Int64s
    positions: Int64s


class TieredStorage:
    """A `RowStorage` with a bounded number of rows in memory and the others in an unnamed file.

    Thread-safe: one lock guards rows and file.

    Args:
        layout: Layout of rows.
        capacity: Initial capacity in rows.
        memory_bytes: Memory for rows, optimizer state and buffers. The four bytes per row of `capacity` that say where
            a row is come on top.
        folder: Folder of the file.
        segment_pages: Pages that are freed together; None for a part of the memory.

    Raises:
        ConfigError: The folder does not exist, cannot be written to, or memory is too small.

    Attributes:
        weights: Weights in memory [num_slots, D], in the storage dtype; int8 [num_slots, D + 1].
        state: Optimizer state in memory, float32 [num_slots, W].
        num_slots: Rows that fit into memory, and the zero row.
    """

    device = None

    def __init__(
        self,
        layout: RowLayout,
        capacity: int,
        *,
        memory_bytes: int,
        folder: str | Path,
        segment_pages: int | None = None,
    ) -> None:
        self._layout, self._folder = layout, folder
        dtype = np.dtype(storage_dtype(layout.row_format))
        row_bytes = layout.row_bytes
        self._buffer_bytes = max(LEAST_BUFFER_BYTES, memory_bytes // BUFFER_SHARE)
        self.num_slots = (memory_bytes - memory_bytes // BUFFER_SHARE) // (row_bytes + SLOT_BYTES)
        if self.num_slots < MIN_ROWS:
            least = MIN_ROWS * (row_bytes + SLOT_BYTES) * BUFFER_SHARE // (BUFFER_SHARE - 1)
            raise ConfigError(
                f"embeddings.storage.memory: given {memory_bytes:,} bytes, expected at least {least:,} for {MIN_ROWS} "
                f"rows of {row_bytes} bytes, and better room for the rows of many batches"
            )
        self.weights = aligned_zeros((self.num_slots, layout.width), dtype)
        self.state = aligned_zeros((self.num_slots, layout.optimizer.state_width), np.dtype(np.float32))
        self._weight_bytes = self.weights.view(np.uint8)
        self._state_bytes = self.state.view(np.uint8).reshape(self.num_slots, -1)
        self._row_of: Int32s = np.zeros(self.num_slots, dtype=np.int32)  # 0 if the slot is empty
        self._uses: Float32s = np.zeros(self.num_slots, dtype=np.float32)
        self._due: Int32s = np.zeros(self.num_slots, dtype=np.int32)  # step of the last announced batch
        self._pending: Int32s = np.zeros(self.num_slots, dtype=np.int32)  # number of the fetch that fills it
        self._where: Int32s = np.zeros(0, dtype=np.int32)
        """Of each row: 0 if it is not written, its slot, or -2 minus its position in the file."""
        if segment_pages is None:
            segment_pages = max(4, min(SEGMENT_PAGES, memory_bytes // SEGMENTS // PAGE_BYTES))
        self._file = PageFile(folder, row_bytes, segment_pages=segment_pages)
        n = self._file.per_page
        self._run_rows = max(1, min(self.num_slots // RUNS, RUN_BYTES // self._file.page_bytes * n) // n) * n
        # A call is made in parts whose rows are sure to fit, and whose pages fit into the buffers.
        self._part_rows = max(1, min(self.num_slots // 4, self._buffer_bytes // self._file.page_bytes))
        self._num_filled = 1  # slots that were ever used; slot 0 is the zero row
        self._freed: list[Int64s] = []
        self._num_free = self.num_slots - 1
        self._hand = 0
        self._clock, self._num_used = 0, 0
        self._fetches: deque[_Fetch] = deque()
        self._num_fetches = 0
        self._compacting: PageReading | None = None
        self._num_read_rows = self._num_late_rows = 0
        self._lock = threading.RLock()
        self.grow(capacity)

    @classmethod
    def within(cls, folder: str | Path, memory_bytes: int, **options: Any) -> MakeStorage:
        """Return a function that creates storages in a folder."""
        return partial(cls, folder=folder, memory_bytes=memory_bytes, **options)

    @property
    def capacity(self) -> int:
        """See `RowStorage`."""
        return len(self._where)

    @property
    def num_bytes(self) -> int:
        """Bytes of memory; see `RowStorage`."""
        slots = (self.weights, self.state, self._row_of, self._uses, self._due, self._pending)
        return sum(array.nbytes for array in slots) + self._where.nbytes

    @property
    def counters(self) -> StorageCounters:
        """What the storage has done so far."""
        file = self._file
        return StorageCounters(
            self._num_used,
            self._num_read_rows,
            file.num_read_pages,
            file.num_read_pages * file.page_bytes,
            file.num_written_pages * file.page_bytes,
            self._num_late_rows,
        )

    # Reads and updates.

    def gather(self, rows: Int64s, keys: Keys) -> Float32s:
        """See `RowStorage.gather`."""
        first, out = self._layout.first_values, empty((len(rows), self._layout.embedding_dim)).numpy()
        row_format = FORMATS[first.row_format]
        for part in self._parts(len(rows)):
            with self._lock:
                where = self.weights, self._slots_of(rows[part]), keys.tables[part], keys.ids[part]
                gather_rows(*where, first.seeds, first.scales, row_format, out[part])
        return out

    def initialize(self, rows: Int64s, keys: Keys) -> None:
        """See `RowStorage.initialize`."""
        for part in self._parts(len(rows)):
            with self._lock:
                slots = self._take_slots(rows[part])
                self._uses[slots] = NEVER
                here = keys.take(np.arange(part.start, part.stop))
                self._layout.first_values.write(self.weights, slots, here)
                self.state[slots] = self._layout.optimizer.initial_state[here.tables]

    def inherit(self, inheritance: Inheritance) -> None:
        """See `RowStorage.inherit`."""
        sources = self.columns(inheritance.sources)
        self.set_columns(inheritance.rows, inherited_columns(self._layout, inheritance, sources))

    def update(
        self, rows: Int64s, keys: Keys, gradients: Float32s, *, step: int, num_rows: int = 1, lr_factor: float = 1.0
    ) -> None:
        """See `RowStorage.update`."""
        optimizer, rounding = self._layout.optimizer, self._layout.rounding(step)
        with self._lock:
            now = np.float32(self._num_used / (HALF_LIFE * self.num_slots))
            for part in self._parts(len(rows)):
                slots = self._slots_of(rows[part])
                where = self.weights, self.state, slots, keys.tables[part], keys.ids[part]
                optimizer.apply(*where, gradients[part], step, rounding, num_rows=num_rows, lr_factor=lr_factor)
                add_uses(self._uses, slots, now)
            self._num_used += int(np.count_nonzero(rows))
            self._clock += 1
            self._finish_fetches()

    def announce(self, rows: Int64s, *, ahead: int) -> bool:
        """See `ReadAheadStorage.announce`."""
        with self._lock:
            self._finish_fetches()
            due = self._clock + 1 + ahead
            slots = self._find(rows)
            missing = rows[slots < -1]
            here = slots[slots > 0]
            before = self._due[here]
            self._due[here] = np.maximum(before, due)
            if len(missing) and not self._fetch(missing, due=due, must=False):
                self._due[here] = before
                return False
            return True

    # Copies for checkpoints, changes and moves.

    def columns(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """See `RowStorage.columns`; many rows are copied to a file."""
        return spilled_columns(rows, self._copy, self._folder)

    def fastest_order(self, rows: Int64s) -> Int64s:
        """Rows in memory first, then those in the file in their order there; see `RowStorage.fastest_order`."""
        with self._lock:
            slots = self._find(rows)
            return rows[np.argsort(np.where(slots > 0, 0, -slots), kind="stable")]

    def set_columns(self, rows: Int64s, columns: Columns) -> None:
        """See `RowStorage.set_columns`. Rows for which there is no empty slot go to the file."""
        for first in range(0, len(rows), BLOCK_ROWS):
            part = slice(first, first + BLOCK_ROWS)
            names = ("weights", *(f"slot.{slot.name}" for slot in self._layout.optimizer.slots))
            with self._lock:
                self._set(rows[part], {name: np.asarray(columns[name][part]) for name in names})

    def view(self) -> Tensor:
        """A copy of all rows in a file; see `RowStorage.view`."""
        copy = MappedArray(self._folder, (self.capacity, self.weights.shape[1]), self.weights.dtype, random=False)
        for first in range(0, self.capacity, BLOCK_ROWS):
            rows = np.arange(first, min(first + BLOCK_ROWS, self.capacity))
            copy.array[rows] = self._copy(rows)["weights"]
        return as_tensor(copy.array, self._layout.row_format)

    # Rows that come and go.

    def discard(self, rows: Int64s) -> None:
        """See `RowStorage.discard`."""
        with self._lock:
            self._finish_fetches(wait=True)
            slots = self._find(rows)
            self._forget(rows, slots)
            self._empty(slots[slots > 0])
            self._where[rows[rows > 0]] = 0

    def grow(self, capacity: int) -> None:
        """See `RowStorage.grow`."""
        if capacity > MOST_ROWS:
            raise ConfigError(
                f"embeddings.storage.kind: tiered holds up to {MOST_ROWS:,} rows per table group, given {capacity:,}; "
                "use more shards"
            )
        with self._lock:
            self._where = np.concatenate([self._where, np.zeros(capacity - len(self._where), dtype=np.int32)])

    def compact(self, rows: Int64s, capacity: int) -> None:
        """See `RowStorage.compact`. Rewrites the file, because pages have row numbers."""
        with self._lock:
            self._finish_fetches(wait=True)
            self._end_compaction()
            before, self._where = self._where, np.zeros(capacity, dtype=np.int32)
            lost = np.ones(len(before), dtype=np.bool_)
            lost[rows] = False
            self._empty(before[lost & (before > 0)].astype(np.int64))
            new = np.flatnonzero(before[rows] > 0)
            slots = before[rows[new]]
            self._where[new], self._row_of[slots] = slots, new
            self._file.start_segment()
            for segment in self._file.used_segments():
                reading = self._file.read(self._file.pages_of(segment))
                old, uses, records, positions = self._living(reading, before)
                places = np.searchsorted(rows, old)
                is_kept = rows[np.minimum(places, len(rows) - 1)] == old
                self._append(places[is_kept], uses[is_kept], records[is_kept])
                self._file.release(positions)

    # Inside, with the lock held.

    def _parts(self, num_rows: int) -> list[slice]:
        step = self._part_rows
        return [slice(first, min(first + step, num_rows)) for first in range(0, num_rows, step)]

    def _find(self, rows: Int64s) -> Int64s:
        """Where rows [U] are, int64: a slot, 0 if not written, -1 for `NEW`, or -2 minus the position in the file."""
        found = np.empty(len(rows), dtype=np.int64)
        find_slots(self._where, rows, found)
        return found

    def _slots_of(self, rows: Int64s) -> Int64s:
        """Slots of up to `_part_rows` rows, which are in memory until the end of the next step."""
        slots = self._find(rows)
        here = slots[slots > 0]
        due = np.maximum(self._due[here], self._clock + 1)
        missing = rows[slots < -1]
        if len(missing):
            missing = np.unique(missing)  # ids may share a row
            self._due[here] = HELD
            self._num_late_rows += len(missing)
            self._fetch(missing, due=self._clock + 1, must=True)
            self._due[here] = due
            slots = self._find(rows)
        else:
            self._due[here] = due
        if self._fetches:
            newest = int(self._pending[slots[slots > 0]].max(initial=0))
            while self._fetches and self._fetches[0].number <= newest:
                self._finish_fetch()
        return slots

    def _take_slots(self, rows: Int64s) -> Int64s:
        """Slots for up to `_part_rows` rows whose values are going to be written."""
        found = self._find(rows)
        if self._pending[found[found > 0]].any():
            self._finish_fetches(wait=True)  # what a row was before must not arrive later
        self._forget(rows, found)
        self._due[found[found > 0]] = HELD
        new = rows[found <= 0]
        self._place(new, self._room_for(len(new)))
        slots = self._find(rows)
        self._due[slots] = self._clock + 1
        return slots

    def _forget(self, rows: Int64s, found: Int64s) -> None:
        """Forget the records of rows in the file; `found` says where rows are."""
        away = np.flatnonzero(found < -1)
        self._where[rows[away]] = 0
        self._file.release(-2 - found[away])

    def _place(self, rows: Int64s, slots: Int64s) -> None:
        self._where[rows] = slots
        self._row_of[slots] = rows

    def _fetch(self, rows: Int64s, *, due: int, must: bool) -> bool:
        """Start to read rows from the file; returns False if they need not come and there is no room for them, or for
        their pages."""
        n = self._file.per_page
        if not must:
            pages = np.unique((-2 - self._where[rows].astype(np.int64)) // n)
            if self._bytes_in_flight() + len(pages) * self._file.page_bytes > self._buffer_bytes:
                return False
        slots = self._room_for(len(rows), must=must)
        if len(slots) < len(rows):
            return False
        positions = -2 - self._where[rows].astype(np.int64)  # only now, because making room moves records
        pages, places = np.unique(positions // n, return_inverse=True)
        self._num_fetches += 1
        self._num_read_rows += len(rows)
        self._place(rows, slots)
        self._due[slots], self._pending[slots] = due, self._num_fetches
        reading = self._file.read(pages)
        self._fetches.append(_Fetch(self._num_fetches, reading, places * n + positions % n, rows, slots, positions))
        return True

    def _bytes_in_flight(self) -> int:
        return sum(fetch.reading.buffer.nbytes for fetch in self._fetches)

    def _finish_fetches(self, *, wait: bool = False) -> None:
        """Take the rows of reads that have ended, in order."""
        while self._fetches and (wait or self._fetches[0].reading.is_done):
            self._finish_fetch()

    def _finish_fetch(self) -> None:
        fetch = self._fetches.popleft()
        arrays = self._weight_bytes, self._state_bytes, self._uses
        fetch.reading.unpack(fetch.places, self._file.per_page, fetch.rows, fetch.slots, *arrays)
        self._pending[fetch.slots] = 0
        self._file.release(fetch.positions)

    def _room_for(self, num_rows: int, *, must: bool = True) -> Int64s:
        """Empty slots for rows; none if slots that are due would have to leave, unless it must."""
        while self._num_free < num_rows:
            if not self._evict(num_rows - self._num_free, must=must):
                if not must:
                    return np.empty(0, dtype=np.int64)
                assert self._fetches, "a part of a call fits into memory"
                self._finish_fetches(wait=True)
        taken, left = [], num_rows
        while left and self._freed:
            some = self._freed.pop()
            if len(some) > left:
                self._freed.append(some[left:])
                some = some[:left]
            taken.append(some)
            left -= len(some)
        taken.append(np.arange(self._num_filled, self._num_filled + left))
        self._num_filled += left
        self._num_free -= num_rows
        return np.concatenate(taken)

    def _empty(self, slots: Int64s) -> None:
        self._row_of[slots] = 0
        self._due[slots] = 0
        if len(slots):
            self._freed.append(slots)
            self._num_free += len(slots)

    def _evict(self, num_rows: int, *, must: bool) -> bool:
        """Move at least `num_rows` rows to the file; returns False if not so many may leave."""
        width, n = self._weight_bytes.shape[1] + self._state_bytes.shape[1], self._file.per_page
        old = None if self._compacting is None else self._living(self._compacting, self._where)
        num_old = 0 if old is None else len(old[0])
        num_wanted = -(-(max(num_rows, self._run_rows) + num_old) // n) * n - num_old  # pages should be full
        slots = self._worth_least(num_wanted, may_be_due=must)
        if len(slots) < num_rows:
            return False
        records = np.empty((len(slots), width), dtype=np.uint8)
        take_records(self._weight_bytes, self._state_bytes, slots, records)
        rows, uses = self._row_of[slots].astype(np.int64), self._uses[slots]
        self._empty(slots)
        if old is not None:
            rows, uses = np.concatenate([rows, old[0]]), np.concatenate([uses, old[1]])
            records = np.concatenate([records, old[2]])
            self._file.release(old[3])
            self._end_compaction()
        self._append(rows, uses, records)
        self._begin_compaction(len(rows))
        return True

    def _worth_least(self, num_rows: int, *, may_be_due: bool) -> Int64s:
        """Up to so many slots that may leave; looks at a few times as many, in turn, so that the cost per row does not
        grow with the memory."""
        most = self._num_filled
        for num_scanned in (min(most, SCANNED * num_rows), most):
            scores = np.empty(num_scanned, dtype=np.float64)
            score_slots(self._row_of[:most], self._uses, self._due, self._pending, self._hand, self._clock, scores)
            may_leave = np.isfinite(scores) if may_be_due else scores < 1e14
            if num_scanned == most or np.count_nonzero(may_leave) >= num_rows:
                break
        found = np.flatnonzero(may_leave)
        if len(found) > num_rows:
            found = found[np.argpartition(scores[found], num_rows - 1)[:num_rows]]
        slots = (found + self._hand) % most
        self._hand = (self._hand + num_scanned) % most
        return slots

    def _append(self, rows: Int64s, uses: Float32s, records: Bytes) -> None:
        """Write rows to the file, sorted by use."""
        order = np.lexsort((rows, uses))
        n = self._file.per_page
        step = max(1, RUN_BYTES // self._file.page_bytes) * n
        for first in range(0, len(order), step):
            part = order[first : first + step]
            pages = empty_pages(-(-len(part) // n), self._file.page_bytes)
            pack_records(records, part, rows, uses, pages, n)
            self._where[rows[part]] = -2 - self._file.append(pages, len(part))

    def _living(self, reading: PageReading, where: Int32s) -> tuple[Int64s, Float32s, Bytes, Int64s]:
        """Rows, uses, records and positions of the records in some pages that are still the place of their row."""
        reading.wait()
        n, pages = self._file.per_page, reading.buffer
        rows, uses = self._file.headers(pages)
        positions = reading.pages[:, None] * n + np.arange(n)
        is_living = (rows > 0) & (rows < len(where))
        is_living &= where[np.where(is_living, rows, 0)] == -2 - positions
        page, j = np.nonzero(is_living)
        width = self._weight_bytes.shape[1] + self._state_bytes.shape[1]
        records = pages[:, 8 * n : 8 * n + n * width].reshape(len(pages), n, width)[page, j]
        return rows[page, j], uses[page, j], records, positions[page, j]

    def _begin_compaction(self, num_rows: int) -> None:
        """Read the sparsest segments if the file has become too large; their rows leave with the next run.

        The next run frees at least as many as it fills, if they are less than half full, once `num_rows` are written.
        """
        needed = int(SLACK * self._file.num_live / self._file.segment_rows) + SPARE_SEGMENTS
        excess = self._file.num_used_segments - needed
        if excess > 0:
            num_written = -(-num_rows // self._file.segment_rows)
            pages = self._file.keep_sparsest(min(excess, 1 + 2 * num_written))
            if len(pages):
                self._compacting = self._file.read(pages)

    def _end_compaction(self) -> None:
        self._compacting = None
        self._file.let_go()

    def _copy(self, rows: Int64s) -> dict[str, npt.NDArray[Any]]:
        """Columns of rows, which stay where they are."""
        weights = np.zeros((len(rows), self.weights.shape[1]), dtype=self.weights.dtype)
        state = np.zeros((len(rows), self.state.shape[1]), dtype=np.float32)
        with self._lock:
            self._finish_fetches(wait=True)
            found = self._find(rows)
            here = np.flatnonzero(found > 0)
            weights[here], state[here] = self.weights[found[here]], self.state[found[here]]
            away = np.flatnonzero(found < -1)
            away = away[np.argsort(-found[away], kind="stable")]
            self._copy_from_file(-2 - found[away], away, rows, weights, state)
        return {"weights": weights, **self._layout.slot_columns(state)}

    def _copy_from_file(
        self, positions: Int64s, places: Int64s, rows: Int64s, weights: npt.NDArray[Any], state: Float32s
    ) -> None:
        """Copy the records at ascending positions to places of the arrays of `rows`, some pages at a time."""
        if not len(positions):
            return
        n = self._file.per_page
        pages, page_of = np.unique(positions // n, return_inverse=True)
        weight_bytes, state_bytes = weights.view(np.uint8), state.view(np.uint8).reshape(len(state), -1)
        uses = np.empty(len(weights), dtype=np.float32)
        for first in range(0, len(pages), BLOCK_PAGES):
            reading = self._file.read(pages[first : first + BLOCK_PAGES])
            begin, end = np.searchsorted(page_of, [first, first + BLOCK_PAGES])
            records = (page_of[begin:end] - first) * n + positions[begin:end] % n
            to = places[begin:end]
            reading.unpack(records, n, rows[to], to, weight_bytes, state_bytes, uses)

    def _set(self, rows: Int64s, columns: Columns) -> None:
        self._finish_fetches(wait=True)
        weights = np.ascontiguousarray(columns["weights"])
        state = np.ascontiguousarray(self._layout.state_of(columns, len(rows)))
        found = self._find(rows)
        self._forget(rows, found)
        new = np.flatnonzero(found <= 0)
        num_here = min(len(new), max(0, self._num_free - self._run_rows))
        here = new[:num_here]
        slots = self._room_for(num_here)
        self._place(rows[here], slots)
        now = np.float32(self._num_used / (HALF_LIFE * self.num_slots))
        self._uses[slots] = now
        found[here] = slots
        placed = np.flatnonzero(found > 0)
        self.weights[found[placed]], self.state[found[placed]] = weights[placed], state[placed]
        rest = new[num_here:]
        if len(rest):
            records = np.concatenate(
                [weights[rest].view(np.uint8), state[rest].view(np.uint8).reshape(len(rest), -1)], axis=1
            )
            self._append(rows[rest], np.full(len(rest), now, dtype=np.float32), records)
