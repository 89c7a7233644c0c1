"""How short a step can be: bounds from the seconds of its parts, and the orders of feature groups that reach them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StepParts", "critical_path_order", "johnson_order", "makespan"]


@dataclass(frozen=True)
class StepParts:
    """Seconds of the parts of one step, each alone on the machine.

    Attributes:
        features_s: F, feature work on all cores.
        pull_s: P, rows from the store.
        dense_s: M, forward, backward and the dense optimizer.
        push_s: U, gradients to the store.
        deferred_ratio: Share of a batch's keys that the batch before it updates.
    """

    features_s: float
    pull_s: float
    dense_s: float
    push_s: float
    deferred_ratio: float = 0.0

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
        """Least with early pulls that stay exact: `early_s`, or the chain M + U + deferred_ratio * P if that is longer.

        Rows that a batch shares with the one before wait for its push.
        """
        return max(self.early_s, self.dense_s + self.push_s + self.deferred_ratio * self.pull_s)

    @property
    def communication_ratio(self) -> float:
        """Share of the serial step that is communication."""
        return (self.pull_s + self.push_s) / self.serial_s if self.serial_s else 0.0


def johnson_order(cpu_s: Sequence[float], network_s: Sequence[float]) -> list[int]:
    """The order of least makespan for jobs that each need one processor first and one link second.

    Jobs that compute for less time than they communicate come first, shortest computation first; the others after
    them, longest communication first (S. M. Johnson, "Optimal two- and three-stage production schedules with setup
    times included", Naval Research Logistics Quarterly, 1954). Equal jobs keep their order.

    Args:
        cpu_s: Seconds of computation of each job.
        network_s: Seconds of communication of each job.
    """
    jobs = range(len(cpu_s))
    first = sorted((job for job in jobs if cpu_s[job] < network_s[job]), key=lambda job: cpu_s[job])
    last = sorted((job for job in jobs if cpu_s[job] >= network_s[job]), key=lambda job: -network_s[job])
    return first + last


def critical_path_order(cpu_s: Sequence[float], network_s: Sequence[float]) -> list[int]:
    """Longest remaining path first: computation and then communication of the job itself.

    The list schedule for several processors, where no rule is known to be optimal: Johnson's breaks down because short
    computations no longer hold each other up.
    """
    return sorted(range(len(cpu_s)), key=lambda job: -(cpu_s[job] + network_s[job]))


def makespan(order: Sequence[int], cpu_s: Sequence[float], network_s: Sequence[float], num_cores: int = 1) -> float:
    """Seconds until the last job has communicated, if jobs compute in this order and the link serves first come first.

    Args:
        order: Jobs.
        cpu_s: Seconds of computation of each job.
        network_s: Seconds of communication of each job.
        num_cores: Jobs that compute at once.
    """
    cores = [0.0] * num_cores
    computed = []
    for job in order:
        core = min(range(num_cores), key=lambda number: cores[number])
        cores[core] += cpu_s[job]
        computed.append((cores[core], job))
    link = 0.0
    for at, job in sorted(computed, key=lambda pair: pair[0]):
        link = max(link, at) + network_s[job]
    return max(link, *cores) if computed else 0.0
