"""How short a step can be, from what its parts take: the yardstick beside every measurement."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["StepParts"]


@dataclass(frozen=True)
class StepParts:
    """Seconds of the parts of one step, each alone on the machine.

    Attributes:
        features_s: F, feature work on all cores.
        pull_s: P, rows from the store.
        dense_s: M, forward, backward and the dense optimizer.
        push_s: U, gradients to the store.
        held_ratio: Share of a batch's keys that the batch before it updates.
    """

    features_s: float
    pull_s: float
    dense_s: float
    push_s: float
    held_ratio: float = 0.0

    @property
    def serial_s(self) -> float:
        """One part after the other: F + P + M + U."""
        return self.features_s + self.pull_s + self.dense_s + self.push_s

    @property
    def strict_s(self) -> float:
        """Least in strict synchronous order, M + max(F, P + U).

        Push, pull and dense work of consecutive steps are one chain; only feature work can hide, and only under
        communication if dense work uses all cores.
        """
        return self.dense_s + max(self.features_s, self.pull_s + self.push_s)

    @property
    def early_s(self) -> float:
        """Least if every row could be pulled early, max(F + M, P + U): processor and link are each never idle."""
        return max(self.features_s + self.dense_s, self.pull_s + self.push_s)

    @property
    def early_exact_s(self) -> float:
        """Least with early pulls that stay exact: `early_s`, or the chain M + U + held_ratio * P if that is longer.

        Rows that a batch shares with the one before wait for its push.
        """
        return max(self.early_s, self.dense_s + self.push_s + self.held_ratio * self.pull_s)

    @property
    def communication_ratio(self) -> float:
        """Share of the serial step that is communication."""
        return (self.pull_s + self.push_s) / self.serial_s if self.serial_s else 0.0
