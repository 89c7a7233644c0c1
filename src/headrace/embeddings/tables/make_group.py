"""Creates the table group of a module: with or without a budget."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from headrace.embeddings.budget import RetentionConfig, parse_budget
from headrace.embeddings.config import EmbeddingsConfig, TableConfig
from headrace.embeddings.shards.plan import ShardingPlan, make_plan
from headrace.embeddings.storage.choose import divided
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.lifecycle.importance import ImportanceConfig
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.embeddings.tables.partitions import Partition, part_budgets, partition_count_of, separated_columns
from headrace.embeddings.tables.parts import join_parts
from headrace.embeddings.tables.row_plan import bytes_per_row
from headrace.embeddings.tables.state import Columns
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ConfigError
from headrace.registry import RETENTION_POLICIES

__all__ = [
    "BudgetSpec",
    "budget_bytes_of",
    "check_has_partitions",
    "full_bytes_of",
    "keyed_tables",
    "loaded_table_group",
    "make_partitions",
    "make_table_group",
]


def full_bytes_of(tables: Sequence[TableConfig]) -> int:
    """Bytes of `num_embeddings` rows of each table, with optimizer state and metadata, without an index."""
    return bytes_per_row(tables) * sum(table.num_embeddings for table in tables)


def budget_bytes_of(config: EmbeddingsConfig, tables: Sequence[TableConfig]) -> int | None:
    """The budget of some tables of one dimension in bytes; None without a budget."""
    return None if config.budget is None else parse_budget(config.budget, full_bytes_of(tables))


def keyed_tables(config: EmbeddingsConfig, tables: Sequence[TableConfig]) -> tuple[TableConfig, ...]:
    """The tables of one dimension as their ids become keys, see `RetentionConfig.keyed`.

    Raises:
        ConfigError: The budget is too small, or does not fit the tables.
    """
    num_bytes = budget_bytes_of(config, tables)
    return tuple(tables) if num_bytes is None else _retention_of(config).keyed(tables, num_bytes)


@dataclass(frozen=True)
class BudgetSpec:
    """The budget of the tables of one dimension.

    Attributes:
        num_bytes: Bytes of all partitions together.
        retention: Which ids have rows.
    """

    num_bytes: int
    retention: RetentionConfig

    @classmethod
    def of(cls, config: EmbeddingsConfig, tables: Sequence[TableConfig]) -> BudgetSpec | None:
        """The budget of some tables; None without one."""
        num_bytes = budget_bytes_of(config, tables)
        return None if num_bytes is None else cls(num_bytes, _retention_of(config))

    def to_dict(self) -> dict[str, Any]:
        """JSON-able values."""
        return {"num_bytes": self.num_bytes, "retention": self.retention.model_dump(mode="json")}


def make_table_group(
    config: EmbeddingsConfig,
    tables: Sequence[TableConfig],
    *,
    seed: int,
    make_storage: MakeStorage = HostStorage,
    num_partitions: int | None = None,
) -> TableGroup:
    """Create a table group.

    Args:
        config: Settings for all tables.
        tables: Complete configs of the tables, before `keyed_tables`.
        seed: Seed of initial values and hashes.
        make_storage: Creates the storage of the rows.
        num_partitions: Number of partitions under a budget; None for the config's, or else 1.

    Raises:
        ConfigError: The budget is too small, or does not fit the tables.
    """
    budget = BudgetSpec.of(config, tables)
    if budget is None:
        return TableGroup(tables, seed=seed, make_storage=make_storage)
    keyed = keyed_tables(config, tables)
    count = num_partitions or config.partitions or 1
    if count == 1:
        group: TableGroup = budget.retention.build(keyed, budget.num_bytes, seed=seed, make_storage=make_storage)
        return group
    plan = make_plan(keyed, 1, num_partitions=count)
    return make_partitions(keyed, budget, plan, 0, seed=seed, make_storage=make_storage, rebalances=True)


def loaded_table_group(
    group: TableGroup,
    states: Sequence[Columns],
    config: EmbeddingsConfig,
    tables: Sequence[TableConfig],
    *,
    seed: int,
    make_storage: MakeStorage,
) -> TableGroup:
    """Load a saved table group, or all of its parts, in one process.

    Args:
        group: A new group, the result of `make_table_group` with the other arguments.
        states: The saved columns; of several parts, those of each.
        config, tables, seed, make_storage: See `make_table_group`.

    Returns:
        The group, or another one with the partitions of the saved group.

    Raises:
        CheckpointError: The group was saved with other settings.
    """
    if config.budget is None:
        is_part = "rows" not in states[0]
        group.load_state_dict(join_parts(states) if is_part else states[0])
        return group
    states = list(states) if len(states) > 1 else separated_columns(states[0])
    count = config.partitions or partition_count_of(states)
    if count == len(states) == 1 and not isinstance(group, PartitionedTableGroup):
        group.load_state_dict(states[0])
        return group
    budget, keyed = BudgetSpec.of(config, tables), keyed_tables(config, tables)
    assert budget is not None
    plan = make_plan(keyed, 1, num_partitions=count)
    loaded = make_partitions(keyed, budget, plan, 0, seed=seed, make_storage=make_storage, rebalances=True)
    loaded.load_states(states)
    return loaded


def make_partitions(
    tables: Sequence[TableConfig],
    budget: BudgetSpec,
    plan: ShardingPlan,
    shard: int,
    *,
    seed: int,
    make_storage: MakeStorage,
    rebalances: bool = False,
) -> PartitionedTableGroup:
    """Create the partitions of a shard.

    Args:
        tables: Result of `keyed_tables`.
        budget: Budget of all partitions.
        plan: Assignment of keys to partitions and shards.
        shard: Number of the shard.
        seed: Seed of initial values and hashes.
        make_storage: Creates the storage of the rows, whose memory the partitions of the shard divide.
        rebalances: See `PartitionedTableGroup`.

    Raises:
        ConfigError: The policy has no partitions, or the budget of one is too small.
    """
    policy, numbers = budget.retention, plan.partitions_in(shard)
    check_has_partitions(policy)
    budgets = part_budgets(budget.num_bytes, plan.partition_count)
    storage = divided(make_storage, len(numbers))
    parts = {}
    for number in numbers:
        partition = Partition(plan, number, budget.num_bytes)
        parts[number] = policy.build_partition(tables, budgets[number], partition, seed=seed, make_storage=storage)
    return PartitionedTableGroup(plan, parts, rebalances=rebalances)


def check_has_partitions(policy: RetentionConfig) -> None:
    """Check that a policy can divide ids into partitions.

    Raises:
        ConfigError: It cannot.
    """
    if not policy.has_partitions:
        able = [name for name, found in RETENTION_POLICIES.items() if found.has_partitions]
        raise ConfigError(
            f"embeddings.retention.kind: given {policy.kind} with partitions, such as those of shards, expected "
            f"{' or '.join(able)}"
        )


def _retention_of(config: EmbeddingsConfig) -> RetentionConfig:
    return config.retention or ImportanceConfig()
