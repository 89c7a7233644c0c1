"""`Residency`: decides which rows a trainer keeps, when they come and which leave, from the keys of later batches.

The next use of a row is known for all announced batches, so the row whose next use is farthest leaves first (Belady,
"A study of replacement algorithms for a virtual-storage computer", 1966). Rows without a known next use leave before
all others, the least recently used first::

    announced   batch 7: a b    batch 8: b c    batch 9: a d          capacity 3
    trained     batch 6: e f    resident: a b e
    place 8     c needs a place: e leaves, because no announced batch uses it
    place 9     d needs a place: none is left before batch 7 is trained, since a and b are used first

The cost of each call is proportional to the keys of the batches that it looks at, never to the number of resident rows
or of rows in the table. Decisions are pure: no values, threads or clocks are involved.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.placement.key_entries import NEVER, KeyEntries

__all__ = ["Placing", "Residency"]

FIRST_PLACES = 1 << 14

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class Placing:
    """The rows that an announced batch needs and that were not resident.

    Attributes:
        places: int64 [M], positions of their keys in the batch.
        rows: int64 [M], the row that each gets, from 1 to the capacity.
        leaving: int64 [V], rows that leave to make room, before they are given out again.
        left: Keys [V] of the rows that leave, with tables ascending.
    """

    places: Int64s
    rows: Int64s
    leaving: Int64s
    left: Keys


@dataclass(eq=False)
class _Announced:
    """An announced batch: its number, its entries [U], the position of the first among those of all batches, and its
    rows int64 [U] once they have a place, which they keep until it is trained."""

    batch: int
    entries: Int32s
    start: int
    rows: Int64s | None = None


class Residency:
    """The resident rows of one trainer, numbered from 1 to the capacity.

    Batches are announced in order, placed in order, and trained in order.

    Args:
        capacity: Maximum number of resident rows.

    Attributes:
        capacity: As given, or what a single batch needed, if that was more.
        num_resident: Number of resident rows.
        num_trained: Number of batches trained so far.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.num_resident = 0
        self._entries = KeyEntries()  # of keys that are resident or that an announced batch uses
        # For each key of each announced batch, the batch that uses it next. Positions count from the first batch on.
        self._batch_after = np.empty(FIRST_PLACES, dtype=np.int32)
        self._base = self._end = 0  # positions of the first and after the last element
        self._announced: deque[_Announced] = deque()
        self._idle: deque[tuple[int, Int32s]] = deque()  # by time of last use: entries not used again as far as known
        self._free = np.empty(0, dtype=np.int64)  # rows that were used before
        self._num_rows = 0  # rows ever used
        self.num_trained = 0
        self._clock = 0  # number of trained batches and adopted keys

    @property
    def num_announced(self) -> int:
        """Number of batches announced so far."""
        return self.num_trained + len(self._announced)

    @property
    def num_keys(self) -> int:
        """Number of keys that are resident, or that an announced batch uses."""
        return self._entries.num_entries

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        idle = sum(entries.nbytes for _, entries in self._idle)
        announced = sum(each.entries.nbytes for each in self._announced)
        return self._entries.num_bytes + self._batch_after.nbytes + self._free.nbytes + idle + announced

    def announce(self, keys: Keys) -> int:
        """Announce the unique keys of the batch after the last announced one; returns its number."""
        batch, start = self.num_announced, self._end
        entries = self._entries.add(keys)
        self._reserve_places(start + len(keys))
        first = self._announced[0].start if self._announced else start
        _announce(entries, batch, start, first, self._base, self._entries.records, self._batch_after)
        self._announced.append(_Announced(batch, entries, start))
        self._end = start + len(keys)
        return batch

    def rows_of(self, batch: int) -> Int64s:
        """Rows int64 [U] of the keys of an announced batch; 0 where a key is not resident."""
        announced = self._find(batch)
        return self._row[announced.entries].astype(np.int64) if announced.rows is None else announced.rows

    def place(self, batch: int) -> Placing | None:
        """Make all rows resident that an announced batch needs.

        Rows that earlier batches need stay. Returns None if there is no room for the others before those batches are
        trained. The next batch to train gets room in any case, if necessary beyond the capacity.
        """
        announced = self._find(batch)
        entries = announced.entries
        places = np.flatnonzero(self._row[entries] == 0)
        leaving = self._choose(len(places) - (self.capacity - self.num_resident), batch)
        if leaving is None:
            return None
        placing = self._exchange(leaving, entries, places)
        announced.rows = self._row[entries].astype(np.int64)
        return placing

    def adopt(self, keys: Keys) -> Placing:
        """Make the rows of some keys resident that were not announced.

        Rows that the next batch needs stay; if necessary, there are more rows than the capacity.
        """
        entries = self._entries.add(keys)
        places = np.flatnonzero(self._row[entries] == 0)
        next_uses = self._next_use[entries]
        self._next_use[entries] = self.num_trained  # so that none of them leaves
        leaving = self._choose(len(places) - (self.capacity - self.num_resident), self.num_trained)
        assert leaving is not None
        placing = self._exchange(leaving, entries, places)
        self._use(entries, next_uses)
        return placing

    def finish(self, end: int = -1) -> Int32s:
        """Record that the next batch is trained.

        Args:
            end: An announced batch; -1 for none.

        Returns:
            Entries of the batch's keys that no announced batch up to `end` uses again; none without `end`.
        """
        done = self._announced.popleft()
        self.num_trained += 1
        return self._use(done.entries, self._batch_after[done.start - self._base :], end)

    def unused_until(self, end: int) -> Int32s:
        """Entries of resident rows that no announced batch up to `end` uses; -1 for all."""
        entries = self._entries.resident()
        return entries[self._next_use[entries] > end]

    def located(self, entries: Int32s) -> tuple[Int64s, Keys]:
        """Rows int64 [R] and keys of those of some entries that are resident, with tables ascending."""
        return self._in_order(entries[self._row[entries] > 0])

    def resident(self) -> tuple[Int64s, Keys]:
        """All resident rows int64 [R], and their keys, with tables ascending."""
        return self._in_order(self._entries.resident())

    def find(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of any unique keys; 0 where a key is not resident."""
        return self._row[self._entries.find(keys)].astype(np.int64)

    def _use(self, entries: Int32s, next_uses: Int32s, end: int = -1) -> Int32s:
        """Record a use of entries [U] now, and their next uses, with which an array begins; see `finish`."""
        self._clock += 1
        idle, unused = np.empty_like(entries), np.empty_like(entries)
        num_idle, num_unused = _use(entries, next_uses, self._entries.records, self._clock, end, idle, unused)
        if num_idle:
            self._idle.append((self._clock, idle[:num_idle].copy()))
        return unused[:num_unused]

    def _exchange(self, leaving: Int32s, entries: Int32s, places: Int64s) -> Placing:
        """Give rows to the entries at some places, after others have left."""
        left, rows_left = self._remove(leaving)
        rows = self._take_rows(len(places))
        self._row[entries[places]] = rows
        return Placing(places, rows, rows_left, left)

    @property
    def _row(self) -> Int32s:
        return self._entries.column("row")

    @property
    def _next_use(self) -> Int32s:
        return self._entries.column("next_use")

    @property
    def _last_use(self) -> Int32s:
        return self._entries.column("last_use")

    def _find(self, batch: int) -> _Announced:
        return self._announced[batch - self.num_trained]

    def _choose(self, num_rows: int, batch: int) -> Int32s | None:
        """Entries whose rows leave, so that `num_rows` become free for a batch; None if there are too few."""
        chosen: list[Int32s] = []
        num_idle_batches = 0  # whose entries all leave
        for place, (used, entries) in enumerate(self._idle):
            if num_rows <= 0:
                break
            is_idle = (self._last_use[entries] == used) & (self._next_use[entries] == NEVER) & (self._row[entries] > 0)
            self._idle[place] = used, entries[is_idle]
            chosen.append(entries[is_idle][:num_rows])
            num_rows -= len(chosen[-1])
            num_idle_batches += len(chosen[-1]) == np.count_nonzero(is_idle)
        for later in reversed(self._announced):
            if num_rows <= 0 or later.batch <= batch:
                break
            is_last = (self._next_use[later.entries] == later.batch) & (self._row[later.entries] > 0)
            chosen.append(later.entries[is_last][:num_rows])
            num_rows -= len(chosen[-1])
        if num_rows > 0:
            if batch > self.num_trained:
                return None
            self.capacity += num_rows
        for _ in range(num_idle_batches):
            self._idle.popleft()
        return np.concatenate([np.empty(0, dtype=np.int32), *chosen])

    def _remove(self, entries: Int32s) -> tuple[Keys, Int64s]:
        """Free the rows of entries; returns keys and rows, with tables ascending."""
        rows, keys = self._in_order(entries)
        self._row[entries] = 0
        self.num_resident -= len(entries)
        self._free = np.concatenate([self._free, rows])
        unused = entries[self._next_use[entries] == NEVER]
        if len(unused):
            self._entries.remove(unused)
        return keys, rows

    def _take_rows(self, num_rows: int) -> Int64s:
        num_freed = min(num_rows, len(self._free))
        freed, self._free = np.split(self._free, [num_freed])
        first = self._num_rows + 1
        self._num_rows += num_rows - num_freed
        self.num_resident += num_rows
        return np.concatenate([freed, np.arange(first, self._num_rows + 1)])

    def _in_order(self, entries: Int32s) -> tuple[Int64s, Keys]:
        keys = self._entries.keys_of(entries)
        order = np.argsort(keys.tables.astype(np.int16), kind="stable")  # 16 bits use a radix sort
        return self._row[entries[order]].astype(np.int64), keys.take(order)

    def _reserve_places(self, end: int) -> None:
        """Ensure room for the keys of announced batches up to a position."""
        if end - self._base > len(self._batch_after):
            first = self._announced[0].start if self._announced else self._end
            kept = self._batch_after[first - self._base : self._end - self._base]
            self._batch_after = np.empty(max(len(self._batch_after), 2 * (end - first)), dtype=np.int32)
            self._batch_after[: len(kept)] = kept
            self._base = first


@kernel()
def _announce(
    entries: Int32s,
    batch: int,
    start: int,
    first: int,
    base: int,
    records: npt.NDArray[np.void],
    batch_after: Int32s,
) -> None:
    """Record that a batch uses entries [U], which have the positions from `start` on.

    Args:
        entries: Entries of the batch.
        batch: Number of the batch.
        start: Position of its first key.
        first: Position of the first key of all batches that are not trained yet.
        base: Position of the first element of `batch_after`.
        records: Of all entries.
        batch_after: Of each position.
    """
    for u in range(len(entries)):
        record = records[entries[u]]
        if record.last_place >= first:
            batch_after[record.last_place - base] = batch
        else:
            record.next_use = batch
        record.last_place = start + u
        batch_after[start + u - base] = NEVER


@kernel()
def _use(
    entries: Int32s,
    next_uses: Int32s,
    records: npt.NDArray[np.void],
    clock: int,
    end: int,
    idle: Int32s,
    unused: Int32s,
) -> tuple[int, int]:
    """Record a use of entries [U] and their next uses.

    Returns:
        Numbers of entries written to `idle`, which no announced batch uses, and to `unused`, which no batch up to `end`
        uses.
    """
    num_idle, num_unused = 0, 0
    for u in range(len(entries)):
        entry, after = entries[u], next_uses[u]
        records[entry].next_use, records[entry].last_use = after, clock
        if after == NEVER:
            idle[num_idle] = entry
            num_idle += 1
        if 0 <= end < after:
            unused[num_unused] = entry
            num_unused += 1
    return num_idle, num_unused
