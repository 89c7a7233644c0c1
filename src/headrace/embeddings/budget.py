"""Budgets of embedding tables: their size, as job files write it, and the base of retention policies."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from headrace.errors import ConfigError
from headrace.registry import RETENTION_POLICIES, NamedConfig, Registry
from headrace.resources.quantities import parse_bytes

__all__ = ["RetentionConfig", "parse_budget"]


def parse_budget(budget: str, full_bytes: int, *, where: str = "embeddings.budget") -> int:
    """Parse a budget to bytes.

    Args:
        budget: A size such as "2GiB", or a percentage such as "40%" of `full_bytes`.
        full_bytes: Bytes of the tables without a budget.
        where: Name of the budget in error messages.

    Raises:
        ConfigError: It is neither, or not above 0.
    """
    try:
        num_bytes = float(budget[:-1]) / 100 * full_bytes if budget.endswith("%") else float(parse_bytes(budget))
    except (ValueError, ConfigError):
        num_bytes = 0.0
    if not 0 < num_bytes < 2.0**63:
        raise ConfigError(f'{where}: given {budget!r}, expected a percentage such as "40%" or a size such as "2GiB"')
    return int(num_bytes)


class RetentionConfig(NamedConfig):
    """Settings common to all retention policies under a budget."""

    registry: ClassVar[Registry[type[RetentionConfig]]] = RETENTION_POLICIES
    has_partitions: ClassVar[bool] = False
    """Whether ids can be divided into partitions, such as those of shards, see `build_partition`."""

    def keyed(self, tables: Sequence[Any], budget_bytes: int) -> tuple[Any, ...]:
        """The tables as their ids become keys: a policy that decides by id needs ids that are not hashed.

        Args:
            tables: Complete `TableConfig`s of the tables of one dimension.
            budget_bytes: Bytes that all of them may take.

        Returns:
            A `TableConfig` per table.

        Raises:
            ConfigError: The budget is too small.
        """
        raise NotImplementedError(f"{type(self).__name__}.keyed")

    def build(self, tables: Sequence[Any], budget_bytes: int, *, seed: int, make_storage: Any) -> Any:
        """Create the table group: that of all ids, for policies that have partitions.

        Args:
            tables: Result of `keyed`.
            budget_bytes: Bytes that rows, optimizer state, metadata and index may take together.
            seed: Seed of initial values and hashes.
            make_storage: Creates the storage of the rows, a `MakeStorage`.

        Returns:
            A `TableGroup`.

        Raises:
            ConfigError: The budget is too small.
        """
        return self.build_partition(tables, budget_bytes, None, seed=seed, make_storage=make_storage)

    def build_partition(
        self, tables: Sequence[Any], budget_bytes: int, partition: Any, *, seed: int, make_storage: Any
    ) -> Any:
        """Create the table group of one partition of the ids; only if `has_partitions`.

        Args:
            tables: Result of `keyed`.
            budget_bytes: Bytes for this partition.
            partition: The `Partition`; None if it is all ids.
            seed: See `build`.
            make_storage: See `build`.

        Returns:
            A `BudgetedTableGroup`.

        Raises:
            ConfigError: The budget is too small.
        """
        raise NotImplementedError(f"{type(self).__name__}.build_partition")
