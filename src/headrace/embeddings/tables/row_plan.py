"""`RowPlan`: how many rows of tables fit a budget of bytes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig, dim_of_tables
from headrace.embeddings.optimizers import build_optimizer
from headrace.embeddings.storage.row_formats import stored_bytes
from headrace.embeddings.tables.index.key_index import bytes_of_fixed_size
from headrace.embeddings.tables.metadata import RECORD
from headrace.embeddings.tables.shared_rows import PLACE_BYTES, split_rows
from headrace.errors import ConfigError

__all__ = ["RowPlan", "bytes_per_row"]

EVERY_GROUP_BYTES = 64
"""Slots of the index and of policies that are rounded up."""
EVERY_TABLE_BYTES = 16
"""Counters of rows that a table gained and lost."""

Int64s = npt.NDArray[np.int64]


def bytes_per_row(tables: Sequence[TableConfig]) -> int:
    """Bytes of a row of some tables of one dimension, with optimizer state and metadata, without the index."""
    dim = dim_of_tables(tables)
    optimizer = build_optimizer([table.optimizer for table in tables], dim)
    return stored_bytes(tables[0].rows, dim) + 4 * optimizer.state_width + RECORD.itemsize


@dataclass(frozen=True, eq=False)
class RowPlan:
    """How many rows fit a budget.

    Attributes:
        budget_bytes: The budget.
        num_rows: Number of rows K that belong to one id each.
        num_shared: int64 [T], number of shared rows of each table; 0 if ids without a row read zeros.
        sketch_bytes: Bytes for what a policy knows of ids without a row.
        fixed_bytes: Bytes of everything that does not depend on K, with `sketch_bytes`.
        row_bytes: Bytes of a row with its metadata, without the index.
        index_bytes: Bytes of the index of a number of rows.
    """

    budget_bytes: int
    num_rows: int
    num_shared: Int64s
    sketch_bytes: int
    fixed_bytes: int
    row_bytes: float
    index_bytes: Callable[[int], int]

    @classmethod
    def of(
        cls,
        tables: Sequence[TableConfig],
        budget_bytes: int,
        *,
        shared_ratio: float | None,
        metadata_bytes: float,
        sketch_bytes: float = 0.0,
        bytes_per_table: int = 0,
        index_bytes: Callable[[int], int] = bytes_of_fixed_size,
    ) -> RowPlan:
        """Divide a budget.

        Args:
            tables: The tables, of one dimension.
            budget_bytes: The budget.
            shared_ratio: Part of it for shared rows, of which each table has at least one; None for none.
            metadata_bytes: Metadata of a policy per row, beside the index.
            sketch_bytes: Bytes of the sketch of ids without a row, per row. Its size stays when rows are added.
            bytes_per_table: Metadata of a policy per table.
            index_bytes: Bytes of the index of a number of rows.

        Raises:
            ConfigError: The budget is too small for a row; the text has the smallest possible one.
        """
        row_bytes = bytes_per_row(tables)
        shared = np.zeros(len(tables), dtype=np.int64)
        if shared_ratio is not None:
            total = int(shared_ratio * budget_bytes / (row_bytes + PLACE_BYTES))
            shared = split_rows(total, [table.num_embeddings for table in tables])
        fixed = EVERY_GROUP_BYTES + (EVERY_TABLE_BYTES + bytes_per_table) * len(tables)
        fixed += (1 + int(shared.sum())) * (row_bytes + PLACE_BYTES)  # with the zero row

        per_row = row_bytes + metadata_bytes
        num_rows = _most_rows(budget_bytes - fixed, per_row + sketch_bytes, index_bytes)
        if not num_rows:
            least = fixed + int(per_row + sketch_bytes + index_bytes(1)) + 1
            raise ConfigError(
                f"embeddings.budget: given {budget_bytes} bytes for {len(tables)} tables, expected at least {least}"
            )
        sketch = int(sketch_bytes * num_rows)
        return cls(budget_bytes, num_rows, shared, sketch, fixed + sketch, per_row, index_bytes)

    def resized(self, budget_bytes: int) -> RowPlan:
        """The plan for another budget, with the same shared rows and sketch; at least one row must fit."""
        num_rows = _most_rows(budget_bytes - self.fixed_bytes, self.row_bytes, self.index_bytes)
        assert num_rows, f"{budget_bytes} bytes hold no row"
        return replace(self, budget_bytes=budget_bytes, num_rows=num_rows)


def _most_rows(num_bytes: int, row_bytes: float, index_bytes: Callable[[int], int]) -> int:
    """The most rows that fit, by bisection, because the size of an index is rounded."""
    low, high = 0, max(1, num_bytes)
    while high - low > 1:
        middle = (low + high) // 2
        fits = middle * row_bytes + index_bytes(middle) <= num_bytes
        low, high = (middle, high) if fits else (low, middle)
    return low
