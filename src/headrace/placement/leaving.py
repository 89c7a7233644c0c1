"""`LeavingOrder`: which resident rows leave first: those that no announced batch uses, then those that are used last.

Rows without a known use wait in lists, one for each batch that used them last, and leave in that order. They are looked
at only when room is needed, so a row that was used again since, or has moved, is found to be no longer idle then.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Sequence
from typing import Literal

import numpy as np
import numpy.typing as npt

from headrace.placement.key_entries import NEVER, KeyEntries

__all__ = ["Keeps", "LeavingOrder", "is_at"]

Keeps = Literal["recent", "frequent"]
"""Which of the rows without a known next use stay longest: the last used, or the most often used ones."""

MAX_USES = 15
"""Uses of a row that are counted at most, so that a row that is no longer used leaves after four turns."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


def is_at(slots: Int32s, trainer: int, num_trainers: int) -> Bools:
    """bool [E], whether rows in some slots are resident at a trainer."""
    is_here: Bools = slots > 0
    return is_here if num_trainers == 1 else is_here & (slots % num_trainers == trainer)


class LeavingOrder:
    """The order in which the rows of N trainers leave.

    Args:
        entries: The keys, with their rows and uses.
        num_trainers: Number of trainers N.
        keeps: Which rows stay longest; "frequent" only with one trainer.
    """

    def __init__(self, entries: KeyEntries, num_trainers: int, keeps: Keeps) -> None:
        self._entries = entries
        self._num_trainers = num_trainers
        self._uses: npt.NDArray[np.uint8] | None = np.zeros(0, dtype=np.uint8) if keeps == "frequent" else None
        # For each trainer, by time of last use: entries of its rows that are not used again as far as known.
        self._idle: list[deque[tuple[int, Int32s]]] = [deque() for _ in range(num_trainers)]

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        idle = sum(entries.nbytes for each in self._idle for _, entries in each)
        return idle + (0 if self._uses is None else self._uses.nbytes)

    def grow(self) -> None:
        """Have room for all entries."""
        if self._uses is not None:
            missing = len(self._entries.records) - len(self._uses)
            self._uses = np.concatenate([self._uses, np.zeros(max(0, missing), dtype=np.uint8)])

    def come(self, entries: Int32s) -> None:
        """Record that the rows of entries became resident."""
        if self._uses is not None:
            self._uses[entries] = 0

    def use(self, entries: Int32s) -> None:
        """Record a use of entries."""
        if self._uses is not None:
            self._uses[entries] += self._uses[entries] < MAX_USES

    def add_idle(self, entries: Int32s, clock: int) -> None:
        """Add entries, last used at a time, that no announced batch uses."""
        for trainer in range(self._num_trainers if len(entries) else 0):
            mine = entries.copy() if self._num_trainers == 1 else entries[self._is_at(entries, trainer)]
            if len(mine):
                self._idle[trainer].append((clock, mine))

    def pass_over(self, num_rows: int, clock: int) -> None:
        """Let rows wait another turn that were used several times since they came, until `num_rows` others are first.

        Each time, they count half as many uses, so that every row leaves in the end. With "recent" nothing happens.
        """
        uses, idle = self._uses, self._idle[0]
        if uses is None:
            return
        first: list[tuple[int, Int32s]] = []
        while num_rows > 0 and idle:
            used, entries = idle.popleft()
            entries = entries[self._is_idle(entries, used)]
            is_frequent = uses[entries] > 1
            frequent, others = entries[is_frequent], entries[~is_frequent]
            if len(frequent):
                uses[frequent] >>= 1
                self._entries.column("last_use")[frequent] = clock
                idle.append((clock, frequent))
            if len(others):
                first.append((used, others))
                num_rows -= len(others)
        idle.extendleft(reversed(first))

    def choose(
        self, num_rows: Sequence[int], latest: Sequence[tuple[int, Int32s]], *, even_if_too_few: bool
    ) -> tuple[Int32s, int]:
        """Entries whose rows leave, so that at each trainer so many become free.

        Args:
            num_rows: For each trainer, the number of rows.
            latest: Batches that are used after all that must stay, the last one first, with their entries.
            even_if_too_few: Whether rows leave even if fewer than that can.

        Returns:
            The entries int32 [V], and the largest number of rows that a trainer is short of.
        """
        chosen: list[Int32s] = [np.empty(0, dtype=np.int32)]
        num_idle_batches, missing = [], 0
        for trainer, needed in enumerate(num_rows):
            found, num_idle = self._choose_at(trainer, needed, latest)
            chosen += found
            num_idle_batches.append(num_idle)
            missing = max(missing, needed - sum(map(len, found)))
        if missing <= 0 or even_if_too_few:
            for idle, num_idle in zip(self._idle, num_idle_batches, strict=True):
                for _ in range(num_idle):
                    idle.popleft()
        return np.concatenate(chosen), missing

    def _choose_at(self, trainer: int, num_rows: int, latest: Iterable[tuple[int, Int32s]]) -> tuple[list[Int32s], int]:
        """Entries of rows of a trainer that leave first, up to `num_rows`, and the number of idle batches of which all
        entries leave."""
        chosen: list[Int32s] = []
        num_idle_batches = 0
        idle = self._idle[trainer]
        for place, (used, entries) in enumerate(idle):
            if num_rows <= 0:
                break
            is_idle = self._is_idle(entries, used) & self._is_at(entries, trainer)
            idle[place] = used, entries[is_idle]
            chosen.append(entries[is_idle][:num_rows])
            num_rows -= len(chosen[-1])
            num_idle_batches += len(chosen[-1]) == np.count_nonzero(is_idle)
        for batch, entries in latest:
            if num_rows <= 0:
                break
            is_last = (self._entries.column("next_use")[entries] == batch) & self._is_at(entries, trainer)
            chosen.append(entries[is_last][:num_rows])
            num_rows -= len(chosen[-1])
        return chosen, num_idle_batches

    def _is_idle(self, entries: Int32s, used: int) -> Bools:
        """bool [E], whether entries that became idle when they were used at a time still are."""
        records = self._entries.records[entries]
        found: Bools = (records["last_use"] == used) & (records["next_use"] == NEVER)
        return found

    def _is_at(self, entries: Int32s, trainer: int) -> Bools:
        return is_at(self._entries.column("row")[entries], trainer, self._num_trainers)
