"""Estimates of operators' seconds and bytes, and the byte budget."""

from __future__ import annotations

from fractions import Fraction

from headrace.pipeline.engine.ledger import Ledger, RecentMax
from headrace.scheduling.graph import ALL_GROUPS, WHOLE, Kind, Operator, Part

__all__ = ["ByteBudget", "Costs", "MovingEstimate"]

WEIGHT = 0.2
"""Weight of the newest sample: estimates follow a lasting change within ten steps, while one odd step moves them by a
fifth."""

OUTLIER = 4.0
"""A sample counts at most as this multiple of the estimate, so that one page fault or compilation does not dominate."""

MARGIN = 1.1
"""Bytes reserved for an operator, relative to the recent maximum of its kind."""

Place = tuple[Kind, int, Part]
"""Operators of the same kind, group and part cost about the same in every batch."""


class MovingEstimate:
    """An exponentially weighted mean that limits outliers.

    Attributes:
        value: The estimate; 0 before the first sample.
        is_known: Whether there was a sample.
    """

    __slots__ = ("is_known", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.is_known = False

    def add(self, sample: float) -> None:
        """Add a sample."""
        if not self.is_known:
            self.value, self.is_known = sample, True
            return
        self.value += WEIGHT * (min(sample, OUTLIER * self.value + 1e-6) - self.value)


class Costs:
    """Estimates of operators' seconds and bytes, and of the gap between dense operators.

    The *gap* of a batch is the time from the end of one batch's dense work until the next could start: the CPU time
    that pushes and pulls leave for other work.

    Attributes:
        num_groups: Number of feature groups of these steps.
        gap_s: Length of the gap.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self.gap_s = MovingEstimate()
        self._seconds: dict[Place, MovingEstimate] = {}
        self._bytes: dict[Place, MovingEstimate] = {}
        self._most_bytes: dict[Place, RecentMax] = {}

    def learn(self, operator: Operator, seconds: float, num_bytes: int) -> None:
        """Record the cost of an operator."""
        place = operator.kind, operator.group, operator.part
        self._seconds.setdefault(place, MovingEstimate()).add(seconds)
        self._bytes.setdefault(place, MovingEstimate()).add(float(num_bytes))
        self._most_bytes.setdefault(place, RecentMax()).add(num_bytes)

    def seconds(self, kind: Kind, group: int = ALL_GROUPS, part: Part = WHOLE) -> float:
        """Estimated seconds of an operator; 0 before one has run."""
        estimate = self._seconds.get((kind, group, part))
        return 0.0 if estimate is None else estimate.value

    def num_bytes(self, kind: Kind, group: int = ALL_GROUPS, part: Part = WHOLE) -> int:
        """Estimated bytes that an operator keeps in memory until its batch is trained; 0 before one has run."""
        estimate = self._bytes.get((kind, group, part))
        return 0 if estimate is None else int(estimate.value)

    def most_bytes(self, operator: Operator) -> int | None:
        """Bytes to reserve for an operator; None if no similar operator has run.

        Where steps were split in another way until now: as much as all operators of its kind that are known, once these
        have every group and row.
        """
        alike = self._most_bytes.get((operator.kind, operator.group, operator.part))
        if alike is not None:
            return int(alike.value * MARGIN)
        known = [place for place in self._most_bytes if place[0] is operator.kind]
        covered = sum(Fraction(self.num_groups if group == ALL_GROUPS else 1, part.of) for _, group, part in known)
        if covered < self.num_groups:
            return None
        return int(sum(self._most_bytes[place].value for place in known) * MARGIN)


class ByteBudget:
    """Byte budget of batches between reading and training: reserved before an operator runs, released afterwards.

    Attributes:
        ledger: Bytes in use and reserved.
    """

    def __init__(self, budget_bytes: int) -> None:
        """Start empty, with a maximum of `budget_bytes`."""
        self.ledger = Ledger(budget_bytes)
        self._reserved: dict[Operator, int] = {}

    def fits(self, operator: Operator, costs: Costs) -> bool:
        """Whether an operator's bytes fit. Operators that have never run fit only for the next batch to train."""
        expected = costs.most_bytes(operator)
        return expected is not None and self.ledger.fits(expected)

    def reserve(self, operator: Operator, costs: Costs) -> None:
        """Reserve bytes for an operator that starts."""
        self._reserved[operator] = costs.most_bytes(operator) or 0
        self.ledger.add(self._reserved[operator])

    def give_back(self, operator: Operator) -> None:
        """Free the bytes reserved for an operator, if any."""
        self.ledger.add(-self._reserved.pop(operator, 0))
