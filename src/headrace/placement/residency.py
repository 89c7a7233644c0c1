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
from headrace.embeddings.tables.index.row_index import RowIndex
from headrace.embeddings.tables.lifecycle import CountAdmission

__all__ = ["NEVER", "Placing", "Residency"]

NEVER = np.int64(2**63 - 1)
"""Next use of a row that no announced batch uses."""

FIRST_ENTRIES = 1 << 14

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
    """An announced batch: its number, its entries [U], and the position of the first among those of all batches."""

    batch: int
    entries: Int64s
    start: int


class Residency:
    """The resident rows of one trainer, numbered from 1 to the capacity.

    Batches are announced in order, placed in order, and trained in order.

    Args:
        num_tables: Number of tables.
        capacity: Maximum number of resident rows.

    Attributes:
        capacity: As given, or what a single batch needed, if that was more.
        num_resident: Number of resident rows.
    """

    def __init__(self, num_tables: int, capacity: int) -> None:
        self.capacity = capacity
        self.num_resident = 0
        # An entry is a key that is resident or that an announced batch uses. Entries are the rows of this index.
        self._index = RowIndex(np.full(num_tables, -1), CountAdmission([0] * num_tables), capacity=FIRST_ENTRIES)
        self._row = np.zeros(FIRST_ENTRIES, dtype=np.int32)  # of each entry; 0 if it is not resident
        self._next_use = np.full(FIRST_ENTRIES, NEVER)
        self._last_use = np.full(FIRST_ENTRIES, -1)  # time of its last use, see `_clock`
        self._last_place = np.full(FIRST_ENTRIES, -1)  # its newest position among the keys of all batches
        # For each key of each announced batch, the batch that uses it next. Positions count from the first batch on.
        self._batch_after = np.empty(FIRST_ENTRIES, dtype=np.int64)
        self._base = self._end = 0  # positions of the first and after the last element
        self._announced: deque[_Announced] = deque()
        self._idle: deque[tuple[int, Int64s]] = (
            deque()
        )  # by time of last use: entries that no announced batch used then
        self._free = np.empty(0, dtype=np.int64)  # rows that were used before
        self._num_rows = 0  # rows ever used
        self._num_announced = self._num_trained = 0
        self._clock = 0  # number of trained batches and adopted keys

    @property
    def num_announced(self) -> int:
        """Number of batches announced so far."""
        return self._num_announced

    @property
    def num_trained(self) -> int:
        """Number of batches trained so far."""
        return self._num_trained

    @property
    def num_bytes(self) -> int:
        """Bytes of the index and of the entries."""
        arrays = self._row, self._next_use, self._last_use, self._last_place, self._batch_after, self._free
        return self._index.num_bytes + sum(array.nbytes for array in arrays)

    def announce(self, keys: Keys) -> int:
        """Announce the unique keys of the batch after the last announced one; returns its number."""
        batch, start = self._num_announced, self._end
        entries = self._index.resolve(keys)
        self._index.admit(keys, entries, version=1)
        self._reserve(self._index.next_row, start + len(keys))
        first = self._announced[0].start if self._announced else start
        _announce(entries, batch, start, first, self._base, self._next_use, self._last_place, self._batch_after)
        self._announced.append(_Announced(batch, entries, start))
        self._end, self._num_announced = start + len(keys), batch + 1
        return batch

    def rows_of(self, batch: int) -> Int64s:
        """Rows int64 [U] of the keys of an announced batch; 0 where a key is not resident."""
        return self._row[self._find(batch).entries].astype(np.int64)

    def place(self, batch: int) -> Placing | None:
        """Make all rows resident that an announced batch needs.

        Rows that earlier batches need stay. Returns None if there is no room for the others before those batches are
        trained. The next batch to train gets room in any case, if necessary beyond the capacity.
        """
        entries = self._find(batch).entries
        places = np.flatnonzero(self._row[entries] == 0)
        leaving = self._choose(len(places) - (self.capacity - self.num_resident), batch)
        if leaving is None:
            return None
        left, rows_left = self._remove(leaving)
        rows = self._take_rows(len(places))
        self._row[entries[places]] = rows
        return Placing(places, rows, rows_left, left)

    def adopt(self, keys: Keys) -> Placing:
        """Make the rows of some keys resident that were not announced.

        Rows that the next batch needs stay; if necessary, there are more rows than the capacity.
        """
        entries = self._index.resolve(keys)
        self._index.admit(keys, entries, version=1)
        self._reserve(self._index.next_row, self._end)
        places = np.flatnonzero(self._row[entries] == 0)
        next_uses = self._next_use[entries]
        self._next_use[entries] = self._num_trained  # so that none of them leaves
        leaving = self._choose(len(places) - (self.capacity - self.num_resident), self._num_trained)
        assert leaving is not None
        self._next_use[entries] = next_uses
        left, rows_left = self._remove(leaving)
        rows = self._take_rows(len(places))
        self._row[entries[places]] = rows
        self._use(entries)
        return Placing(places, rows, rows_left, left)

    def finish(self) -> Int64s:
        """Record that the next batch is trained; returns the batch that uses each of its keys next, or `NEVER`."""
        done = self._announced.popleft()
        first = done.start - self._base
        after = self._batch_after[first : first + len(done.entries)]
        self._next_use[done.entries] = after
        self._use(done.entries)
        self._num_trained = done.batch + 1
        return after.copy()

    def resident(self, *, unused_until: int = -1) -> tuple[Int64s, Keys]:
        """Resident rows int64 [R], and their keys, with tables ascending.

        Args:
            unused_until: Leaves out the rows that announced batches up to this one use.
        """
        entries = np.flatnonzero(self._row[: self._index.next_row])
        return self._in_order(entries[self._next_use[entries] > unused_until])

    def find(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of any unique keys; 0 where a key is not resident."""
        return self._row[self._index.resolve(keys)].astype(np.int64)

    def _use(self, entries: Int64s) -> None:
        """Record a use of entries now, after which some may not be used again for as long as is known."""
        self._clock += 1
        self._last_use[entries] = self._clock
        idle = entries[self._next_use[entries] == NEVER]
        if len(idle):
            self._idle.append((self._clock, idle))

    def _find(self, batch: int) -> _Announced:
        return self._announced[batch - self._num_trained]

    def _choose(self, num_rows: int, batch: int) -> Int64s | None:
        """Entries whose rows leave, so that `num_rows` become free for a batch; None if there are too few."""
        chosen: list[Int64s] = []
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
            if batch > self._num_trained:
                return None
            self.capacity += num_rows
        for _ in range(num_idle_batches):
            self._idle.popleft()
        return np.concatenate([np.empty(0, dtype=np.int64), *chosen])

    def _remove(self, entries: Int64s) -> tuple[Keys, Int64s]:
        """Free the rows of entries; returns keys and rows, with tables ascending."""
        rows, keys = self._in_order(entries)
        self._row[entries] = 0
        self.num_resident -= len(entries)
        self._free = np.concatenate([self._free, rows])
        unused = entries[self._next_use[entries] == NEVER]
        if len(unused):
            self._last_place[unused] = self._last_use[unused] = -1
            self._index.remove(self._keys_of(unused))
        return keys, rows

    def _take_rows(self, num_rows: int) -> Int64s:
        num_freed = min(num_rows, len(self._free))
        freed, self._free = np.split(self._free, [num_freed])
        first = self._num_rows + 1
        self._num_rows += num_rows - num_freed
        self.num_resident += num_rows
        return np.concatenate([freed, np.arange(first, self._num_rows + 1)])

    def _in_order(self, entries: Int64s) -> tuple[Int64s, Keys]:
        keys = self._keys_of(entries)
        order = np.argsort(keys.tables.astype(np.int16), kind="stable")  # 16 bits use a radix sort
        return self._row[entries[order]].astype(np.int64), keys.take(order)

    def _keys_of(self, entries: Int64s) -> Keys:
        tables, ids = self._index.owners(entries)
        return Keys(tables, ids, np.zeros(len(ids), dtype=np.int32))

    def _reserve(self, num_entries: int, end: int) -> None:
        """Ensure room for entries, and for the keys of announced batches up to a position."""
        if num_entries > len(self._row):
            more = max(num_entries, 2 * len(self._row)) - len(self._row)
            self._row = np.concatenate([self._row, np.zeros(more, dtype=np.int32)])
            self._next_use = np.concatenate([self._next_use, np.full(more, NEVER)])
            self._last_use = np.concatenate([self._last_use, np.full(more, -1)])
            self._last_place = np.concatenate([self._last_place, np.full(more, -1)])
        if end - self._base > len(self._batch_after):
            first = self._announced[0].start if self._announced else self._end
            kept = self._batch_after[first - self._base : self._end - self._base]
            self._batch_after = np.empty(max(len(self._batch_after), 2 * (end - first)), dtype=np.int64)
            self._batch_after[: len(kept)] = kept
            self._base = first


@kernel()
def _announce(
    entries: Int64s,
    batch: int,
    start: int,
    first: int,
    base: int,
    next_use: Int64s,
    last_place: Int64s,
    batch_after: Int64s,
) -> None:
    """Record that a batch uses entries [U], which have the positions from `start` on.

    Args:
        entries: Entries of the batch.
        batch: Number of the batch.
        start: Position of its first key.
        first: Position of the first key of all batches that are not trained yet.
        base: Position of the first element of `batch_after`.
        next_use: Of each entry.
        last_place: Of each entry.
        batch_after: Of each position.
    """
    for u in range(len(entries)):
        entry = entries[u]
        if last_place[entry] >= first:
            batch_after[last_place[entry] - base] = batch
        else:
            next_use[entry] = batch
        last_place[entry] = start + u
        batch_after[start + u - base] = NEVER
