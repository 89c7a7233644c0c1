"""`FEC`: popular rows are all-reduced as if dense, and rows that the current step does not update are read early."""

from __future__ import annotations

import numpy as np

from headrace.placement.replay.movement import Kind
from headrace.placement.replay.policies.hot_tier import HotTier
from headrace.placement.replay.policy import StepRows
from headrace.placement.replay.stream import Int32s

__all__ = ["FEC"]


class FEC(HotTier):
    """FEC (SIGMOD'23; its abstract, because there is no public code).

    - Embedding tiering: popular rows are synchronized with an all-reduce of the whole tier, as if dense; the others
      with sparse exchange.
    - Pre-fetching: rows that the next step needs and the current one does not update are read early.

    The abstract does not say how the tier is chosen. Here a row belongs to it if the readers that it had per step in
    the past make the sparse exchange more expensive than the all-reduce.
    """

    name = "fec"
    reads_ahead = True

    def choose(self) -> Int32s:
        num_trainers, prices = self.setting.num_trainers, self.setting.row_bytes
        sparse = self._uses / self._num_steps() * (prices.of(Kind.READ) + prices.of(Kind.GRADIENT))
        num_worth = np.count_nonzero(sparse > 2 * (num_trainers - 1) * prices.of(Kind.ALL_REDUCE))
        return self._most_used(min(int(num_worth), self._capacity() // 2))

    def reduced(self, step: StepRows) -> Int32s:
        return np.flatnonzero(self._is_hot).astype(np.int32)

    def _num_steps(self) -> int:
        return 1 if self._previous is None else self._previous.number + 1
