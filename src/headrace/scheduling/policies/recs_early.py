"""`recs_early`: `recs`, and rows that no push on its way touches are pulled while the step before still computes.

The ids of later batches are known, so which rows those are is known too: FEC (SIGMOD 2023) pre-fetches them, Bagpipe
(SOSP 2023) delays the rest. Every row is read after its last update, so parameters are those of `serial`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation
from headrace.scheduling.policies.rules import (
    AHEAD,
    AHEAD_BY_GROUP,
    EARLY,
    WHOLE,
    critical_first,
    features_of_early_pull,
    own_features,
    run_ahead,
)
from headrace.scheduling.probing import Mode

__all__ = ["RecsEarly"]


@dataclass(frozen=True)
class RecsEarly:
    """Communication of a batch overlaps feature work and dense work of the one before."""

    name: str = "recs_early"
    num_ahead: int = 3
    modes: tuple[Mode, ...] = (EARLY, AHEAD_BY_GROUP, AHEAD, WHOLE)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return critical_first(costs, num_cores)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        return own_features(now) or features_of_early_pull(now) or run_ahead(now, self.num_ahead)
