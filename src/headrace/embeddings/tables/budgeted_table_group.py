"""`BudgetedTableGroup`: embedding tables of one dimension that share a fixed number of bytes."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import ChangeLog
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.protocol import NEW, Inheritance, MakeStorage, RowStorage
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.lifecycle.policies import IdHistory
from headrace.embeddings.tables.lifecycle.row_retention import (
    Demand,
    ResizableRetention,
    RowIndexOfFixedSize,
    RowRetention,
    Swaps,
)
from headrace.embeddings.tables.merged_gradients import merge_gradients
from headrace.embeddings.tables.metadata import RECORD, RowMetadata
from headrace.embeddings.tables.partitions import Partition
from headrace.embeddings.tables.row_plan import RowPlan, bytes_per_row
from headrace.embeddings.tables.shared_rows import SharedRows
from headrace.embeddings.tables.state import Columns, TableGroupHeader, upgraded
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import HeadraceError

__all__ = ["SHARED", "BudgetedTableGroup", "TableRows"]

SHARED = "/shared"
"""Ends the name of the table of shared rows of another table."""
Int64s = npt.NDArray[np.int64]
Float32s = npt.NDArray[np.float32]


class TableRows(NamedTuple):
    """Rows of a table under a budget.

    Attributes:
        rows: Rows that its ids have.
        gained: Rows that ids got since the table group was created.
        lost: Rows that ids lost.
    """

    rows: int
    gained: int
    lost: int

    @classmethod
    def total(cls, parts: Iterable[Mapping[str, Sequence[int]]]) -> dict[str, TableRows]:
        """The sum of several parts of table groups, by the names of tables."""
        found: dict[str, TableRows] = {}
        for part in parts:
            for name, counts in part.items():
                found[name] = cls(*map(sum, zip(found.get(name, (0, 0, 0)), counts, strict=True)))
        return found


@dataclass(frozen=True, eq=False)
class _LastRead:
    """The newest read of a table group.

    Attributes:
        keys: The keys [U].
        rows: int64 [U], their own rows, or shared ones that were updated before.
        version: Version of the group.
    """

    keys: Keys
    rows: Int64s
    version: int


class BudgetedTableGroup(TableGroup):
    """A table group that never takes more bytes than a budget, from its first step on.

    All arrays are allocated once. Ids of all tables compete for the rows; a retention policy decides. An id without a
    row of its own reads and trains a shared row of its table, found by a hash, or reads zeros if there are none. Shared
    rows of table t of T are, for consumers of changes, rows of table T + t.

    `read` has no side effects, and several threads may read at once. An update changes rows of keys that are not part
    of it: those that share a row with one of its keys, and those that lose their row.

    Args:
        tables: Configs with unique names and one dimension.
        plan: Number of rows.
        make_retention: Creates the retention policy, given the plan and the number of the first row of an id's own.
        policy: Name of the retention policy.
        seed: Seed of initial values and hashes.
        make_storage: Creates the storage of the rows.
        partition: Which partition of the ids this is; None if it is all of them.

    Attributes:
        plan: Number of rows.
        retention: Which ids have rows.
        shared: The shared rows.
        gained, lost: int64 [T], rows that ids of each table got and lost since this group was created.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        plan: RowPlan,
        make_retention: Callable[[RowPlan, int], RowRetention],
        *,
        policy: str,
        seed: int,
        make_storage: MakeStorage,
        partition: Partition | None = None,
    ) -> None:
        self.plan = plan
        self.policy = policy
        self.partition = partition
        self.num_tables = len(tables)
        self._make_retention = make_retention
        self._row_bytes = bytes_per_row(tables) - RECORD.itemsize
        count = 1 if partition is None else partition.plan.partition_count
        super().__init__(_with_shared_tables(tables, plan, count), seed=seed, make_storage=make_storage)

    def _new_index(self) -> Any:
        names = [table.name for table in self.tables[: self.num_tables]]
        number = 0 if self.partition is None else self.partition.number
        self.shared = SharedRows(names, self.plan.num_shared, seed=self.seed, partition=number)
        self.retention = self._make_retention(self.plan, 1 + self.shared.num_rows)
        self.gained, self.lost = (np.zeros(self.num_tables, dtype=np.int64) for _ in range(2))
        return GroupIndex(self.retention, self.shared)

    def _clear(self) -> None:
        self.index = self._new_index()
        capacity = 1 + self.shared.num_rows + self.plan.num_rows
        self.storage: RowStorage = self._make_storage(self._layout, capacity)
        self.metadata = RowMetadata(capacity)
        self.changelog = ChangeLog()
        self.step = self.version = 0
        self._window_starts = [0]
        self._last_read: _LastRead | None = None
        self._initialize_own()
        self._check_size()

    @property
    def num_bytes(self) -> int:
        """Bytes of rows, optimizer state, metadata and index, at most the budget, on whatever medium rows are."""
        of_rows = self._row_bytes * len(self.metadata.records) + self.metadata.records.nbytes
        of_ids = self.index.num_bytes + self.retention.num_bytes + self.shared.num_bytes
        return of_rows + of_ids + self.gained.nbytes + self.lost.nbytes

    def rows_by_table(self) -> dict[str, TableRows]:
        """The rows of each table by its name."""
        tables, _ = self.retention.index.owners(self.retention.index.rows())
        counts = np.stack([np.bincount(tables, minlength=self.num_tables), self.gained, self.lost], axis=1)
        names = [table.name for table in self.tables[: self.num_tables]]
        return {name: TableRows(*of_table) for name, of_table in zip(names, counts.tolist(), strict=True)}

    def read(self, keys: Keys) -> Any:
        """See `TableGroup.read`; ids without a row of their own read their shared row."""
        rows, num_new = self.retention.index.find(keys, self.shared, self.metadata.records)
        if not self.shared.num_rows:
            missing = np.flatnonzero((rows == 0) & (keys.counts > 0))
            admitted = missing[self.retention.may_admit(keys.take(missing), rows[missing])]
            rows[admitted] = NEW
        elif num_new:
            located = self.shared.locate(keys, np.where(rows == NEW, 0, rows))
            return self.storage.gather(rows, located)
        else:
            self._last_read = _LastRead(keys, rows, self.version)
        return self.storage.gather(rows, keys)

    def update(self, keys: Keys, gradients: Any, *, num_rows: int = 1, lr_factor: float = 1.0) -> None:
        """See `TableGroup.update`. Gradients of ids that share a row are summed, in the order of the keys.

        An array of gradients is as it was when the call is over, but not meanwhile.
        """
        rows = self._rows_of(keys)
        self.step += 1
        self.version += 1
        admitted = self.retention.admit(keys, rows)
        if len(admitted):
            self._count(self.gained, keys.tables[admitted])
            if self.shared.num_rows:
                nothing = np.zeros(len(admitted), dtype=np.float32)
                self._start(rows[admitted], keys.take(admitted), nothing, None)  # a copy: that is what was read
        merged = merge_gradients(keys, rows, gradients, self.shared, self.metadata, version=self.version)
        if len(merged.new):
            self.storage.initialize(rows[merged.new], merged.keys.take(merged.new))
        self.storage.update(rows, merged.keys, merged.gradients, step=self.step, num_rows=num_rows, lr_factor=lr_factor)
        merged.restore()
        swaps = self.retention.observe(keys, rows, merged.norms, step=self.step, num_rows=num_rows)
        self._apply(swaps, rows)

    def _rows_of(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys, their own or shared ones; 0 for none. A step usually has just read them."""
        last, self._last_read = self._last_read, None
        if last is not None and last.keys is keys and last.version == self.version:
            return last.rows
        rows = self.index.resolve(keys)
        self.shared.fill_in(keys, rows)
        return rows

    def states(self, keys: Keys) -> KeyStates:
        """Refused: ids that share a row have no state of their own.

        Raises:
            HeadraceError: Always.
        """
        raise HeadraceError("table group: rows under a budget cannot be kept by trainers, expected placement none")

    def set_states(self, keys: Keys, states: KeyStates, *, step: int, version: int) -> None:
        """Refused, see `states`."""
        self.states(keys)

    def load_state_dict(self, state: Columns) -> None:
        """See `TableGroup.load_state_dict`.

        Raises:
            VersionMismatch, CheckpointError: See `TableGroup.load_state_dict`; also if the state was saved with another
                budget or policy.
        """
        saved = TableGroupHeader.read(upgraded(state))
        saved.check(self._header())
        if saved.partition is not None:
            sizes = {name: saved.partition[name] for name in ("budget_bytes", "num_rows")}
            self.plan = replace(self.plan, **sizes)
        self._clear()
        rows = state["rows"]
        own = np.flatnonzero(rows > self.shared.num_rows)
        keys = Keys(state["tables"][own], state["ids"][own], np.zeros(len(own), dtype=np.int32))
        self.storage.set_columns(rows, state)
        self.metadata.set_columns(rows, state)
        self.retention.load(state, keys, rows[own])
        self._initialize_own()
        self.changelog = ChangeLog.restored(saved.version, saved.cursors, saved.removed_from, state)
        self.step, self.version, self._window_starts = saved.step, saved.version, list(saved.window_starts)

    def moved_to(self, make_storage: MakeStorage) -> TableGroup:
        """See `TableGroup.moved_to`."""
        moved = BudgetedTableGroup(
            self.tables[: self.num_tables],
            self.plan,
            self._make_retention,
            policy=self.policy,
            seed=self.seed,
            make_storage=make_storage,
            partition=self.partition,
        )
        moved.load_state_dict(self.state_dict())
        return moved

    def _header(self) -> TableGroupHeader:
        total, partition = self.plan.budget_bytes, None
        if self.partition is not None:
            total, partition = self.partition.total_bytes, self.partition.to_dict(self.plan)
        return replace(super()._header(), retention=f"{total} bytes, policy {self.policy}", partition=partition)

    @property
    def can_resize(self) -> bool:
        """Whether the policy allows another number of rows."""
        return isinstance(self.retention, ResizableRetention)

    def demand(self) -> Demand:
        """How many rows the ids could use, and how many there are."""
        if isinstance(self.retention, ResizableRetention):
            return self.retention.demand()
        return Demand(self.plan.num_rows, None)

    def resize(self, budget_bytes: int) -> int:
        """Change the budget between two steps. If it becomes smaller, the least important ids lose their rows.

        Arrays are copied one after the other, in memory that does not count, as it lives for the call.

        Returns:
            Number of ids that lost their row.
        """
        assert isinstance(self.retention, ResizableRetention)
        self._last_read = None
        before, self.plan = self.plan.num_rows, self.plan.resized(budget_bytes)
        gone = self.retention.least_important(max(0, self.retention.index.num_rows - self.plan.num_rows))
        if len(gone):
            tables, ids = self.index.owners(gone)
            self._count(self.lost, tables)
            self.retention.give_up(gone)
            self.metadata.clear(gone)
            self.storage.discard(gone)
            self.changelog.record_removed(self.version, tables, ids)
        kept = np.concatenate([np.arange(1 + self.shared.num_rows), self.retention.resize(self.plan.num_rows)])
        capacity = 1 + self.shared.num_rows + self.plan.num_rows
        if self.plan.num_rows < before:
            self.storage.compact(kept, capacity)
            self.metadata.compact(kept, capacity)
            self.changelog.renumber(kept)
        else:
            self.storage.grow(capacity)
            self.metadata.grow(capacity)
        self.changelog.forget_saved(self.version)
        self._check_size()
        return len(gone)

    def _check_size(self) -> None:
        assert self.num_bytes <= self.plan.budget_bytes, f"{self.num_bytes} bytes of {self.plan.budget_bytes}"

    def _readable_rows(self, since: int, removed: tuple[npt.NDArray[np.int32], Int64s]) -> Int64s:
        """See `TableGroup`. Ids of a fixed set have rows that were never updated; others would read shared rows."""
        changed = self._changed_rows(since)
        if since == 0:
            return np.union1d(changed, self.retention.index.rows())
        keys = Keys(*removed, np.zeros(len(removed[1]), dtype=np.int32))
        kept = self.retention.index.resolve(keys)  # of ids that lost what they learned, but have a row at once again
        return np.union1d(changed, kept[kept != 0])

    def _columns_of_policy(self) -> Columns:
        return self.retention.columns()

    def _row_numbers(self, rows: Int64s) -> Columns:
        return {"rows": rows}

    def _initialize_own(self) -> None:
        """Write initial values into rows that have an id and were never updated, as those of a fixed set of ids."""
        rows = self.retention.index.rows()
        rows = rows[self.metadata.versions[rows] == 0]
        tables, ids = self.index.owners(rows)
        self.storage.initialize(rows, Keys(tables, ids, np.zeros(len(ids), dtype=np.int32)))

    def _start(self, rows: Int64s, keys: Keys, occurrences: Float32s, inherited_ratio: float | None) -> None:
        """Start rows [A] of newly admitted ids: from their shared rows, with optimizer state, or else from zero.

        See `RowRetention.inherited_ratio` for the weights.
        """
        if not self.shared.num_rows:
            self.storage.initialize(rows, keys)
            columns = self.storage.columns(rows)
            self.storage.set_columns(rows, columns | {"weights": np.zeros_like(columns["weights"])})
            self.metadata.versions[rows] = self.version
            return
        sources, shares, num_unwritten = self.shared.sources(keys, occurrences, self.metadata.records)
        self.metadata.versions[rows] = self.version
        if num_unwritten:
            unwritten, written = np.flatnonzero(sources == 0), np.flatnonzero(sources)
            self.storage.initialize(rows[unwritten], keys.take(unwritten))
            rows, keys, sources, shares = rows[written], keys.take(written), sources[written], shares[written]
        if len(rows):
            self.storage.inherit(Inheritance(rows, keys, sources, shares, inherited_ratio, self.step))

    def _apply(self, swaps: Swaps, updated: Int64s) -> None:
        """Carry out swaps after an update of some rows [U], and record the changes."""
        if len(swaps.freed_rows):
            self._count(self.lost, swaps.evicted.tables)
            self.metadata.clear(swaps.freed_rows)
            self.changelog.record_removed(self.version, swaps.evicted.tables, swaps.evicted.ids)
        if len(swaps.rows):
            self._count(self.gained, swaps.admitted.tables)
            self._start(swaps.rows, swaps.admitted, swaps.occurrences, self.retention.inherited_ratio)
            if self.changelog.cursors:
                updated = np.union1d(updated, swaps.rows)
        self.changelog.record(self.version, updated, self.metadata.versions)

    def _count(self, counters: Int64s, tables: npt.NDArray[np.int32]) -> None:
        counters += np.bincount(tables, minlength=self.num_tables)

    def _evict(self, keys: Keys) -> int:
        rows = self.index.resolve(keys)
        gone = np.flatnonzero(rows)
        self._count(self.lost, keys.tables[gone])
        self.retention.release(rows[gone])
        self.metadata.clear(rows[gone])
        self.storage.discard(rows[gone])
        self._initialize_own()
        self.changelog.record_removed(self.version, keys.tables[gone], keys.ids[gone])
        return len(gone)


class GroupIndex:
    """The index of a `BudgetedTableGroup`: rows of shared tables, then those of ids."""

    def __init__(self, retention: RowRetention, shared: SharedRows) -> None:
        self._retention, self._shared = retention, shared
        self.num_fixed = 1 + shared.num_rows

    @property
    def _rows(self) -> RowIndexOfFixedSize:
        return self._retention.index  # another one after a change of size

    @property
    def num_rows(self) -> int:
        """Rows in use, with all shared rows."""
        return self._shared.num_rows + self._rows.num_rows

    @property
    def num_entries(self) -> int:
        """Number of ids that have a row of their own."""
        return self._rows.num_rows

    @property
    def num_bytes(self) -> int:
        """Bytes of the index of ids."""
        return self._rows.num_bytes

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of the keys' own; 0 for keys without one."""
        return self._rows.resolve(keys)

    def owners(self, rows: Int64s) -> tuple[npt.NDArray[np.int32], Int64s]:
        """The (table, id) of rows [R] except 0."""
        tables, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        is_shared = rows < self.num_fixed
        tables[is_shared], ids[is_shared] = self._shared.owners(rows[is_shared])
        tables[~is_shared], ids[~is_shared] = self._rows.owners(rows[~is_shared])
        return tables, ids

    def waiting(self, keys: Keys) -> tuple[Int64s, Int64s]:
        """Zeros, see `RowIndex.waiting`."""
        nothing = np.zeros(len(keys), dtype=np.int64)
        return nothing, nothing

    def pending(self) -> IdHistory:
        """No ids: those without a row have no history."""
        nothing = np.empty(0, dtype=np.int64)
        return IdHistory(np.empty(0, dtype=np.int32), nothing, nothing, nothing)


def _with_shared_tables(tables: Sequence[TableConfig], plan: RowPlan, num_partitions: int) -> list[TableConfig]:
    """The tables, and one of shared rows for each, with those of all partitions."""
    if not plan.num_shared.any():
        return list(tables)
    return [
        *tables,
        *(
            table.model_copy(
                update={
                    "name": f"{table.name}{SHARED}",
                    "kind": "direct",
                    "num_embeddings": num_partitions * num_shared,
                    "init_scale": table.scale,
                    "evict_after": None,
                }
            )
            for table, num_shared in zip(tables, plan.num_shared.tolist(), strict=True)
        ),
    ]
