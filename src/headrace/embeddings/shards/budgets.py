"""Budgets of partitions on their way between trainers and shards.

At the end of a window, every shard says what its partitions could use; trainer 0 decides, and tells the shards, first
those whose partitions shrink. So the sum of all budgets is at no time larger than before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from headrace.embeddings.tables.lifecycle.rebalancing import Rebalancing, rebalance
from headrace.embeddings.tables.lifecycle.row_retention import Demand
from headrace.embeddings.tables.make_group import BudgetSpec
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.errors import ConfigError, ShardError
from headrace.registry import RETENTION_POLICIES

__all__ = ["Demands", "check_budgets", "decide", "pack_demands", "read_budget", "unpack_demands"]

RETENTION_KINDS = ("importance", "cafe")
"""Policies of this library that have partitions and read no files: a request must not name code or files."""

Demands = Mapping[int, tuple[int, int, Demand]]
"""For each partition, the arguments of `rebalance`: budget, bytes that are not for rows, and demand."""


def read_budget(num_bytes: int, retention: Mapping[str, Any]) -> BudgetSpec:
    """The budget in a request.

    Raises:
        ConfigError: The policy does not exist, or a setting is not possible.
    """
    kind = retention.get("kind")
    if kind not in RETENTION_KINDS:
        raise ConfigError(f"budget.retention.kind: given {kind!r:.40}, expected {' or '.join(RETENTION_KINDS)}")
    config = RETENTION_POLICIES[kind].from_dict(dict(retention), where="budget.retention")
    for name, number in config.model_dump().items():
        if isinstance(number, float) and not math.isfinite(number):
            raise ConfigError(f"budget.retention.{name}: given {number}, expected a finite number")
    return BudgetSpec(num_bytes, config)


def pack_demands(demands: Demands) -> list[dict[str, Any]]:
    """JSON-able values of what partitions could use."""
    return [
        {
            "partition": number,
            "budget_bytes": budget,
            "fixed_bytes": fixed,
            "num_rows": demand.num_rows,
            "histogram": demand.histogram,
        }
        for number, (budget, fixed, demand) in demands.items()
    ]


def unpack_demands(values: Sequence[Mapping[str, Any]]) -> dict[int, tuple[int, int, Demand]]:
    """Inverse of `pack_demands`."""
    found = {}
    for each in values:
        histogram = None if each["histogram"] is None else tuple(each["histogram"])
        found[each["partition"]] = each["budget_bytes"], each["fixed_bytes"], Demand(each["num_rows"], histogram)
    return found


def decide(demands: Demands) -> tuple[Rebalancing, list[dict[int, int]]]:
    """Decide on the budgets of all partitions.

    Returns:
        The decision, and the budgets to be sent one after the other: those of partitions that shrink come first.
    """
    numbers = sorted(demands)
    budgets, fixed, of_all = zip(*(demands[number] for number in numbers), strict=True)
    decision = rebalance(budgets, fixed, of_all)
    changes = dict(zip(numbers, decision.budgets, strict=True))
    shrinking = {number: size for number, size in changes.items() if size < demands[number][0]}
    growing = {number: size for number, size in changes.items() if size > demands[number][0]}
    return decision, [each for each in (shrinking, growing) if each]


def check_budgets(budgets: Mapping[int, int], rows: PartitionedTableGroup, table_group: str) -> None:
    """Check the budgets in a request.

    Raises:
        ShardError: One is that of a partition in another shard, or is not possible.
    """
    for number, num_bytes in budgets.items():
        where = f"table group {table_group}: budget of partition {number}"
        if number not in rows.parts:
            raise ShardError(f"{where}: expected one of: {', '.join(map(str, rows.parts))}")
        least = rows.least_bytes(number)
        if not rows.parts[number].can_resize or not least <= num_bytes <= rows.total_bytes:
            raise ShardError(f"{where}: given {num_bytes} bytes, expected {least} to {rows.total_bytes}")
