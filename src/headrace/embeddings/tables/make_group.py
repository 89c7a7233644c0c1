"""Creates the table group of a module: with or without a budget."""

from __future__ import annotations

from collections.abc import Sequence

from headrace.embeddings.budget import RetentionConfig, parse_budget
from headrace.embeddings.config import EmbeddingsConfig, TableConfig
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.lifecycle.importance import ImportanceConfig
from headrace.embeddings.tables.row_plan import bytes_per_row
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["budget_bytes_of", "full_bytes_of", "keyed_tables", "make_table_group"]


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


def make_table_group(
    config: EmbeddingsConfig,
    tables: Sequence[TableConfig],
    *,
    seed: int,
    make_storage: MakeStorage = HostStorage,
) -> TableGroup:
    """Create a table group.

    Args:
        config: Settings for all tables.
        tables: Complete configs of the tables, before `keyed_tables`.
        seed: Seed of initial values and hashes.
        make_storage: Creates the storage of the rows.

    Raises:
        ConfigError: The budget is too small, or does not fit the tables.
    """
    num_bytes = budget_bytes_of(config, tables)
    if num_bytes is None:
        return TableGroup(tables, seed=seed, make_storage=make_storage)
    keyed = keyed_tables(config, tables)
    group: TableGroup = _retention_of(config).build(keyed, num_bytes, seed=seed, make_storage=make_storage)
    return group


def _retention_of(config: EmbeddingsConfig) -> RetentionConfig:
    return config.retention or ImportanceConfig()
