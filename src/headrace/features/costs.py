"""Measures the CPU cost of each feature of a plan."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import pyarrow as pa

from headrace.features.plan import FeaturePlan

__all__ = ["FeatureCost", "measure_costs"]


@dataclass(frozen=True)
class FeatureCost:
    """CPU cost of one feature.

    Attributes:
        name: Name of the feature.
        section: "dense" or "sparse".
        operators: Names of its operators, in order.
        ns_per_row: CPU nanoseconds per row.
        share_ratio: Fraction of the cost of all features.
    """

    name: str
    section: str
    operators: tuple[str, ...]
    ns_per_row: float
    share_ratio: float


def measure_costs(
    plan: FeaturePlan, batch: pa.RecordBatch, *, rounds: int = 5, clock: Callable[[], float] = time.thread_time
) -> list[FeatureCost]:
    """Time each feature of a plan separately, minus the time of an empty plan; most expensive first.

    Args:
        plan: The plan to measure.
        batch: Typical rows of the job, preferably some thousands.
        rounds: Number of runs per feature, of which the fastest counts.
        clock: Returns seconds; by default the CPU time of this thread, which other threads do not affect.

    Raises:
        ValueError: The batch has no rows.
    """
    if batch.num_rows == 0:
        raise ValueError("batch: given no rows, expected at least one")

    def fastest(part: FeaturePlan) -> float:
        part.apply(batch)  # binds the columns, maps memory
        times = []
        for _ in range(rounds):
            start = clock()
            part.apply(batch)
            times.append(clock() - start)
        return min(times)

    empty = fastest(FeaturePlan((), plan.schema, with_labels=False))
    seconds = [max(0.0, fastest(FeaturePlan((s,), plan.schema, with_labels=False)) - empty) for s in plan.specs]
    total = sum(seconds) or 1.0
    costs = [
        FeatureCost(
            spec.name,
            spec.section,
            tuple(operator.name for operator in spec.operators),
            1e9 * spent / batch.num_rows,
            spent / total,
        )
        for spec, spent in zip(plan.specs, seconds, strict=True)
    ]
    return sorted(costs, key=lambda cost: -cost.ns_per_row)
