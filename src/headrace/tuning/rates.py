"""Closed-form rates for given workers and CPUs, used by all policies that solve instead of search.

With V_i services of stage i per delivered element, c_i CPU seconds and b_i blocking seconds per service, k workers of
the stage deliver k / (V_i (c_i (1 + a_i (k - 1)) + b_i)) elements per second: concave in k, linear if a_i is 0. CPUs
are shared, so all stages together deliver at most CPUs / sum of V_i c_i. The rate of the pipeline is the minimum of
these (for a_i = 0, the closed form of Plumber's linear program).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["StageRate", "fluid_rate", "integer_split", "pipeline_rate"]

_ITERATIONS = 60  # bisection steps, to the full precision of a float


@dataclass(frozen=True)
class StageRate:
    """Needs of one stage per element delivered to the consumer.

    Attributes:
        name: Name of the stage.
        cpu_s: CPU seconds with one worker (V_i c_i).
        blocking_s: Seconds without a CPU (V_i b_i).
        contention: Contention a_i.
        max_workers: Maximum workers; 1 for a sequential stage.
    """

    name: str
    cpu_s: float
    blocking_s: float = 0.0
    contention: float = 0.0
    max_workers: int = 1 << 30

    def cpu_with(self, workers: float) -> float:
        """CPU seconds per element with this many busy workers."""
        return self.cpu_s * (1.0 + self.contention * max(workers - 1.0, 0.0))

    def rate(self, workers: float) -> float:
        """Elements per second of this many workers, if each has a CPU when it needs one."""
        seconds = self.cpu_with(workers) + self.blocking_s
        return workers / seconds if seconds > 0 else math.inf

    def workers_for(self, rate: float) -> float:
        """Workers (a real number) that deliver a rate; infinite if no number does."""
        alone = rate * (self.cpu_s + self.blocking_s)
        if alone <= 1.0:  # one worker is enough, without contention
            return alone
        growth = 1.0 - rate * self.cpu_s * self.contention
        needed = rate * (self.cpu_s * (1.0 - self.contention) + self.blocking_s)
        return needed / growth if growth > 0 else math.inf


def pipeline_rate(stages: Sequence[StageRate], workers: Sequence[float], cpus: float) -> float:
    """Elements per second of a pipeline with given workers on shared CPUs.

    Stages other than the slowest run only at its rate, and use CPUs accordingly.
    """
    low, high = 0.0, min(stage.rate(k) for stage, k in zip(stages, workers, strict=True))
    if _cpus_used(stages, high) <= cpus:
        return high
    for _ in range(_ITERATIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if _cpus_used(stages, middle) <= cpus else (low, middle)
    return low


def fluid_rate(stages: Sequence[StageRate], cpus: float) -> float:
    """The best rate of any allocation on shared CPUs, with fractional workers.

    For linear stages: min(cpus / sum of CPU seconds, slowest sequential stage).
    """
    return pipeline_rate(stages, [stage.max_workers for stage in stages], cpus)


def integer_split(stages: Sequence[StageRate], total: int) -> tuple[list[int], float]:
    """Split at most `total` whole workers for the highest rate, at least one per stage, if each has its own CPU.

    The rate is found by bisection on the workers it needs; remaining workers go, one at a time, to the slowest stage.

    Returns:
        Workers of each stage, and the rate of the slowest.
    """

    def needed(rate: float) -> list[int] | None:
        counts = []
        for stage in stages:
            # Slightly less, so that a rate that needs exactly k workers is not rounded up to k + 1.
            exact = stage.workers_for(rate) * (1.0 - 1e-12)
            if exact > stage.max_workers:
                return None
            counts.append(max(1, math.ceil(exact)))
        return counts if sum(counts) <= total else None

    workers = [1] * len(stages)
    low, high = 0.0, max(stage.rate(min(stage.max_workers, max(total, 1))) for stage in stages)
    high = min(high, 1e12)
    for _ in range(_ITERATIONS):
        middle = (low + high) / 2
        found = needed(middle)
        if found is None:
            high = middle
        else:
            low, workers = middle, found
    for _ in range(max(total - sum(workers), 0)):
        rates = [stage.rate(k) for stage, k in zip(stages, workers, strict=True)]
        slowest = min(range(len(stages)), key=rates.__getitem__)
        if (
            workers[slowest] >= stages[slowest].max_workers
            or stages[slowest].rate(workers[slowest] + 1) <= rates[slowest]
        ):
            break
        workers[slowest] += 1
    return workers, min(stage.rate(k) for stage, k in zip(stages, workers, strict=True))


def _cpus_used(stages: Sequence[StageRate], rate: float) -> float:
    """Busy CPUs at a rate: by Little's law, busy workers times the CPU share of their time."""
    used = 0.0
    for stage in stages:
        busy = min(stage.workers_for(rate), stage.max_workers)
        used += rate * stage.cpu_with(busy)
    return used
