"""`Bagpipe`: lookahead caching with replicated rows, as published."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.errors import ConfigError
from headrace.placement.replay.movement import ALL, SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows, held_by
from headrace.placement.replay.stream import Int32s

__all__ = ["Bagpipe"]


class Bagpipe(PlacementPolicy):
    """Bagpipe (SOSP'23; rules from `BagPipe/oraclecacher.py` and `BagPipe/bagcache.py` of uw-mad-dash/bagpipe).

    - A row is fetched if it is not resident when its batch runs. It stays until its last use in the window, its time
      to live, which every use extends.
    - A row is private if one sample of the batch uses it and no later batch of the window does. A private row is
      fetched, trained and written back by one trainer.
    - All other rows are replicated: every trainer fetches them, also those it does not read, and their gradients are
      all-reduced among all trainers. Those of rows in the next batch are waited for; the others follow during the
      next step.
    - Rows that die are written back, each by one trainer.

    Fetches and write-backs move just in time here. The artifact does them in bulk, a quarter window apart, with the
    same bytes and more memory. It has no rule for a full memory, so the replay refuses one that is too small.
    """

    name = "bagpipe"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._last_seen = np.full(setting.num_rows, -1, dtype=np.int32)
        self._resident_until = np.full(setting.num_rows, -1, dtype=np.int32)
        self._is_replicated = np.zeros(setting.num_rows, dtype=np.bool_)
        # Of the rows of the previous step and of this one: whether they are private, and whether they die. Decided when
        # they are fetched, because the window moves on.
        self._is_private = self._is_private_now = np.zeros(0, dtype=np.bool_)
        self._dies = self._dies_now = np.zeros(0, dtype=np.bool_)
        self._previous: StepRows | None = None
        self._num_replicated = 0

    def plan(self, known: Knowledge) -> Plan:
        for batch in known.entering:
            self._last_seen[batch.rows] = batch.number
        now, before = known.now, []
        if self._previous is None:
            before = self._fetch(now)
        shared = self._shared(self._previous)
        is_next = np.isin(shared, now.rows)
        before.append(Move(Kind.ALL_REDUCE, ALL, ALL, shared[is_next]))
        during: list[Action] = [Move(Kind.ALL_REDUCE, ALL, ALL, shared[~is_next]), *self._write_back_dead()]
        self._previous, self._is_private, self._dies = now, self._is_private_now, self._dies_now
        if known.next is not None:
            during += self._fetch(known.next)
        return Plan(before, during)

    def finish(self) -> Sequence[Action]:
        actions: list[Action] = [Move(Kind.ALL_REDUCE, ALL, ALL, self._shared(self._previous))]
        actions += self._write_back_dead()
        return [*actions, *self._write_back_replicas(np.flatnonzero(self._is_replicated).astype(np.int32))]

    def _shared(self, step: StepRows | None) -> Int32s:
        return np.zeros(0, dtype=np.int32) if step is None else step.rows[~self._is_private]

    def _fetch(self, step: StepRows) -> list[Action]:
        """Fetch what is not resident when a step runs, and extend the lives of its rows."""
        dies = self._last_seen[step.rows] <= step.number
        is_private = (step.num_samples == 1) & dies
        self._is_private_now, self._dies_now = is_private, dies
        is_missing = self._resident_until[step.rows] < step.number
        self._resident_until[step.rows] = np.where(dies, step.number, self._last_seen[step.rows])
        replicated = step.rows[is_missing & ~is_private]
        self._is_replicated[replicated] = True
        self._num_replicated += len(replicated)
        actions: list[Action] = []
        for trainer in self.setting.trainers:
            own = step.rows[is_missing & is_private & held_by(step.readers, trainer)]
            self._check_fits(self._num_replicated + len(own) + self._num_private(trainer))
            actions.append(Move(Kind.FETCH, SHARD, trainer, np.concatenate([replicated, own])))
        return actions

    def _num_private(self, trainer: int) -> int:
        """Private rows of the step that runs meanwhile."""
        step = self._previous
        return 0 if step is None else int(np.count_nonzero(self._is_private & held_by(step.readers, trainer)))

    def _write_back_dead(self) -> list[Action]:
        """Write back the rows whose last use was the previous step: private ones by their user, others in parts."""
        step = self._previous
        if step is None:
            return []
        is_replica = self._is_replicated[step.rows]
        actions: list[Action] = []
        for trainer in self.setting.trainers:
            own = self._is_private & held_by(step.readers, trainer)
            rows = step.rows[own]
            actions += [Move(Kind.WRITE_BACK, trainer, SHARD, rows), Drop(trainer, rows)]
            outdated = step.rows[self._is_private & is_replica & ~own]
            actions.append(Drop(trainer, outdated))
        private = step.rows[self._is_private & is_replica]
        self._is_replicated[private] = False
        self._num_replicated -= len(private)
        return [*actions, *self._write_back_replicas(step.rows[self._dies & ~self._is_private])]

    def _write_back_replicas(self, rows: Int32s) -> list[Action]:
        parts = np.array_split(rows, self.setting.num_trainers)
        self._is_replicated[rows] = False
        self._num_replicated -= len(rows)
        actions: list[Action] = []
        for trainer, part in enumerate(parts):
            actions += [Move(Kind.WRITE_BACK, trainer, SHARD, part), Drop(trainer, rows)]
        return actions

    def _check_fits(self, num_rows: int) -> None:
        if self.setting.capacity is not None and num_rows > self.setting.capacity:
            raise ConfigError(
                f"bagpipe: needs more than {num_rows:,} rows of cache for a window of {self.setting.window} batches, "
                f"given {self.setting.capacity:,}"
            )
