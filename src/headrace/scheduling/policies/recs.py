"""`recs`: intra- and inter-pipeline scheduling together (RECS, SIGMOD-Companion 2025), in strict synchronous order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation
from headrace.scheduling.policies.rules import AHEAD, AHEAD_BY_GROUP, WHOLE, critical_first, own_features, run_ahead
from headrace.scheduling.probing import Mode

__all__ = ["Recs"]


@dataclass(frozen=True)
class Recs:
    """Critical groups first, each pull as soon as it can be sent, later batches in the gaps."""

    name: str = "recs"
    num_ahead: int = 3
    modes: tuple[Mode, ...] = (AHEAD_BY_GROUP, AHEAD, WHOLE)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return critical_first(costs, num_cores)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        return own_features(now) or run_ahead(now, self.num_ahead)
