"""`serial`: features inside the step, then all pulls, dense work, push: the order of a TensorFlow training loop."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from headrace.scheduling.cost import Costs
from headrace.scheduling.policies.base import Choice, Situation, nothing
from headrace.scheduling.policies.rules import IN_GROUPS, WHOLE, as_declared, own_features
from headrace.scheduling.probing import Mode

__all__ = ["Serial"]


@dataclass(frozen=True)
class Serial:
    """Nothing overlaps but reading."""

    name: str = "serial"
    num_ahead: int = 1
    modes: tuple[Mode, ...] = (IN_GROUPS, WHOLE)

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        """See `Policy`."""
        return free_cores

    def order(self, costs: Costs, num_cores: int) -> Sequence[int]:
        """See `Policy`."""
        return as_declared(costs)

    def choose(self, now: Situation) -> Choice:
        """See `Policy`."""
        if not now.is_applied(now.current - 1):
            return nothing("the step before is not over")
        return own_features(now) or nothing("the step's features are done")
