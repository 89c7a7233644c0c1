"""`intra`: feature operators of later batches fill the processor's idle time while rows are on their way.

RECS (SIGMOD-Companion 2025) calls this intra-pipeline scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation
from headrace.scheduling.policies.rules import IN_GROUPS, WHOLE, as_declared, own_features, run_ahead
from headrace.scheduling.probing import Mode

__all__ = ["Intra"]


@dataclass(frozen=True)
class Intra:
    """The step's own features first, then as much of later batches as fits the predicted gap, on all idle cores."""

    name: str = "intra"
    num_ahead: int = 3
    modes: tuple[Mode, ...] = (IN_GROUPS, WHOLE)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return as_declared(costs)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        return own_features(now) or run_ahead(now, self.num_ahead)
