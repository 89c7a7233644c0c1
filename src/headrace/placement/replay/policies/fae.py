"""`FAE`: a static set of hot rows, and batches in which all rows are hot."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from headrace.placement.replay.eviction import highest
from headrace.placement.replay.movement import ALL, SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policies.none import NoCache
from headrace.placement.replay.policy import Knowledge, Setting, StepRows
from headrace.placement.replay.reordering import reorder_samples, sums_of_samples
from headrace.placement.replay.stream import Int32s, RowStream

__all__ = ["FAE"]

SAMPLE_SHARE = 0.05
"""Share of the samples in which accesses are counted."""

SEED = 0


class FAE(NoCache):
    """FAE (VLDB'22; rules from STAR-Laboratory/Accelerating-RecSys-Training).

    - The most accessed rows in a sample of 5 % of the inputs are hot, as many as the memory budget allows: the cache,
      or a tenth of all rows without one.
    - A sample is hot if all its rows are. All normal samples are trained first, then all hot ones, as in the artifact;
      the paper alternates. The last batch of normal samples is filled up with hot ones.
    - Normal batches read and push their rows. Before the hot batches all trainers fetch all hot rows, after them they
      write them back. In between, gradients are all-reduced.

    The order of samples depends on popularity, so batches are not those of the log.
    """

    name = "fae"
    keeps_batches = False

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._hot: Int32s = np.zeros(0, dtype=np.int32)
        self._first_hot = 0
        self._last: StepRows | None = None

    def prepare(self, stream: RowStream) -> RowStream:
        random = np.random.default_rng(SEED)
        uses = np.zeros(stream.num_rows, dtype=np.int64)
        for batch in stream.batches:
            is_sampled = random.random(batch.num_samples) < SAMPLE_SHARE
            sampled = batch.values[np.repeat(is_sampled, np.diff(batch.starts))]
            uses += np.bincount(sampled, minlength=stream.num_rows)
        seen = np.flatnonzero(uses).astype(np.int32)
        capacity = self.setting.capacity
        self._hot = highest(seen, uses[seen], stream.num_rows // 10 if capacity is None else capacity)
        is_cold = np.ones(stream.num_rows, dtype=np.bool_)
        is_cold[self._hot] = False
        has_cold = np.concatenate([sums_of_samples(batch, is_cold) > 0 for batch in stream.batches])
        self._first_hot = -(-int(np.count_nonzero(has_cold)) // stream.num_samples)
        return reorder_samples(stream, np.argsort(~has_cold, kind="stable"))

    def plan(self, known: Knowledge) -> Plan:
        now = known.now
        if now.number < self._first_hot:
            return super().plan(known)
        actions = list(super().finish())
        if now.number == self._first_hot:
            actions += [Move(Kind.FETCH, SHARD, trainer, self._hot) for trainer in self.setting.trainers]
        if self._last is not None:
            actions.append(Move(Kind.ALL_REDUCE, ALL, ALL, self._last.rows))
        self._last = now
        return Plan(actions)

    def finish(self) -> Sequence[Action]:
        actions = list(super().finish())
        if self._last is not None:
            actions.append(Move(Kind.ALL_REDUCE, ALL, ALL, self._last.rows))
            for trainer, part in enumerate(np.array_split(self._hot, self.setting.num_trainers)):
                actions += [Move(Kind.WRITE_BACK, trainer, SHARD, part), Drop(trainer, self._hot)]
        return actions
