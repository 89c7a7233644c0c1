"""In which order the feature groups of a step are computed, so that their pulls end soonest."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["critical_path_order", "johnson_order", "makespan"]


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
