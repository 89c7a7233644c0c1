"""Finds the unique rows of a batch, of group columns and of plain columns with equal rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.features.grouping import ColumnUse
from headrace.features.kernels.comparing import (
    count_elements,
    hash_rows,
    mark_changes,
    number_combinations,
    number_hashes,
    number_runs,
    number_used,
)
from headrace.features.operator import Kind
from headrace.logs.groups import group_of

__all__ = ["WORTH_KEEPING", "GroupRows", "combine", "equal_rows", "measure_columns", "stored_rows"]

WORTH_KEEPING = 1.2
"""A group with fewer rows per unique row is expanded at once, because its inverse would cost more later."""

Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class GroupRows:
    """The unique rows of a group that occur in a batch.

    Attributes:
        rows: int64 [U], positions of the unique rows in the group's columns.
        inverse: int32 [B], the unique row of each row of the batch.
    """

    rows: Ints
    inverse: NDArray[np.int32]


def stored_rows(batch: pa.RecordBatch, positions: Sequence[int]) -> list[GroupRows]:
    """The unique rows of the group columns at these positions that occur in a batch."""
    found = []
    for position in positions:
        indices = group_of(batch.column(position)).inverse
        used, inverse = np.empty(len(indices), np.int64), np.empty(len(indices), np.int32)
        count = number_used(indices, used, inverse)
        found.append(GroupRows(used[:count], inverse))
    return found


def equal_rows(
    sources: Ints, groups: Sequence[Ints], num_rows: int, order: Literal["adjacent", "any"]
) -> list[GroupRows]:
    """Find the unique rows of groups of plain columns.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        groups: Source numbers of each group.
        num_rows: Rows B.
        order: Whether to compare each row with the previous one, or to hash rows.
    """
    found = []
    for columns in groups:
        changed, inverse = np.zeros(num_rows, np.uint8), np.empty(num_rows, np.int32)
        first_rows = np.empty(num_rows, np.int64)
        if order == "adjacent":
            mark_changes(sources, columns, np.empty(0, np.int64), changed)
            count = number_runs(changed, inverse, first_rows)
        else:
            codes, others = np.zeros(num_rows, np.uint64), np.empty(num_rows, np.int64)
            hash_rows(sources, columns, codes)
            count = number_hashes(codes, inverse, first_rows, others)
            mark_changes(sources, columns, others, changed)
            if changed.any():  # two different rows have the same hash
                strangers = np.flatnonzero(changed)
                first_rows[count : count + len(strangers)] = strangers
                inverse[strangers] = np.arange(count, count + len(strangers), dtype=np.int32)
                count += len(strangers)
        if num_rows < WORTH_KEEPING * count:
            found.append(GroupRows(np.arange(num_rows), np.arange(num_rows, dtype=np.int32)))
        else:
            found.append(GroupRows(first_rows[:count], inverse))
    return found


def combine(groups: Sequence[GroupRows]) -> tuple[list[Ints], NDArray[np.int32]]:
    """Find the combinations of unique rows that occur in neighbouring rows of a batch.

    Returns:
        The rows of each group, int64 [U] each; and int32 [B], the combination of each row of the batch.
    """
    if len(groups) == 1:
        return [groups[0].rows], groups[0].inverse
    inverses = np.stack([group.inverse for group in groups])
    inverse, first_rows = np.empty_like(groups[0].inverse), np.empty(inverses.shape[1], np.int64)
    count = number_combinations(inverses, inverse, first_rows)
    return [group.rows[group.inverse[first_rows[:count]]] for group in groups], inverse


def measure_columns(names: Sequence[str], kinds: Mapping[str, Kind], sources: Ints, num_rows: int) -> list[ColumnUse]:
    """Measure how often columns change from row to row, and their bytes, for `choose_groups`.

    Args:
        names: Names of the columns, in source order.
        kinds: Kind of each column.
        sources: int64 [S, WIDTH], at least one per column.
        num_rows: Rows B.
    """
    uses = []
    for number, name in enumerate(names):
        changed = np.zeros(num_rows, np.uint8)
        mark_changes(sources, np.array([number], np.int64), np.empty(0, np.int64), changed)
        changed[:1] = 1
        if kinds[name] is Kind.NUMBER:
            size, kept = 8.0, 4.0
        else:
            width = 8.0 if kinds[name].has_ids else 4.0
            size, kept = width * count_elements(sources[number], num_rows) / max(1, num_rows) + 4.0, 0.0
        uses.append(ColumnUse(name, changed.astype(np.bool_), size, kept))
    return uses
