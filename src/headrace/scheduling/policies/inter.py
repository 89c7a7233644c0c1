"""`inter`: within a step, critical feature groups first, so that their pulls run while the others are computed.

RECS (SIGMOD-Companion 2025) calls this inter-pipeline scheduling.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation, nothing
from headrace.scheduling.policies.rules import BY_GROUP, critical_first, own_features
from headrace.scheduling.probing import Mode

__all__ = ["Inter"]


@dataclass(frozen=True)
class Inter:
    """Features inside the step, ordered; each group's pull is sent as soon as its own features are there."""

    name: str = "inter"
    num_ahead: int = 1
    modes: tuple[Mode, ...] = (BY_GROUP,)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return critical_first(costs, num_cores)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        if not now.is_applied(now.current - 1):
            return nothing("the step before is not over")
        return own_features(now) or nothing("the step's features are done")
