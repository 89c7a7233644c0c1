"""Retention by frequency: a fixed set of ids, those that occurred most often in the past, has rows.

This is the baseline of AdaEmbed (Lai et al., OSDI 2023, section 6.1): a smaller model, pruned before training by the
counts of previous days. Other ids read zeros and are not trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.index.key_index import KeyIndex
from headrace.embeddings.tables.lifecycle.row_retention import NO_SWAPS, Swaps, exact_ids
from headrace.embeddings.tables.row_plan import RowPlan
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ConfigError

__all__ = ["FrequencyConfig", "FrequencyRetention"]

Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class FrequencyConfig(RetentionConfig):
    """Rows for the ids with the highest counts in a file; others read zeros."""

    kind: Literal["frequency"] = "frequency"
    counts: str
    """Parquet file with the columns table (text), id and count (integers), such as counts of earlier logs."""

    def keyed(self, tables: Sequence[TableConfig], budget_bytes: int) -> tuple[TableConfig, ...]:
        """See `RetentionConfig.keyed`."""
        return exact_ids(tables)

    def build(
        self, tables: Sequence[TableConfig], budget_bytes: int, *, seed: int, make_storage: MakeStorage
    ) -> TableGroup:
        """See `RetentionConfig.build`."""
        plan = RowPlan.of(tables, budget_bytes, shared_ratio=None, metadata_bytes=0)
        keys = _most_frequent(self.counts, [table.name for table in tables], plan.num_rows)

        def make_retention(plan: RowPlan, first_row: int) -> FrequencyRetention:
            return FrequencyRetention(keys, plan.num_rows, first_row=first_row)

        return BudgetedTableGroup(tables, plan, make_retention, policy=self.kind, seed=seed, make_storage=make_storage)


class FrequencyRetention:
    """A `RowRetention` of a fixed set of ids.

    Args:
        keys: The ids that have rows.
        num_rows: Number of rows, at least as many.
        first_row: Number of the first row.
    """

    num_bytes = 0

    inherited_ratio = None

    def __init__(self, keys: Keys, num_rows: int, *, first_row: int) -> None:
        self.index = KeyIndex(first_row, num_rows=num_rows)
        self._keys = keys
        self.index.allocate(keys)

    def may_admit(self, keys: Keys, rows: Int64s) -> npt.NDArray[np.bool_]:
        """See `RowRetention.may_admit`: none."""
        return np.zeros(len(keys), dtype=np.bool_)

    def admit(self, keys: Keys, rows: Int64s) -> Int64s:
        """See `RowRetention.admit`: none."""
        return np.empty(0, dtype=np.int64)

    def observe(self, keys: Keys, rows: Int64s, norms: Float32s, *, step: int, num_rows: int) -> Swaps:
        """See `RowRetention.observe`: rows stay where they are."""
        return NO_SWAPS

    def release(self, rows: Int64s) -> None:
        """See `RowRetention.release`; the ids keep their rows, which begin anew."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `RowRetention.columns`."""
        return {"retention.tables": self._keys.tables.copy(), "retention.ids": self._keys.ids.copy()}

    def load(self, columns: Mapping[str, npt.NDArray[Any]], keys: Keys, rows: Int64s) -> None:
        """See `RowRetention.load`: the ids of the checkpoint, even if the file has other counts now."""
        tables, ids = columns["retention.tables"], columns["retention.ids"]
        self._keys = Keys(np.asarray(tables), np.asarray(ids), np.zeros(len(ids), dtype=np.int32))
        self.index.clear()
        self.index.allocate(self._keys)


def _most_frequent(file: str, names: Sequence[str], num_rows: int) -> Keys:
    """The ids with the highest counts, those of equal counts in the order of (table, id); by descending count.

    Raises:
        ConfigError: The file cannot be read, or has other columns.
    """
    try:
        counted = pq.read_table(file, columns=["table", "id", "count"])
    except (OSError, pa.ArrowException) as error:
        raise ConfigError(f"embeddings.retention.counts: {file}: {error}") from error
    number_of = {name: number for number, name in enumerate(names)}
    tables = np.array([number_of.get(name, -1) for name in counted["table"].to_pylist()], dtype=np.int32)
    ids, counts = (counted[name].to_numpy().astype(np.int64) for name in ("id", "count"))
    order = np.lexsort((ids, tables, -counts))
    order = order[tables[order] >= 0][:num_rows]
    return Keys(tables[order], ids[order], np.zeros(len(order), dtype=np.int32))
