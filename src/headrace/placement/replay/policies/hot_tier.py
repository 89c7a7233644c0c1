"""`HotTier`: popular rows are replicated at all trainers, all others are read from the shards in every step."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.placement.replay.eviction import highest, lowest
from headrace.placement.replay.movement import ALL, SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows
from headrace.placement.replay.stream import Int32s, popcounts

__all__ = ["HotTier"]

NO_ROWS = np.zeros(0, dtype=np.int32)


class HotTier(PlacementPolicy):
    """Base of policies with a replicated tier, which is learned from past steps and chosen anew every `period` steps.

    Gradients of the tier are all-reduced. A trainer reads its other rows before a step, and sends their gradients after
    it; the next step waits only for gradients of rows that it reads.

    Class attributes:
        period: Steps from one choice of the tier to the next.
        reads_ahead: Whether rows that the current step does not update are read one step ahead.
    """

    period = 50
    reads_ahead = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._uses = np.zeros(setting.num_rows, dtype=np.int64)
        """Trainers that read each row, summed over past steps."""
        self._is_hot = np.zeros(setting.num_rows, dtype=np.bool_)
        self._read = [NO_ROWS] * setting.num_trainers  # cold rows of the previous step
        self._read_ahead = [NO_ROWS] * setting.num_trainers
        self._previous: StepRows | None = None

    def choose(self) -> Int32s:
        """Rows of the tier from now on, from `_uses`."""
        raise NotImplementedError

    def reduced(self, step: StepRows) -> Int32s:
        """Rows whose gradients are all-reduced after a step."""
        return step.rows[self._is_hot[step.rows]]

    def is_hidden(self, step: StepRows, trainer: int) -> bool:
        """Whether a trainer has work for which it needs no cold rows."""
        return False

    def plan(self, known: Knowledge) -> Plan:
        now = known.now
        is_choice = now.number > 0 and now.number % self.period == 0
        most_cold = max(len(self._cold(now, trainer)) for trainer in self.setting.trainers)
        is_tight = self._num_hot() + most_cold + self._num_unsent(now) > self._capacity()
        before, during = self._send(now, everything=is_choice or is_tight)
        if is_choice:
            tier = self.choose()
            room = self._capacity() - max(len(now.of(trainer)) for trainer in self.setting.trainers)
            before += self._change(highest(tier, self._uses[tier], room))
        before += self._shrink(now)
        for trainer in self.setting.trainers:
            ahead = self._read_ahead[trainer]
            ahead = ahead[~self._is_hot[ahead]]
            cold = self._cold(now, trainer)
            late = cold[~np.isin(cold, ahead)]
            before.append(Move(Kind.READ, SHARD, trainer, late, hidden=self.is_hidden(now, trainer)))
            self._read[trainer] = cold
            self._read_ahead[trainer] = NO_ROWS
            if self.reads_ahead and known.next is not None:
                during += self._ahead(now, known.next, trainer)
        self._uses[now.rows] += popcounts(now.readers)
        self._previous = now
        return Plan(before, during)

    def finish(self) -> Sequence[Action]:
        actions: list[Action] = []
        if self._previous is not None:
            actions, _ = self._send(self._previous, everything=True)
        return [*actions, *self._change(NO_ROWS)]

    def _cold(self, step: StepRows, trainer: int) -> Int32s:
        rows = step.of(trainer)
        return rows[~self._is_hot[rows]]

    def _send(self, now: StepRows, *, everything: bool) -> tuple[list[Action], list[Action]]:
        """Gradients of the previous step: those for which the step waits, and the others."""
        before: list[Action] = []
        during: list[Action] = []
        if self._previous is not None:
            before.append(Move(Kind.ALL_REDUCE, ALL, ALL, self.reduced(self._previous)))
        for trainer, rows in enumerate(self._read):
            is_urgent = np.isin(rows, now.rows) | everything
            for actions, sent in ((before, rows[is_urgent]), (during, rows[~is_urgent])):
                actions += [Move(Kind.GRADIENT, trainer, SHARD, sent), Drop(trainer, sent)]
        return before, during

    def _change(self, tier: Int32s) -> list[Action]:
        """Replace the tier: rows that leave are written back, each by one trainer, and new ones fetched by all."""
        is_hot = np.zeros_like(self._is_hot)
        is_hot[tier] = True
        leaving = np.flatnonzero(self._is_hot & ~is_hot).astype(np.int32)
        coming = np.flatnonzero(is_hot & ~self._is_hot).astype(np.int32)
        self._is_hot = is_hot
        actions: list[Action] = []
        for trainer, part in enumerate(np.array_split(leaving, self.setting.num_trainers)):
            actions += [Move(Kind.WRITE_BACK, trainer, SHARD, part), Drop(trainer, leaving)]
        return [*actions, *(Move(Kind.FETCH, SHARD, trainer, coming) for trainer in self.setting.trainers)]

    def _shrink(self, now: StepRows) -> list[Action]:
        """Make room for the cold rows of each trainer, with the least used rows of the tier that it does not read."""
        actions: list[Action] = []
        for trainer in self.setting.trainers:
            excess = self._num_hot() + len(self._cold(now, trainer)) - self._capacity()
            if excess > 0:
                tier = np.flatnonzero(self._is_hot).astype(np.int32)
                unread = tier[~np.isin(tier, now.of(trainer))]
                leaving = lowest(unread, self._uses[unread], excess)
                actions += self._change(tier[~np.isin(tier, leaving)])
        return actions

    def _num_unsent(self, now: StepRows) -> int:
        """Most rows of a trainer whose gradients of the previous step could leave while this step runs."""
        return max(int(np.count_nonzero(~np.isin(rows, now.rows))) for rows in self._read)

    def _ahead(self, now: StepRows, following: StepRows, trainer: int) -> list[Action]:
        cold = self._cold(following, trainer)
        cold = cold[~np.isin(cold, now.rows)]
        room = self._capacity() - self._num_hot() - len(self._read[trainer])
        self._read_ahead[trainer] = cold[: max(0, room)]
        return [Move(Kind.READ, SHARD, trainer, self._read_ahead[trainer])]

    def _capacity(self) -> int:
        return self.setting.capacity or 2 * self.setting.num_rows

    def _num_hot(self) -> int:
        return int(np.count_nonzero(self._is_hot))

    def _most_used(self, count: int) -> Int32s:
        used = np.flatnonzero(self._uses).astype(np.int32)
        return highest(used, self._uses[used], count)
