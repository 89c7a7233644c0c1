"""`HET`: cached rows with bounded staleness of reads and of writes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.placement.replay.eviction import lowest
from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting
from headrace.placement.replay.stream import Int32s

__all__ = ["HET", "HET0", "HET5", "HET100"]


class HET(PlacementPolicy):
    """HET (VLDB'22; rules from `src/hetu_cache` and `ps-lite/src/PSFhandle_embedding.cc` of HKUST-SING/herald).

    - A cached row has a version and the gradients that were not pushed. Before a step, a trainer sends ids and versions
      of its cached rows; rows that it lacks, or that are more than `bound` updates behind the server, are pulled.
    - Gradients are applied to the cached row and added up. They are pushed when there are more than `bound` of them,
      or when the row leaves the LRU cache. The server adds them to the row and to its version.

    A bound of 0 is exact. Otherwise a read misses at most `bound` updates that the server has, and `bound` of each
    other trainer that it has not. Pulled rows carry no optimizer state, because the server only adds.
    """

    name = "het"
    bound = 0

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        shape = setting.num_trainers, setting.num_rows
        self._cached = np.zeros(shape, dtype=np.bool_)
        self._last_use = np.zeros(shape, dtype=np.int64)
        self._versions = np.zeros(shape, dtype=np.int32)
        self._unsent = np.zeros(shape, dtype=np.int32)
        self._server_versions = np.zeros(setting.num_rows, dtype=np.int32)
        self._num_uses = 0

    def plan(self, known: Knowledge) -> Plan:
        now = known.now
        actions: list[Action] = []
        for trainer in self.setting.trainers:
            actions += self._push(trainer, np.flatnonzero(self._unsent[trainer] > self.bound).astype(np.int32))
        for trainer in self.setting.trainers:  # all pushes come first, so that equal plans have equal versions
            actions += self._make_room(trainer, now.of(trainer))
        for trainer in self.setting.trainers:
            actions += self._read(trainer, now.of(trainer))
            self._unsent[trainer, now.of(trainer)] += 1
        self._num_uses += len(now.rows)
        return Plan(actions)

    def finish(self) -> Sequence[Action]:
        actions: list[Action] = []
        for trainer in self.setting.trainers:
            actions += self._push(trainer, np.flatnonzero(self._unsent[trainer]).astype(np.int32))
        return actions

    def most_missing(self) -> int:
        return self.bound * self.setting.num_trainers

    def _push(self, trainer: int, rows: Int32s) -> list[Action]:
        counts = self._unsent[trainer, rows]
        self._server_versions[rows] += counts
        self._versions[trainer, rows] += counts
        self._unsent[trainer, rows] = 0
        return [Move(Kind.GRADIENT, trainer, SHARD, rows)]

    def _make_room(self, trainer: int, rows: Int32s) -> list[Action]:
        self._last_use[trainer, rows] = self._num_uses + np.arange(len(rows))
        num_missing = np.count_nonzero(~self._cached[trainer, rows])
        cached = np.flatnonzero(self._cached[trainer]).astype(np.int32)
        excess = len(cached) + num_missing - (self.setting.capacity or self.setting.num_rows)
        if excess <= 0:
            return []
        old = cached[self._last_use[trainer, cached] < self._num_uses]
        victims = lowest(old, self._last_use[trainer, old], int(excess))
        self._cached[trainer, victims] = False
        dirty = victims[self._unsent[trainer, victims] > 0]
        return [*self._push(trainer, dirty), Drop(trainer, victims)]

    def _read(self, trainer: int, rows: Int32s) -> list[Action]:
        is_cached = self._cached[trainer, rows]
        behind = self._server_versions[rows] - self._versions[trainer, rows]
        pulled = rows[~is_cached | (behind > self.bound)]
        self._cached[trainer, pulled] = True
        self._versions[trainer, pulled] = self._server_versions[pulled]
        return [Move(Kind.CHECK, trainer, SHARD, rows[is_cached]), Move(Kind.READ, SHARD, trainer, pulled)]


class HET0(HET):
    """HET with bound 0, which is exact."""

    name = "het_0"


class HET5(HET):
    """HET with bound 5."""

    name = "het_5"
    bound = 5


class HET100(HET):
    """HET with bound 100."""

    name = "het_100"
    bound = 100
