"""Partitions of the ids of a table group under a budget: what they are, and how saved ones are found again.

Ids are divided by a hash of (table, id), see `ShardingPlan`. Each partition is a `BudgetedTableGroup` with a part of
the budget, shared rows and sketch of its own, so its steps depend on no other. It is trained, saved and loaded as a
whole, in one process or in any shard, with the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from headrace.embeddings.shards.plan import ROW_WISE, ShardingPlan
from headrace.embeddings.tables.row_plan import RowPlan
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.errors import CheckpointError

__all__ = ["Partition", "joined_columns", "part_budgets", "partition_count_of", "separated_columns"]


@dataclass(frozen=True)
class Partition:
    """One partition of the ids of a table group.

    Attributes:
        plan: All partitions.
        number: Number of this one.
        total_bytes: Budget of all partitions.
    """

    plan: ShardingPlan
    number: int
    total_bytes: int

    def to_dict(self, plan: RowPlan) -> dict[str, Any]:
        """JSON-able values of the header of a saved partition, with the sizes of its plan."""
        sizes = {"budget_bytes": plan.budget_bytes, "num_rows": plan.num_rows}
        return {"number": self.number, "count": self.plan.partition_count, "owners": list(self.plan.owners), **sizes}

    def is_saved_as(self, saved: Mapping[str, Any] | None) -> bool:
        """Whether a saved partition, see `to_dict`, is this one; None is that of a group without partitions."""
        mine = self.number, self.plan.partition_count, list(self.plan.owners)
        if saved is None:
            return mine == (0, 1, [ROW_WISE] * len(self.plan.owners))
        return mine == (saved["number"], saved["count"], saved["owners"])


def part_budgets(total_bytes: int, count: int) -> list[int]:
    """Divide a budget equally among partitions."""
    return [total_bytes * (number + 1) // count - total_bytes * number // count for number in range(count)]


def partition_count_of(states: Sequence[Columns]) -> int:
    """Number of partitions of a saved table group, as a list of its parts or partitions."""
    partition = TableGroupHeader.read(upgraded(states[0])).partition
    return 1 if partition is None else int(partition["count"])


def joined_columns(states: Sequence[Columns]) -> dict[str, Any]:
    """The columns of several partitions as those of one table group: `partition-0000.NAME`, and the first header."""
    columns: dict[str, Any] = {"header": states[0]["header"]}
    for number, state in enumerate(states):
        columns |= {f"partition-{number:04d}.{name}": column for name, column in state.items()}
    return columns


def separated_columns(columns: Columns) -> list[Columns]:
    """Inverse of `joined_columns`; a group without partitions is the only one."""
    names = sorted({name.split(".")[0] for name in columns if name.startswith("partition-")})
    if not names:
        return [columns]
    states = [
        {name.removeprefix(f"{each}."): column for name, column in columns.items() if name.startswith(f"{each}.")}
        for each in names
    ]
    if any("header" not in state for state in states):
        raise CheckpointError("table group: a partition has no header")
    return states
