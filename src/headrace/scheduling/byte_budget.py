"""Bytes of batches between reading and training: what is there, and what operators that run will probably bring."""

from __future__ import annotations

from headrace.pipeline.engine.ledger import Ledger, RecentMax
from headrace.scheduling.graph import JOINT, Kind, Operator

__all__ = ["ByteBudget"]

MARGIN = 1.1
"""Reserved for an operator over the most that one like it took lately."""


class ByteBudget:
    """Reserves bytes for operators, and learns from what they really took.

    Attributes:
        ledger: Bytes in use and reserved.
    """

    def __init__(self, budget_bytes: int, num_groups: int) -> None:
        """Args: budget_bytes: What may be in use. num_groups: Parts into which features can be split."""
        self.ledger = Ledger(budget_bytes)
        self._num_groups = num_groups
        self._recent: dict[tuple[Kind, int], RecentMax] = {}
        self._reserved: dict[Operator, int] = {}

    def fits(self, operator: Operator) -> bool:
        """Whether an operator's bytes fit; what has never run is tried on the next batch to train first."""
        expected = self._expected(operator)
        return expected is not None and self.ledger.fits(expected)

    def reserve(self, operator: Operator) -> None:
        """An operator begins."""
        self._reserved[operator] = self._expected(operator) or 0
        self.ledger.add(self._reserved[operator])

    def give_back(self, operator: Operator) -> None:
        """What was reserved for an operator, if anything, is free again."""
        self.ledger.add(-self._reserved.pop(operator, 0))

    def settle(self, operator: Operator, num_bytes: int) -> None:
        """An operator has ended and brought so much, which the caller charges for as long as it stays."""
        self.give_back(operator)
        self._recent.setdefault((operator.kind, operator.group), RecentMax()).add(num_bytes)

    def _expected(self, operator: Operator) -> int | None:
        """Bytes to reserve; None where nothing like it has run.

        Groups together have the bytes of all features at once, so where features were split in another way until now,
        that tells.
        """
        kind, group = operator.kind, operator.group
        alike = [(kind, group)]
        if alike[0] not in self._recent and kind in (Kind.FEATURES, Kind.PULL):
            alike = [(kind, other) for other in range(self._num_groups)] if group == JOINT else [(kind, JOINT)]
        if any(place not in self._recent for place in alike):
            return None
        return int(sum(self._recent[place].value for place in alike) * MARGIN)
