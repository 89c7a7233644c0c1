"""What a budget of embedding tables would hold of a log: how many ids have a row, and how often those occur."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from headrace.logs.inspection.id_counter import IdCounter

__all__ = ["BudgetSize", "budget_sizes"]

TIMES_SMALLER = (2, 5, 20, 100, 1000)
ROW_COST = 1.33
"""Bytes of a row under a budget, with index, importance and a tracked id without a row, over those of a row of a full
table: 112 over 84 at dimension 16 with row-wise Adagrad."""


@dataclass(frozen=True)
class BudgetSize:
    """A size of the tables.

    Attributes:
        times_smaller: How many times smaller than full tables they are.
        num_rows: Number of ids that have a row, about.
        share: Share of all occurrences of ids that read a row of their own, if the most frequent ids have rows.
        shares: The same of each column.
    """

    times_smaller: int
    num_rows: int
    share: float
    shares: tuple[float, ...]


def budget_sizes(counters: Sequence[IdCounter], times_smaller: Sequence[int] = TIMES_SMALLER) -> list[BudgetSize]:
    """Sizes of tables of one dimension, a table for each column, and what they hold.

    Ids of all columns compete by frequency. This is what a log can tell before training; a policy that also knows
    gradients does better.

    Args:
        counters: The ids of each column.
        times_smaller: The sizes.
    """
    if not counters:
        return []
    found = [counter.most_frequent() for counter in counters]
    counts = np.concatenate([each for each, _ in found])
    weights = np.concatenate([each for _, each in found])
    columns = np.repeat(np.arange(len(found)), [len(each) for each, _ in found])
    order = np.argsort(-counts, kind="stable")
    counts, weights, columns = counts[order], weights[order], columns[order]
    before = np.cumsum(weights) - weights
    num_ids = sum(counter.num_distinct() for counter in counters)
    totals = np.array([max(1, counter.num_values) for counter in counters])
    sizes = []
    for times in times_smaller:
        num_rows = int(num_ids / times / ROW_COST)
        occurrences = np.clip(num_rows - before, 0, weights) * counts
        by_column = np.bincount(columns, weights=occurrences, minlength=len(found))
        shares = tuple(np.minimum(1.0, by_column / totals).tolist())
        sizes.append(BudgetSize(times, num_rows, min(1.0, float(by_column.sum() / totals.sum())), shares))
    return sizes
