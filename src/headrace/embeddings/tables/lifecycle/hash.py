"""Retention by hash: ids of each table share its rows by a hash, and none moves (Weinberger et al., "Feature hashing
for large scale multitask learning", ICML 2009). All tables are smaller by the same factor.

The plainest way to keep a budget, and the baseline of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import TableConfig
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.row_plan import bytes_per_row
from headrace.embeddings.tables.shared_rows import split_rows
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ConfigError

__all__ = ["HashConfig"]

INDEX_BYTES = 512
"""Of the empty index of a group without collisionless tables."""


class HashConfig(RetentionConfig):
    """Ids share rows by a hash."""

    kind: Literal["hash"] = "hash"

    def keyed(self, tables: Sequence[TableConfig], budget_bytes: int) -> tuple[TableConfig, ...]:
        """See `RetentionConfig.keyed`: hashed tables with as many rows as the budget allows."""
        num_rows = (budget_bytes - INDEX_BYTES) // bytes_per_row(tables) - 1  # without the zero row
        if num_rows < len(tables):
            needed = INDEX_BYTES + (1 + len(tables)) * bytes_per_row(tables)
            raise ConfigError(f"embeddings.budget: given {budget_bytes} bytes, expected at least {needed}")
        sizes = split_rows(num_rows, [table.num_embeddings for table in tables]).tolist()
        return tuple(
            table.model_copy(
                update={
                    "kind": "hashed",
                    "num_embeddings": min(size, table.num_embeddings),
                    "init_scale": table.scale,
                    "evict_after": None,
                }
            )
            for table, size in zip(tables, sizes, strict=True)
        )

    def build(
        self, tables: Sequence[TableConfig], budget_bytes: int, *, seed: int, make_storage: MakeStorage
    ) -> TableGroup:
        """See `RetentionConfig.build`."""
        return TableGroup(tables, seed=seed, make_storage=make_storage)
