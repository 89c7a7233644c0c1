"""Lower bounds on the time of a step, and the orders of feature groups that achieve them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StepParts", "critical_path_order", "johnson_order", "makespan"]


@dataclass(frozen=True)
class StepParts:
    """Seconds of the phases of one step, each measured alone on the machine.

    Attributes:
        features_s: F, feature computation on all cores.
        pull_s: P, pulling rows from the store.
        dense_s: M, forward, backward and the dense optimizer.
        push_s: U, pushing gradients to the store.
        deferred_ratio: Share of a batch's keys that the previous batch updates.
    """

    features_s: float
    pull_s: float
    dense_s: float
    push_s: float
    deferred_ratio: float = 0.0

    @property
    def serial_s(self) -> float:
        """Time with no overlap: F + P + M + U."""
        return self.features_s + self.pull_s + self.dense_s + self.push_s

    @property
    def strict_s(self) -> float:
        """Minimum in strict synchronous order: M + max(F, P + U).

        Push, pull and dense work of consecutive steps form one chain. Only feature work can be hidden, and only under
        communication if dense work uses all cores.
        """
        return self.dense_s + max(self.features_s, self.pull_s + self.push_s)

    @property
    def early_s(self) -> float:
        """Minimum if every row could be pulled early: max(F + M, P + U), limited by the CPU or the network."""
        return max(self.features_s + self.dense_s, self.pull_s + self.push_s)

    @property
    def early_exact_s(self) -> float:
        """Minimum with exact early pulls: `early_s`, or the chain M + U + deferred_ratio * P if that is longer.

        Rows that a batch shares with the previous one wait for its push.
        """
        return max(self.early_s, self.dense_s + self.push_s + self.deferred_ratio * self.pull_s)

    @property
    def communication_ratio(self) -> float:
        """Share of communication in the serial step."""
        return (self.pull_s + self.push_s) / self.serial_s if self.serial_s else 0.0


def johnson_order(cpu_s: Sequence[float], network_s: Sequence[float]) -> list[int]:
    """The order with the minimum makespan for jobs that each first use a processor and then a link.

    Jobs with less computation than communication come first, shortest computation first; then the others, longest
    communication first (S. M. Johnson, "Optimal two- and three-stage production schedules with setup times included",
    Naval Research Logistics Quarterly, 1954). Equal jobs keep their order.

    Args:
        cpu_s: Seconds of computation of each job.
        network_s: Seconds of communication of each job.
    """
    jobs = range(len(cpu_s))
    first = sorted((job for job in jobs if cpu_s[job] < network_s[job]), key=lambda job: cpu_s[job])
    last = sorted((job for job in jobs if cpu_s[job] >= network_s[job]), key=lambda job: -network_s[job])
    return first + last


def critical_path_order(cpu_s: Sequence[float], network_s: Sequence[float]) -> list[int]:
    """Longest path first: the sum of a job's computation and communication.

    A list schedule for several processors, for which no optimal rule is known. Johnson's rule does not apply, because
    short computations no longer delay each other.
    """
    return sorted(range(len(cpu_s)), key=lambda job: -(cpu_s[job] + network_s[job]))


def makespan(order: Sequence[int], cpu_s: Sequence[float], network_s: Sequence[float], num_cores: int = 1) -> float:
    """Seconds until the last job has communicated, if jobs compute in this order and the link serves in order of
    arrival.

    Args:
        order: Indices of the jobs.
        cpu_s: Seconds of computation of each job.
        network_s: Seconds of communication of each job.
        num_cores: Number of jobs that compute at once.
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
