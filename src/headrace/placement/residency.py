"""`Residency`: decides which rows trainers keep, when they come and which leave, from the keys of later batches.

The next use of a row is known for all announced batches, so the row whose next use is farthest leaves first (Belady,
"A study of replacement algorithms for a virtual-storage computer", 1966). Rows without a known next use leave before
all others, the least recently used first::

    announced   batch 7: a b    batch 8: b c    batch 9: a d          capacity 3
    trained     batch 6: e f    resident: a b e
    place 8     c needs a place: e leaves, because no announced batch uses it
    place 9     d needs a place: none is left before batch 7 is trained, since a and b are used first

Where no later batch is ever announced, rows can instead leave by how often they were used: a row that was used in
several batches since it came stays when its turn comes, and counts half as many uses from then on (generalised CLOCK:
Smith, "Sequentiality and prefetching in database systems", 1978). So the rows that stay are learned from the keys, and
learned anew as these change.

With several trainers, each decides for all from the keys of all, and so decides as the others do. A row is kept by one
trainer, its owner. If the owner does not read it in a batch, it moves to a trainer that does, unless it costs less to
send its value and a gradient::

    batch 7 of trainers 0, 1    a b, c      a: kept by 0    b: by 0    c: by 1
    batch 8                     a, a b      a: stays at 0, which 1 reads and updates too    b: moves from 0 to 1

The cost of each call is proportional to the keys of the batches that it looks at, never to the number of resident rows
or of rows in the table. Decisions are pure: no values, threads or clocks are involved.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.placement.joining import Prices, choose_owners, join_entries
from headrace.placement.key_entries import NEVER, KeyEntries
from headrace.placement.leaving import Keeps, LeavingOrder, is_at
from headrace.placement.next_uses import NextUses

__all__ = ["AnnouncedBatch", "Keeps", "Placing", "Residency"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]

MOVES_ARE_CHEAP = Prices(move_bytes=1, use_bytes=2)

NO_ROWS: Int64s = np.empty(0, dtype=np.int64)


@dataclass(frozen=True, eq=False)
class Placing:
    """The rows that an announced batch needs and that were not where it needs them.

    Attributes:
        places: int64 [M], positions of their keys in the batch.
        rows: int64 [M], the slot that each gets; with one trainer a row from 1 to the capacity.
        came_from: int64 [M], the slot that each had at another trainer; 0 if it comes from the shards.
        leaving: int64 [V], slots that are left to make room, before they are given out again.
        left: Keys [V] of the rows that leave, with tables ascending.
    """

    places: Int64s
    rows: Int64s
    came_from: Int64s
    leaving: Int64s
    left: Keys


@dataclass(eq=False)
class AnnouncedBatch:
    """An announced batch, of all trainers.

    Attributes:
        batch: Its number.
        entries: int32 [U], the entries of its distinct keys.
        start: Position of the first among those of all batches.
        places: For each trainer, the places of its keys among `entries`, int32 [U_r]; nothing with one trainer.
        readers: int64 [U], the trainers that read each key, as bits; nothing with one trainer.
        rows: int64 [U], slots once they have a place, which they keep until the batch is trained.
        came_from: int64 [U], the slot of each at another trainer until it moves for this batch; otherwise 0.
        is_late: bool [U], whether a row is not sent before the batch before is trained, because that one updates it,
            because it comes from the shards, or because this batch was the next one when it got its places.
    """

    batch: int
    entries: Int32s
    start: int
    places: tuple[Int32s, ...] = ()
    readers: Int64s | None = None
    rows: Int64s | None = None
    came_from: Int64s | None = None
    is_late: Bools | None = None


class Residency:
    """The resident rows of N trainers, which each numbers from 1 to the capacity.

    Row r of trainer t is *slot* r N + t. With one trainer, rows and slots are the same.

    Batches are announced in order, placed in order, and trained in order.

    Args:
        capacity: Maximum number of resident rows of a trainer.
        num_trainers: Number of trainers N.
        trainer: The trainer whose rows `located`, `resident` and `find` give; decisions do not depend on it.
        prices: Price of a row that moves between trainers, and of one that is used by another trainer than its owner.
        keeps: Which rows stay longest; "frequent" only with one trainer, that announces a batch when it trains it.

    Attributes:
        capacity: As given, or what a trainer needed for a single batch, if that was more.
        num_trained: Number of batches trained so far.
    """

    def __init__(
        self,
        capacity: int,
        num_trainers: int = 1,
        trainer: int = 0,
        prices: Prices = MOVES_ARE_CHEAP,
        *,
        keeps: Keeps = "recent",
    ) -> None:
        assert keeps == "recent" or num_trainers == 1
        self.capacity = capacity
        self._prices = prices
        self.num_trainers = num_trainers
        self.trainer = trainer
        self._num_resident = [0] * num_trainers
        self._entries = KeyEntries(capacity * num_trainers)  # of keys that are resident or that an announced batch uses
        self._uses_ahead = NextUses(num_trainers)
        self._announced: deque[AnnouncedBatch] = deque()
        self._leaving = LeavingOrder(self._entries, num_trainers, keeps)
        self._free = [NO_ROWS] * num_trainers  # rows that were used before
        self._num_rows = [0] * num_trainers  # rows ever used
        self._moving: deque[tuple[int, Int64s]] = deque()  # slots that become free once so many batches are trained
        self._marks: Int32s = np.zeros(0, dtype=np.int32)
        self.num_trained = 0
        self._clock = 0  # number of trained batches and adopted keys

    @property
    def num_announced(self) -> int:
        """Number of batches announced so far."""
        return self.num_trained + len(self._announced)

    @property
    def num_resident(self) -> int:
        """Number of resident rows of `trainer`."""
        return self._num_resident[self.trainer]

    @property
    def num_keys(self) -> int:
        """Number of keys that are resident, or that an announced batch uses."""
        return self._entries.num_entries

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        announced = sum(_bytes_of(each) for each in self._announced)
        free = sum(rows.nbytes for rows in self._free) + sum(slots.nbytes for _, slots in self._moving)
        ahead = self._uses_ahead.num_bytes
        return self._entries.num_bytes + ahead + self._marks.nbytes + free + self._leaving.num_bytes + announced

    def announce(self, *parts: Keys) -> int:
        """Announce the keys of the batch after the last announced one; returns its number.

        Args:
            parts: For each trainer, its unique keys.
        """
        batch, start = self.num_announced, self._uses_ahead.end
        found = [self._entries.add(keys) for keys in parts]
        self._leaving.grow()
        if self.num_trainers == 1:
            announced = AnnouncedBatch(batch, found[0], start)
        else:
            if len(self._marks) < len(self._entries.records):
                self._marks = np.zeros(len(self._entries.records), dtype=np.int32)
            entries, places, readers = join_entries(found, self._marks)
            announced = AnnouncedBatch(batch, entries, start, places, readers)
        first = self._announced[0].start if self._announced else start
        self._uses_ahead.announce(announced.entries, announced.readers, self._entries.records, batch=batch, first=first)
        self._announced.append(announced)
        return batch

    def announced(self, batch: int) -> AnnouncedBatch:
        """A batch that is announced and not yet trained."""
        return self._find(batch)

    def rows_of(self, batch: int) -> Int64s:
        """Slots int64 [U] of the keys of an announced batch; 0 where a key is not resident."""
        announced = self._find(batch)
        return self._row[announced.entries].astype(np.int64) if announced.rows is None else announced.rows

    def keys_of(self, entries: Int32s) -> Keys:
        """Keys of some entries, with zero counts."""
        return self._entries.keys_of(entries)

    def place(self, batch: int) -> Placing | None:
        """Make all rows resident that an announced batch needs, each at one trainer.

        Rows that earlier batches need stay. Returns None if there is no room for the others before those batches are
        trained. The next batch to train gets room in any case, if necessary beyond the capacity.
        """
        announced = self._find(batch)
        if self.num_trainers > 1:
            return self._place_shared(announced)
        entries = announced.entries
        places = np.flatnonzero(self._row[entries] == 0)
        leaving = self._choose([len(places) - (self.capacity - self.num_resident)], batch)
        if leaving is None:
            return None
        placing = self._exchange(leaving, entries, places)
        announced.rows = self._row[entries].astype(np.int64)
        return placing

    def _place_shared(self, announced: AnnouncedBatch) -> Placing | None:
        """`place` with several trainers."""
        batch, entries, num_trainers = announced.batch, announced.entries, self.num_trainers
        assert announced.readers is not None
        slots = self._row[entries].astype(np.int64)
        ids = self._entries.column("id")[entries]
        next_readers = self._uses_ahead.readers(announced.start, len(entries))
        owners = choose_owners(slots, announced.readers, next_readers, ids, num_trainers, self._prices)
        is_moving = (slots > 0) & (slots % num_trainers != owners)
        places = np.flatnonzero((slots == 0) | is_moving)
        arriving = np.bincount(owners[places], minlength=num_trainers).tolist()
        needed = [new + here - self.capacity for new, here in zip(arriving, self._num_resident, strict=True)]
        leaving = self._choose(needed, batch)
        if leaving is None:
            return None
        announced.came_from = np.where(is_moving, slots, 0)
        announced.is_late = self._is_used_before(announced) | (slots == 0)
        placing = self._exchange(leaving, entries, places, owners[places], announced.came_from[places])
        # The owners before send them before that many batches are trained.
        self._moving.append((max(batch, self.num_trained + 1), slots[is_moving]))
        announced.rows = self._row[entries].astype(np.int64)
        return placing

    def _is_used_before(self, announced: AnnouncedBatch) -> Bools:
        """bool [U], whether the batch before an announced one uses each key too, or may do so."""
        if announced.batch == self.num_trained:
            return np.ones(len(announced.entries), dtype=np.bool_)
        before = self._find(announced.batch - 1)
        used_next = self._uses_ahead.batches(before.start, len(before.entries)) == announced.batch
        self._marks[before.entries[used_next]] = 1
        is_used: Bools = self._marks[announced.entries] == 1
        self._marks[before.entries] = 0
        return is_used

    def adopt(self, keys: Keys) -> Placing:
        """Make the rows of some keys resident that were not announced; only with one trainer.

        Rows that the next batch needs stay; if necessary, there are more rows than the capacity.
        """
        assert self.num_trainers == 1
        entries = self._entries.add(keys)
        places = np.flatnonzero(self._row[entries] == 0)
        next_uses = self._next_use[entries]
        self._next_use[entries] = self.num_trained  # so that none of them leaves
        leaving = self._choose([len(places) - (self.capacity - self.num_resident)], self.num_trained)
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
        while self._moving and self._moving[0][0] <= self.num_trained:
            self._release(self._moving.popleft()[1])
        return self._use(done.entries, self._uses_ahead.batches(done.start, len(done.entries)), end)

    def unused_until(self, end: int) -> Int32s:
        """Entries of resident rows that no announced batch up to `end` uses; -1 for all."""
        entries = self._entries.resident()
        return entries[self._next_use[entries] > end]

    def located(self, entries: Int32s) -> tuple[Int64s, Keys]:
        """Rows int64 [R] and keys of those of some entries that are resident, with tables ascending."""
        slots, keys = self._in_order(entries[self._is_at(entries, self.trainer)])
        return self._rows_of(slots), keys

    def resident(self, among: Bools | None = None) -> tuple[Int64s, Keys]:
        """All resident rows int64 [R], and their keys, with tables ascending.

        Args:
            among: bool [capacity + 1], the rows that are asked for; all if not given.
        """
        entries = self._entries.resident()
        if among is not None:
            entries = entries[self._is_at(entries, self.trainer)]
            entries = entries[among[self._rows_of(self._row[entries])]]
        return self.located(entries)

    def find(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of any unique keys; 0 where a key is not resident."""
        entries = self._entries.find(keys)
        return np.where(self._is_at(entries, self.trainer), self._rows_of(self._row[entries].astype(np.int64)), 0)

    def _rows_of(self, slots: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """The rows of slots at their trainers."""
        return slots if self.num_trainers == 1 else slots // self.num_trainers

    def _is_at(self, entries: Int32s, trainer: int) -> Bools:
        """bool [E], whether the rows of entries are resident at a trainer."""
        return is_at(self._row[entries], trainer, self.num_trainers)

    def _use(self, entries: Int32s, next_uses: Int32s, end: int = -1) -> Int32s:
        """Record a use of entries [U] now, and their next uses; see `finish`."""
        self._clock += 1
        self._leaving.use(entries)
        idle, unused = np.empty_like(entries), np.empty_like(entries)
        num_idle, num_unused = _use(entries, next_uses, self._entries.records, self._clock, end, idle, unused)
        self._leaving.add_idle(idle[:num_idle], self._clock)
        return unused[:num_unused]

    def _exchange(
        self, leaving: Int32s, entries: Int32s, places: Int64s, owners: Int64s = NO_ROWS, came_from: Int64s = NO_ROWS
    ) -> Placing:
        """Give slots of their owners to the entries at some places, after others have left."""
        left, slots_left = self._remove(leaving)
        if self.num_trainers == 1:
            slots, came_from = self._take_rows(0, len(places)), np.zeros(len(places), dtype=np.int64)
        else:
            slots = np.empty(len(places), dtype=np.int64)
            for trainer in range(self.num_trainers):
                here = np.flatnonzero(owners == trainer)
                slots[here] = self._take_rows(trainer, len(here)) * self.num_trainers + trainer
        self._row[entries[places]] = slots
        self._leaving.come(entries[places])
        return Placing(places, slots, came_from, slots_left, left)

    @property
    def _row(self) -> Int32s:
        return self._entries.column("row")

    @property
    def _next_use(self) -> Int32s:
        return self._entries.column("next_use")

    def _find(self, batch: int) -> AnnouncedBatch:
        return self._announced[batch - self.num_trained]

    def _choose(self, num_rows: Sequence[int], batch: int) -> Int32s | None:
        """Entries whose rows leave, so that at each trainer `num_rows` become free for a batch; None if there are too
        few."""
        is_next = batch == self.num_trained
        if is_next:
            self._leaving.pass_over(num_rows[0], self._clock)
        later = [(each.batch, each.entries) for each in reversed(self._announced) if each.batch > batch]
        chosen, missing = self._leaving.choose(num_rows, later, even_if_too_few=is_next)
        if missing > 0:
            if not is_next:
                return None
            self.capacity += missing
        return chosen

    def _remove(self, entries: Int32s) -> tuple[Keys, Int64s]:
        """Free the slots of entries; returns keys and slots, with tables ascending."""
        slots, keys = self._in_order(entries)
        self._row[entries] = 0
        self._release(slots)
        unused = entries[self._next_use[entries] == NEVER]
        if len(unused):
            self._entries.remove(unused)
        return keys, slots

    def _release(self, slots: Int64s) -> None:
        """Free slots for other rows."""
        for trainer in range(self.num_trainers):
            rows = slots if self.num_trainers == 1 else slots[slots % self.num_trainers == trainer] // self.num_trainers
            self._num_resident[trainer] -= len(rows)
            self._free[trainer] = np.concatenate([self._free[trainer], rows])

    def _take_rows(self, trainer: int, num_rows: int) -> Int64s:
        num_freed = min(num_rows, len(self._free[trainer]))
        freed, self._free[trainer] = np.split(self._free[trainer], [num_freed])
        first = self._num_rows[trainer] + 1
        self._num_rows[trainer] += num_rows - num_freed
        self._num_resident[trainer] += num_rows
        return np.concatenate([freed, np.arange(first, self._num_rows[trainer] + 1)])

    def _in_order(self, entries: Int32s) -> tuple[Int64s, Keys]:
        keys = self._entries.keys_of(entries)
        tables = keys.tables.astype(np.int16)
        if (tables[1:] >= tables[:-1]).all():  # as of a batch
            return self._row[entries].astype(np.int64), keys
        order = np.argsort(tables, kind="stable")  # 16 bits use a radix sort
        return self._row[entries[order]].astype(np.int64), keys.take(order)


def _bytes_of(announced: AnnouncedBatch) -> int:
    arrays = announced.entries, announced.rows, announced.readers, announced.came_from, announced.is_late
    return sum(each.nbytes for each in (*arrays, *announced.places) if each is not None)


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
