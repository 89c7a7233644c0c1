"""`Belady`: the offline limit of one trainer's cache misses."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.errors import ConfigError
from headrace.placement.replay.eviction import farthest_keys, highest
from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting
from headrace.placement.replay.stream import Int32s, RowStream

__all__ = ["Belady"]


class Belady(PlacementPolicy):
    """Knows the whole stream, and evicts the rows that are used farthest in the future (Belady, 1966).

    No cache of the same size has fewer misses. It is a limit for one trainer; with several, rows also move between
    them.
    """

    name = "belady"
    knows_all = True

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._is_cached = np.zeros(setting.num_rows, dtype=np.bool_)
        self._next_use = np.zeros(setting.num_rows, dtype=np.int32)
        self._last_use = np.zeros(setting.num_rows, dtype=np.int32)
        self._num_cached = 0

    def prepare(self, stream: RowStream) -> RowStream:
        if self.setting.num_trainers != 1:
            raise ConfigError(f"belady: is a limit for one trainer, given {self.setting.num_trainers}")
        return stream

    def plan(self, known: Knowledge) -> Plan:
        now = known.now
        missing = now.rows[~self._is_cached[now.rows]]
        self._next_use[now.rows] = now.next_use
        self._last_use[now.rows] = now.number
        excess = self._num_cached + len(missing) - (self.setting.capacity or self.setting.num_rows)
        victims = self._victims(now.rows, excess) if excess > 0 else now.rows[:0]
        self._is_cached[missing] = True
        self._is_cached[victims] = False
        self._num_cached += len(missing) - len(victims)
        return Plan([*_write_back(victims), Move(Kind.FETCH, SHARD, 0, missing)])

    def finish(self) -> Sequence[Action]:
        return _write_back(np.flatnonzero(self._is_cached).astype(np.int32))

    def _victims(self, needed: Int32s, count: int) -> Int32s:
        candidates = self._is_cached.copy()
        candidates[needed] = False
        rows = np.flatnonzero(candidates).astype(np.int32)
        return highest(rows, farthest_keys(self._next_use[rows], self._last_use[rows]), count)


def _write_back(rows: Int32s) -> list[Action]:
    return [Move(Kind.WRITE_BACK, 0, SHARD, rows), Drop(0, rows)]
