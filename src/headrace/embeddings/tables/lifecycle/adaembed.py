"""Retention as in AdaEmbed (Lai et al., "AdaEmbed: Adaptive embedding for large-scale recommendation models", OSDI 23).

Ids are hashed to virtual rows, `num_embeddings` of each table. A virtual row costs 12 bytes: a float32 importance and
an int64 address (section 5.1, "virtually hashed, physically indexed"). In every step, importance of the rows that
occurred grows by frequency times gradient norm, and all importance shrinks by 0.8 every so often (section 4.1). It is
compared between tables after division by the table's 95th percentile (section 4.2). Once 5 % of the rows have crossed
the cut-off, rows below it are pruned, all in that step, and rows above it begin at zero (section 4.3). A pruned row
reads zeros.

The paper looks for crossings once a minute and does not say how often importance shrinks; here both are numbers of
steps.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headrace.compiling import kernel
from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.lifecycle.row_retention import NO_SWAPS, Swaps, bounded_ids
from headrace.embeddings.tables.row_plan import RowPlan
from headrace.embeddings.tables.shared_rows import SharedRows
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["AdaEmbedConfig", "AdaEmbedRetention", "VirtualIndex"]

VIRTUAL_ROW_BYTES = 12
QUANTILE = 0.95

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]


class AdaEmbedConfig(RetentionConfig):
    """AdaEmbed as published: 12 bytes for every row that a full table has; pruned rows read zeros."""

    kind: Literal["adaembed"] = "adaembed"
    decay: float = Field(default=0.8, gt=0, le=1)
    """Importance shrinks by this factor."""
    decay_every: int = Field(default=100, ge=1)
    """Steps between two times that importance shrinks."""
    profile_every: int = Field(default=20, ge=1)
    """Steps between two looks at how many rows have crossed the cut-off."""
    trigger_ratio: float = Field(default=0.05, ge=0, lt=1)
    """Part of the rows that must have crossed the cut-off before rows are pruned."""

    def keyed(self, tables: Sequence[TableConfig], budget_bytes: int) -> tuple[TableConfig, ...]:
        """See `RetentionConfig.keyed`: ids become virtual rows."""
        return bounded_ids(tables)

    def build(
        self, tables: Sequence[TableConfig], budget_bytes: int, *, seed: int, make_storage: MakeStorage
    ) -> TableGroup:
        """See `RetentionConfig.build`."""
        sizes = np.array([table.num_embeddings for table in tables], dtype=np.int64)
        virtual_bytes = VIRTUAL_ROW_BYTES * int(sizes.sum())
        plan = RowPlan.of(
            tables, budget_bytes, shared_ratio=None, metadata_bytes=0, index_bytes=lambda _: virtual_bytes
        )

        def make_retention(plan: RowPlan, first_row: int) -> AdaEmbedRetention:
            return AdaEmbedRetention(self, sizes, plan.num_rows, first_row=first_row)

        return BudgetedTableGroup(tables, plan, make_retention, policy=self.kind, seed=seed, make_storage=make_storage)


class VirtualIndex:
    """Addresses of virtual rows.

    Args:
        sizes: int64 [T], number of virtual rows of each table.
        num_rows: Number of rows.
        first_row: Number of the first row.

    Attributes:
        addresses: int64 [V], row of each virtual row; 0 for none.
    """

    def __init__(self, sizes: Int64s, num_rows: int, first_row: int) -> None:
        self._ends: Int64s = np.cumsum(sizes)
        self._firsts: Int64s = self._ends - sizes
        self._first_row, self._all = first_row, num_rows
        self.addresses: Int64s = np.zeros(int(sizes.sum()), dtype=np.int64)
        self.num_rows = 0
        self._num_ever = 0  # rows beyond these never had an id

    @property
    def num_bytes(self) -> int:
        """Bytes of the addresses."""
        return self.addresses.nbytes

    def places(self, keys: Keys) -> Int64s:
        """Numbers of the virtual rows of keys [U] among those of all tables."""
        places: Int64s = self._firsts[keys.tables] + keys.ids
        return places

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for pruned ones."""
        return self.addresses[self.places(keys)]

    def find(self, keys: Keys, shared: SharedRows, records: npt.NDArray[np.void]) -> tuple[Int64s, int]:
        """See `RowIndexOfFixedSize.find`."""
        rows = self.resolve(keys)
        return rows, shared.find(keys, rows, records)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, virtual row) of rows [R]; looks at all addresses."""
        held = np.flatnonzero(self.addresses)
        places = np.zeros(self._all, dtype=np.int64)
        places[self.addresses[held] - self._first_row] = held
        return self.owners_of_places(places[rows - self._first_row])

    def owners_of_places(self, places: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, virtual row) of virtual rows of all tables."""
        tables = np.searchsorted(self._ends, places, side="right")
        return tables.astype(np.int32), places - self._firsts[tables]

    def rows(self) -> Int64s:
        """The rows in use, ascending."""
        return np.sort(self.addresses[self.addresses > 0])

    def free_rows(self, num_rows: int) -> Int64s:
        """Some free rows; those that never had an id first, as looking for others takes a look at all addresses."""
        if self._num_ever + num_rows <= self._all:
            first = self._first_row + self._num_ever
            return np.arange(first, first + num_rows)
        return np.setdiff1d(np.arange(self._first_row, self._first_row + self._all), self.rows())[:num_rows]

    def insert(self, keys: Keys, rows: Int64s) -> None:
        """Give free rows [U] to keys [U]."""
        self.addresses[self.places(keys)] = rows
        self.num_rows += len(rows)
        self._num_ever = max(self._num_ever, int(rows.max(initial=0)) - self._first_row + 1)

    def release(self, places: Int64s) -> None:
        """Free the rows of virtual rows that have one."""
        self.addresses[places] = 0
        self.num_rows -= len(places)


