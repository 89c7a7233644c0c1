"""What operators cost: moving estimates from what they took lately."""

from __future__ import annotations

from headrace.scheduling.graph import Kind, Operator

__all__ = ["Costs", "MovingEstimate"]

WEIGHT = 0.2
"""Of the newest sample: an estimate follows a lasting change within ten steps; one odd step moves it by a fifth."""

OUTLIER = 4.0
"""A sample counts as at most so many times the estimate: one page fault or compilation must not rule the next steps."""


class MovingEstimate:
    """An exponentially weighted mean that forgives outliers.

    Attributes:
        value: The estimate; 0 before the first sample.
        is_known: Whether there was a sample.
    """

    __slots__ = ("is_known", "value")

    def __init__(self) -> None:
        self.value = 0.0
        self.is_known = False

    def add(self, sample: float) -> None:
        """Learn from one more."""
        if not self.is_known:
            self.value, self.is_known = sample, True
            return
        self.value += WEIGHT * (min(sample, OUTLIER * self.value + 1e-6) - self.value)


class Costs:
    """Estimated seconds and bytes of operators by kind and group, and the length of the gap between dense operators.

    The *gap* of a batch is the time from the end of one dense operator to the moment the next could begin: what pushes
    and pulls leave of the processor for other work.

    Attributes:
        num_groups: Feature groups.
        gap_s: The gap.
    """

    def __init__(self, num_groups: int) -> None:
        self.num_groups = num_groups
        self.gap_s = MovingEstimate()
        self._seconds: dict[tuple[Kind, int], MovingEstimate] = {}
        self._bytes: dict[tuple[Kind, int], MovingEstimate] = {}

    def learn(self, operator: Operator, seconds: float, num_bytes: int) -> None:
        """Remember what an operator took."""
        key = operator.kind, operator.group
        self._seconds.setdefault(key, MovingEstimate()).add(seconds)
        self._bytes.setdefault(key, MovingEstimate()).add(float(num_bytes))

    def seconds(self, kind: Kind, group: int = -1) -> float:
        """Seconds of an operator; 0 before one has run."""
        estimate = self._seconds.get((kind, group))
        return 0.0 if estimate is None else estimate.value

    def num_bytes(self, kind: Kind, group: int = -1) -> int:
        """Bytes an operator leaves in memory until its batch is trained; 0 before one has run."""
        estimate = self._bytes.get((kind, group))
        return 0 if estimate is None else int(estimate.value)
