"""How a budget is divided between the partitions of a table group, as a decision on what each of them reports.

Partitions are equal at first. At the end of a window, rows go where the least important of them would be worth most:
with one threshold for all, each partition should have a row for every id above it. The threshold comes from histograms
of importance, which is comparable between partitions, since it counts occurrences of mean gradient norm.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.tables.lifecycle.row_retention import BUCKETS_PER_OCTAVE, ZERO_BUCKET, Demand

__all__ = ["LEAST_CHANGE", "MOST_CHANGE", "Rebalancing", "rebalance"]

MOST_CHANGE = 0.25
"""Largest part of its rows that a partition gains or loses at once, so that a strange window undoes little."""
LEAST_CHANGE = 0.02
"""Smallest part that is worth the copies. Of 10,000 ids with a random partition, the standard deviation is 1 %."""


Float64s = npt.NDArray[np.float64]
Int64s = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Rebalancing:
    """A decision on the budgets of all partitions.

    Attributes:
        budgets: Bytes of each partition; their sum stays.
        reason: Why they change, or do not.
    """

    budgets: tuple[int, ...]
    reason: str


def rebalance(budgets: Sequence[int], fixed_bytes: Sequence[int], demands: Sequence[Demand]) -> Rebalancing:
    """Decide on the budgets of P partitions.

    Args:
        budgets: Bytes of each now.
        fixed_bytes: Part of them that is not for rows.
        demands: What each could use.
    """
    stay = tuple(budgets)
    if len(demands) == 1:
        return Rebalancing(stay, "nothing to move: there is one partition")
    if any(demand.histogram is None for demand in demands):
        return Rebalancing(stay, "nothing to move: the policy has partitions of fixed size")
    rows = np.array([demand.num_rows for demand in demands], dtype=np.float64)
    counts = np.array([demand.histogram for demand in demands], dtype=np.int64)
    wanted, bucket = _wanted_rows(rows, counts)
    wanted = np.clip(wanted, (1 - MOST_CHANGE) * rows, (1 + MOST_CHANGE) * rows)
    change = float(np.abs(wanted / rows - 1).max())
    if change < LEAST_CHANGE:
        return Rebalancing(stay, f"nothing to move: all partitions have the rows that they need within {change:.1%}")
    fixed = np.array(fixed_bytes, dtype=np.int64)
    room = sum(budgets) - int(fixed.sum())
    shares = np.maximum(wanted, 1)
    ends = np.floor(room * np.cumsum(shares) / shares.sum()).astype(np.int64)
    ends[-1] = room
    least = np.array([(have - need) // max(1, int(n)) for have, need, n in zip(budgets, fixed, rows, strict=True)])
    moved = fixed + np.diff(ends, prepend=0)
    if (moved < fixed + 4 * least).any():
        return Rebalancing(stay, "nothing to move: a partition would be left with hardly any rows")
    most = int(np.argmax(wanted / rows))
    threshold = 2.0 ** ((bucket - ZERO_BUCKET) / BUCKETS_PER_OCTAVE)
    reason = (
        f"partition {most} has {int(counts[most, bucket:].sum()):,} ids of an importance above {threshold:.3g} for "
        f"{int(rows[most]):,} rows; it gets {moved[most] / budgets[most] - 1:+.1%} bytes"
    )
    return Rebalancing(tuple(moved.tolist()), reason)


def _wanted_rows(rows: Float64s, counts: Int64s) -> tuple[Float64s, int]:
    """The rows that each partition should have, which are all rows, and the bucket of the threshold."""
    total = rows.sum()
    above = np.cumsum(counts[:, ::-1], axis=1)[:, ::-1]  # ids of at least each bucket
    fits = np.flatnonzero(above.sum(axis=0) <= total)
    bucket = int(fits[0]) if len(fits) else counts.shape[1] - 1
    wanted = np.minimum(above[:, bucket], total).astype(np.float64)
    left = max(0.0, total - wanted.sum())
    below = counts[:, bucket - 1] if bucket else np.zeros(len(rows))
    weights = below if below.sum() else rows
    return wanted + left * weights / weights.sum(), bucket