class AdaEmbedRetention:
    """A `RowRetention` as in AdaEmbed.

    Args:
        config: Settings.
        sizes: int64 [T], number of virtual rows of each table.
        num_rows: Number of rows.
        first_row: Number of the first row.

    Attributes:
        importance: float32 [V] of each virtual row.
    """

    inherited_ratio = None

    def __init__(self, config: AdaEmbedConfig, sizes: Int64s, num_rows: int, *, first_row: int) -> None:
        self._config, self._sizes, self._num_rows = config, sizes, num_rows
        self.index = VirtualIndex(sizes, num_rows, first_row)
        self.importance: Float32s = np.zeros(int(sizes.sum()), dtype=np.float32)

    @property
    def num_bytes(self) -> int:
        """See `RowRetention`."""
        return self.importance.nbytes

    def may_admit(self, keys: Keys, rows: Int64s) -> npt.NDArray[np.bool_]:
        """See `RowRetention.may_admit`: the first ones, while rows are free."""
        return np.arange(len(keys)) < self._num_rows - self.index.num_rows

    def admit(self, keys: Keys, rows: Int64s) -> Int64s:
        """See `RowRetention.admit`: while rows are free, every id gets one."""
        num_free = self._num_rows - self.index.num_rows
        places = np.flatnonzero((rows == 0) & (keys.counts > 0))[:num_free]
        if len(places):
            rows[places] = self.index.free_rows(len(places))
            self.index.insert(keys.take(places), rows[places])
        return places

    def observe(self, keys: Keys, rows: Int64s, norms: Float32s, *, step: int, num_rows: int) -> Swaps:
        """See `RowRetention.observe`."""
        _add(self.importance, self.index.places(keys), keys.counts, norms)
        if step % self._config.decay_every == 0:
            self.importance *= np.float32(self._config.decay)
        is_full = self.index.num_rows == self._num_rows
        return self._prune() if is_full and step % self._config.profile_every == 0 else NO_SWAPS

    def release(self, rows: Int64s) -> None:
        """See `RowRetention.release`."""
        places = np.flatnonzero(np.isin(self.index.addresses, rows) & (self.index.addresses > 0))
        self.index.release(places)
        self.importance[places] = 0

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `RowRetention.columns`."""
        return {"retention.importance": self.importance.copy()}

    def load(self, columns: Mapping[str, npt.NDArray[Any]], keys: Keys, rows: Int64s) -> None:
        """See `RowRetention.load`."""
        self.index.insert(keys, rows)
        self.importance[...] = columns["retention.importance"]

    def _prune(self) -> Swaps:
        """Swap rows on both sides of the cut-off, if enough have crossed it."""
        normalized = self.importance.copy()
        start = 0
        for size in self._sizes.tolist():
            part = normalized[start : start + size]
            seen = part[part > 0]
            if len(seen):
                part /= np.quantile(seen, QUANTILE)
            start += size
        has_row = self.index.addresses > 0
        order = np.argsort(-normalized, kind="stable")
        wanted = np.zeros(len(order), dtype=np.bool_)
        wanted[order[: self._num_rows]] = True
        wanted &= normalized > 0
        admitted = np.flatnonzero(wanted & ~has_row)
        if len(admitted) <= self._config.trigger_ratio * self._num_rows:
            return NO_SWAPS
        pruned = np.flatnonzero(has_row & ~wanted)
        pruned = pruned[np.argsort(normalized[pruned], kind="stable")][: len(admitted)]
        rows = self.index.addresses[pruned]
        evicted = Keys(*self.index.owners_of_places(pruned), np.zeros(len(pruned), dtype=np.int32))
        self.index.release(pruned)
        new = Keys(*self.index.owners_of_places(admitted), np.zeros(len(admitted), dtype=np.int32))
        self.index.insert(new, rows)
        return Swaps(rows, evicted, rows, new, np.zeros(len(new), dtype=np.float32))


@kernel()
def _add(importance: Float32s, places: Int64s, counts: Int32s, norms: Float32s) -> None:
    for u in range(len(places)):
        if np.isfinite(norms[u]):
            importance[places[u]] += counts[u] * norms[u]
