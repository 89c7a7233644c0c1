"""`LRU`: a least-recently-used cache per trainer, kept exact through the shards, without knowledge of later batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.placement.replay.eviction import lowest
from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows, held_by
from headrace.placement.replay.stream import Int32s, popcounts

__all__ = ["LRU"]

NO_ROWS = np.zeros(0, dtype=np.int32)


class LRU(PlacementPolicy):
    """Least recently used rows leave a full cache. All movements go through the shards, and the step waits for them.

    With one trainer, rows are written back when they leave. With several, the rule of embedding caches on a parameter
    server, in the form that is exact: a row that several trainers updated in a step is pushed by all of them, and
    fetched by every later reader; a row that one trainer updated is written back when another one reads it.
    """

    name = "lru"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._cached = np.zeros((setting.num_trainers, setting.num_rows), dtype=np.bool_)
        self._last_use = np.zeros((setting.num_trainers, setting.num_rows), dtype=np.int64)
        self._num_cached = np.zeros(setting.num_trainers, dtype=np.int64)
        self._num_uses = 0
        self._previous: StepRows | None = None
        self._arranged: list[Action] = []

    def arrange(self, step: StepRows) -> None:
        actions = self._push_shared()
        for trainer in self.setting.trainers:
            held = self._cached[trainer, step.rows]
            actions.append(Move(Kind.WRITE_BACK, trainer, SHARD, step.rows[held & (step.readers != 1 << trainer)]))
            actions += self._drop(trainer, step.rows[held & ~held_by(step.readers, trainer)])
        for trainer in self.setting.trainers:
            actions += self._load(trainer, step.of(trainer))
        self._num_uses += len(step.rows)
        self._previous = step
        self._arranged = actions

    def plan(self, known: Knowledge) -> Plan:
        return Plan(self._arranged)

    def finish(self) -> Sequence[Action]:
        actions = self._push_shared()
        for trainer in self.setting.trainers:
            actions += self._write_back(trainer, self._rows_of(trainer))
        return actions

    def _push_shared(self) -> list[Action]:
        """Gradients of rows that several trainers updated in the last step."""
        actions: list[Action] = []
        shared = self._shared_rows()
        for trainer in self.setting.trainers:
            rows = shared[self._cached[trainer, shared]]
            actions += [Move(Kind.GRADIENT, trainer, SHARD, rows), *self._drop(trainer, rows)]
        return actions

    def _shared_rows(self) -> Int32s:
        """Rows that several trainers updated in the last step."""
        step = self._previous
        return NO_ROWS if step is None else step.rows[popcounts(step.readers) > 1]

    def _load(self, trainer: int, rows: Int32s) -> list[Action]:
        """Make room, and fetch the rows that are not cached."""
        missing = rows[~self._cached[trainer, rows]]
        self._last_use[trainer, rows] = self._num_uses + np.arange(len(rows))
        actions: list[Action] = []
        excess = self._num_cached[trainer] + len(missing) - (self.setting.capacity or self.setting.num_rows)
        if excess > 0:
            cached = self._rows_of(trainer)
            old = cached[self._last_use[trainer, cached] < self._num_uses]
            actions += self._write_back(trainer, lowest(old, self._last_use[trainer, old], int(excess)))
        self._cached[trainer, missing] = True
        self._num_cached[trainer] += len(missing)
        return [*actions, Move(Kind.FETCH, SHARD, trainer, missing)]

    def _write_back(self, trainer: int, rows: Int32s) -> list[Action]:
        return [Move(Kind.WRITE_BACK, trainer, SHARD, rows), *self._drop(trainer, rows)]

    def _drop(self, trainer: int, rows: Int32s) -> list[Action]:
        self._cached[trainer, rows] = False
        self._num_cached[trainer] -= len(rows)
        return [Drop(trainer, rows)]

    def _rows_of(self, trainer: int) -> Int32s:
        return np.flatnonzero(self._cached[trainer]).astype(np.int32)
