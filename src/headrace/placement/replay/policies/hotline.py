"""`Hotline`: a step starts with the samples whose rows are all popular, while the other rows are gathered."""

from __future__ import annotations

from headrace.placement.replay.policies.hot_tier import HotTier
from headrace.placement.replay.policy import StepRows
from headrace.placement.replay.reordering import sums_of_samples
from headrace.placement.replay.stream import Int32s

__all__ = ["Hotline"]


class Hotline(HotTier):
    """Hotline (ISCA'24; arXiv 2204.05436, without its accelerator, for which there is no public code).

    - Popular rows are replicated at the trainers. Popularity is learned from the ids seen so far, and learned anew
      periodically. The published budget is a number of bytes; here half the cache, or a tenth of all rows without one.
    - A batch is split into samples whose rows are all popular, which are computed first, and the others, whose
      unpopular rows are read meanwhile. Their gradients are summed in one update, so results do not change.
    - Unpopular rows are written back asynchronously.

    Reads count as hidden if a trainer has popular samples. Whether these take long enough depends on their number.
    """

    name = "hotline"

    def choose(self) -> Int32s:
        budget = self.setting.num_rows // 10 if self.setting.capacity is None else self.setting.capacity // 2
        return self._most_used(budget)

    def is_hidden(self, step: StepRows, trainer: int) -> bool:
        return bool(self.num_popular(step, trainer))

    def num_popular(self, step: StepRows, trainer: int) -> int:
        """Number of a trainer's samples whose rows are all in the tier."""
        num_cold = sums_of_samples(step.batch, ~self._is_hot)
        return int(((num_cold == 0) & (step.assignment == trainer)).sum())
