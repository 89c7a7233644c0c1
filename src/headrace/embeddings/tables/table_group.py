"""`TableGroup`: the embedding tables of one dimension, with index, storage, metadata and optimizer."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.key_log import unique_keys
from headrace.embeddings.changes.log import BLOCK_ROWS, CHECKPOINTS, PUBLICATIONS, WRITERS, ChangeLog, RowBlock
from headrace.embeddings.config import TableConfig, dim_of_tables
from headrace.embeddings.keys import Keys
from headrace.embeddings.optimizers import build_optimizer
from headrace.embeddings.storage.first_values import FirstValues
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import MakeStorage, ReadAheadStorage, RowLayout, RowStorage
from headrace.embeddings.tables.index.row_index import RowIndex
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.lifecycle import IdHistory, admission_of, retention_of
from headrace.embeddings.tables.metadata import RowMetadata
from headrace.embeddings.tables.state import Columns, TableGroupHeader, pending_columns, pending_of, upgraded
from headrace.errors import HeadraceError

__all__ = ["TableGroup", "row_layout"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

MAX_CONSUMERS = 1_000
"""Maximum number of consumers of changes, so that clients cannot fill a shard's memory with names."""

GROWTH = 1.5  # in total, copies made by growing are at most three times the size of the rows
SHRINK_ABOVE = 1 << 12
"""Memory is not released below this number of free rows."""


class TableGroup:
    """Embedding tables of one dimension in one storage. Compiled loops use all Numba threads.

    `read` has no side effects: it may be repeated, called early or dropped, and several threads may read at once.
    `update`, `evict`, `end_window` and `load_state_dict` must not run in parallel with other calls.

    An id of a collisionless table without a row (not yet admitted, evicted, or never seen) reads zeros. Rows of direct
    and hashed tables always exist and read their initial value until they are updated.

    Args:
        tables: Configs with unique names, one dimension, one kind of optimizer and one row format. `Keys` number the
            tables in this order.
        seed: Seed of initial values and hashes. Initial values depend on (seed, table name, id) only.
        make_storage: Creates the storage of the rows.

    Raises:
        ConfigError: Two tables have the same name, or dimensions differ.

    Attributes:
        tables: Configs of the tables.
        embedding_dim: Dimension of rows.
        step: Number of updates so far.
        version: Number of changes so far: updates, evictions and window ends. Each row has the version that last
            changed it.
        index: Index of rows by key.
        storage: Storage of the rows.
        metadata: Last update of each row.
        changelog: Rows changed by each version, for registered consumers.
    """

    def __init__(
        self,
        tables: Sequence[TableConfig],
        *,
        seed: int,
        make_storage: MakeStorage = HostStorage,
    ) -> None:
        self.tables = tuple(tables)
        self.embedding_dim = dim_of_tables(tables)
        self.seed = seed
        self._layout = row_layout(tables, seed)
        self._make_storage = make_storage
        self._retention = retention_of(tables)
        self._may_wait = any(table.admission_count > 1 for table in tables)
        self._first_room = sum(table.num_embeddings for table in tables if table.kind == "collisionless")
        self.index: RowIndex = self._new_index()
        self._clear()

    def _new_index(self) -> Any:
        sizes = [-1 if table.kind == "collisionless" else table.num_embeddings for table in self.tables]
        return RowIndex(np.array(sizes, dtype=np.int64), admission_of(self.tables), capacity=self._first_room)

    def _clear(self) -> None:
        capacity = self.index.num_fixed + self._first_room
        self.index.clear(self._first_room)
        self.storage: RowStorage = self._make_storage(self._layout, capacity)
        self.metadata = RowMetadata(capacity)
        self.changelog = ChangeLog()
        self._publish_again: Keys | None = None
        self.step = self.version = 0
        self._window_starts: list[int] = [0]  # start versions of the recent windows

    @property
    def num_rows(self) -> int:
        """Rows in use: all rows of direct and hashed tables, and the allocated rows of collisionless tables."""
        return self.index.num_rows

    @property
    def num_ids(self) -> int:
        """Number of ids that have a row or wait for one."""
        return self.index.num_entries

    @property
    def device(self) -> torch.device | None:
        """Device of what is read; None for arrays in host memory."""
        return self.storage.device

    @property
    def storages(self) -> list[RowStorage]:
        """Where the rows are."""
        return [self.storage]

    @property
    def num_bytes(self) -> int:
        """Bytes of rows, optimizer state, metadata and index."""
        return self.storage.num_bytes + self.metadata.records.nbytes + self.index.num_bytes

    @property
    def window_starts(self) -> list[int]:
        """Start versions of the recent windows that the retention policies need."""
        return list(self._window_starts)

    @property
    def weights(self) -> Tensor:
        """All rows [capacity, dim] as stored, for inspection. Writes missing initial values, which may take a
        second."""
        rows = np.arange(1, self.index.num_fixed)
        new = rows[self.metadata.new_rows(rows)]
        self.storage.initialize(new, _unseen(*self.index.owners(new)))
        return self.storage.view()

    def read(self, keys: Keys) -> Any:
        """Read a copy of the rows of unique keys, float32 [U, dim], as the next update of these keys finds them.

        Args:
            keys: Unique keys; ids of direct and hashed tables must be in range. `counts` are the counts of the update
                that follows, or zeros. An id that this update admits reads its initial value; other ids without a row
                read zeros.
        """
        return self.storage.gather(self.index.find(keys, self.metadata.records), keys)

    def update(self, keys: Keys, gradients: Any, *, num_rows: int = 1, lr_factor: float = 1.0) -> None:
        """Apply one step: count ids, allocate rows for admitted ids, and run the optimizer.

        Args:
            keys: Unique keys, with their counts.
            gradients: float32 [U, dim], of the mean loss of the batch; ignored for ids without a row.
            num_rows: Rows of the batch, of all trainers; used by optimizers with `reduction: sum`.
            lr_factor: Factor of the learning rates in this step.
        """
        self.step += 1
        self.version += 1
        rows = self.index.resolve(keys)
        if self._may_wait:
            self._record_waiting(keys.take(np.flatnonzero(rows == 0)))
        self.index.admit(keys, rows, version=self.version)
        self._reserve(self.index.next_row)
        new = self.metadata.mark_updated(rows, keys.counts, version=self.version)
        if len(new):
            self.storage.initialize(rows[new], keys.take(new))
        self.storage.update(rows, keys, gradients, step=self.step, num_rows=num_rows, lr_factor=lr_factor)
        self.changelog.record(self.version, rows, self.metadata.versions)

    @property
    def reads_ahead(self) -> bool:
        """Whether `announce` has an effect, because rows are in files."""
        return isinstance(self.storage, ReadAheadStorage)

    def announce(self, keys: Keys, *, ahead: int) -> bool:
        """Start to bring the rows of a later batch to memory, see `ReadAheadStorage.announce`; changes no result."""
        if not isinstance(self.storage, ReadAheadStorage):
            return True
        return self.storage.announce(self.index.resolve(keys), ahead=ahead)

    def end_window(self) -> int:
        """Mark the end of a window, and evict ids according to the tables' retention settings.

        Returns:
            Number of rows freed.
        """
        self._window_starts.append(self.version)
        oldest = max((policy.num_windows for policy in self._retention), default=0)
        self._window_starts = self._window_starts[-(oldest + 1) :]
        self.version += 1
        return self._evict(self._expired()) if self._retention else 0

    def evict(self, keys: Keys) -> int:
        """Evict some ids; they start anew, from their initial values, when they are next seen.

        Ids of direct and hashed tables are reset to their initial values; ids of collisionless tables lose their row
        and their counts. Consumers of changes get tombstones. Memory is released once most rows are free.

        Args:
            keys: Unique keys; keys that were never updated are ignored.

        Returns:
            Number of rows that were freed or reset.
        """
        self.version += 1
        return self._evict(keys)

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """Changes after a version: current values of changed rows, and evicted ids.

        The cost is proportional to the number of changes once a consumer has registered with `acknowledge`. Blocks are
        copies; the group must not change until the last block is taken.

        Args:
            since: Version that the consumer has; 0 for all rows that differ from their initial values.

        Raises:
            HeadraceError: Evictions after `since` are no longer recorded; read everything (`since=0`) instead.
        """
        version = self.version
        removed = (np.empty(0, np.int32), np.empty(0, np.int64)) if since == 0 else self.changelog.removed_since(since)
        if removed is None:
            raise HeadraceError(
                f"table group: changes since version {since} are no longer available, "
                f"expected {self.changelog.removed_from} or later, or 0 for all rows"
            )
        rows = self._changed_rows(since)
        for first in range(0, len(removed[1]), BLOCK_ROWS):
            last = first + BLOCK_ROWS
            yield RowBlock(version, removed[0][first:last], removed[1][first:last], {})
        for first in range(0, len(rows), BLOCK_ROWS):
            if self.version != version:
                raise RuntimeError(
                    f"the table group changed from version {version} to {self.version} between two blocks"
                )
            part = rows[first : first + BLOCK_ROWS]
            yield RowBlock(version, *self.index.owners(part), self._row_columns(part))

    def acknowledge(self, consumer: str, version: int) -> None:
        """Record that a consumer has stored all changes up to a version; a new consumer is registered at that version.

        Raises:
            HeadraceError: The group has not reached that version yet, or there are too many consumers.
        """
        cursors = self.changelog.cursors
        if consumer in WRITERS:
            raise HeadraceError(f"acknowledge: consumer: given {consumer}, the name of a writer of the run itself")
        if not 0 <= version <= self.version:
            raise HeadraceError(
                f"acknowledge: version: given {version}, expected 0 to {self.version}, the table group's"
            )
        if consumer not in cursors and len(cursors) >= MAX_CONSUMERS:
            raise HeadraceError(f"acknowledge: consumer: given a new one, expected at most {MAX_CONSUMERS} consumers")
        self.changelog.acknowledge(consumer, version)

    def delta(self, *, everything: bool = False, consumer: str = CHECKPOINTS) -> Delta:
        """Copies of all changes since `mark_saved`, or of everything if that was never called or if asked for.

        From the first call on, changes are recorded, so that the cost is proportional to the number of changed rows,
        evicted ids and ids whose count changed.

        Args:
            everything: Whether to copy everything.
            consumer: One of `WRITERS`; for publications, the delta has what a reader needs: of `rows` the weights, of
                `whole` the header, and nobody waits.
        """
        since = 0 if everything else self.changelog.cursors.get(consumer, 0)
        if since == 0:  # of no use if the writer fails, which then asks for everything again
            self.mark_saved(self.version, consumer)
        removed = self.changelog.removed_since(since) if since else (np.empty(0, np.int32), np.empty(0, np.int64))
        assert removed is not None
        if consumer == PUBLICATIONS:
            return self._published(since, removed)
        rows = self.storage.fastest_order(self._changed_rows(since))
        tables, ids = self.index.owners(rows)
        return Delta(
            since,
            self.version,
            {"tables": removed[0], "ids": removed[1]},
            {"tables": tables, "ids": ids, **self._row_columns(rows), **self._row_numbers(rows)},
            self._waiting_since(since),
            {"header": self._header().to_column(), **self.changelog.columns(), **self._columns_of_policy()},
        )

    @property
    def num_parts(self) -> int:
        """Number of parts that are saved apart."""
        return 1

    def deltas(self, *, everything: bool = False, consumer: str = CHECKPOINTS) -> list[Delta]:
        """The delta of each part that is saved apart: this group, or each of its partitions."""
        return [self.delta(everything=everything, consumer=consumer)]

    def publish_again(self, parts: Sequence[tuple[Int32s, Int64s]]) -> None:
        """Have the next delta for publications take out some keys and set their rows, if they have any, once more.

        Args:
            parts: Tables and ids [K] of unique keys, of each part.
        """
        ((tables, ids),) = parts
        self._publish_again = _unseen(tables, ids)

    def _published(self, since: int, removed: tuple[Int32s, Int64s]) -> Delta:
        """The delta of what readers need."""
        readable = self._readable_rows(since, removed)
        if since and self._publish_again is not None:
            again = self._publish_again
            rows = self.index.resolve(again)
            readable = np.union1d(readable, rows[self.metadata.versions[rows] > 0])
            removed = unique_keys([removed, (again.tables, again.ids)])
        rows = self.storage.fastest_order(readable)
        tables, ids = self.index.owners(rows)
        weights = self.storage.columns(rows)["weights"]
        nobody: Columns = {"tables": np.empty(0, np.int32), "ids": np.empty(0, np.int64)}
        return Delta(
            since,
            self.version,
            {"tables": removed[0], "ids": removed[1]},
            {"tables": tables, "ids": ids, "weights": weights},
            nobody,
            {"header": self._header().to_column()},
        )

    def mark_saved(self, version: int, consumer: str = CHECKPOINTS) -> None:
        """Record that one of the run's writers, see `WRITERS`, has written all changes up to a version."""
        self.changelog.mark_saved(version, consumer)
        if consumer == PUBLICATIONS:
            self._publish_again = None

    def start_at(self, *, step: int, version: int, window_starts: Sequence[int]) -> None:
        """Continue the numbers of another group, whose rows come later, see `set_states`."""
        self.step, self.version, self._window_starts = step, version, list(window_starts)

    def states(self, keys: Keys) -> KeyStates:
        """Copies of the rows and counts of some unique keys, for another group that goes on with them.

        All tables must be collisionless.
        """
        rows = self.index.resolve(keys)
        places = np.flatnonzero(self.metadata.versions[rows])
        nothing = np.empty(0, dtype=np.int64)
        waiting, sightings, last_seen = nothing, nothing, nothing
        if self._may_wait:
            sightings, last_seen = self.index.waiting(keys)
            waiting = np.flatnonzero(sightings)
            sightings, last_seen = sightings[waiting], last_seen[waiting]
        return KeyStates(places, self._row_columns(rows[places]), waiting, sightings, last_seen)

    def set_states(self, keys: Keys, states: KeyStates, *, step: int, version: int) -> None:
        """Take over the rows and counts of some unique keys from a group that has gone on to a step and a version.

        All tables must be collisionless. Keys that have no state there keep theirs here.
        """
        self.step, self.version = step, version
        with_row, versions = keys.take(states.places), states.columns["version"]
        rows = self.index.allocate(with_row)
        self._reserve(self.index.next_row)
        self.storage.set_columns(rows, states.columns)
        self.metadata.set_columns(rows, states.columns)
        self.index.set_waiting(keys.take(states.waiting), states.sightings, states.last_seen)
        if self._may_wait:
            self._record_waiting(keys)
        for each in np.unique(versions).tolist() if self.changelog.cursors else [version]:
            self.changelog.record(each, rows[versions == each], self.metadata.versions)

    def state_dict(self) -> Columns:
        """Copies of the raw columns of rows that differ from a new group; see `tables.state` for the format."""
        rows = self.storage.fastest_order(self.metadata.updated_rows())
        tables, ids = self.index.owners(rows)
        return {
            "header": self._header().to_column(),
            "rows": rows,
            "tables": tables,
            "ids": ids,
            **self._row_columns(rows),
            **pending_columns(self.index.pending()),
            **self.changelog.columns(),
            **self._columns_of_policy(),
        }

    def load_state_dict(self, state: Columns) -> None:
        """Load a state from `state_dict()`; training continues bit-identically.

        Consumers of changes are restored from the saved group.

        Raises:
            VersionMismatch: The state has a different format.
            CheckpointError: The state was saved with different tables, dimension or seed; the text names both.
        """
        state = upgraded(state)
        saved = TableGroupHeader.read(state)
        saved.check(self._header())
        self._clear()
        rows = state["rows"]
        dynamic = np.flatnonzero(rows >= self.index.num_fixed)
        pending = pending_of(state)
        self.index.restore(rows[dynamic], state["tables"][dynamic], state["ids"][dynamic], pending)
        self._may_wait |= len(pending.ids) > 0  # of a table that did not admit ids at once before
        self._reserve(self.index.next_row)
        self.storage.set_columns(rows, state)
        self.metadata.set_columns(rows, state)
        self.changelog = ChangeLog.restored(saved.version, saved.cursors, saved.removed_from, state)
        self.step, self.version, self._window_starts = saved.step, saved.version, list(saved.window_starts)

    def moved_to(self, make_storage: MakeStorage) -> TableGroup:
        """Move the tables to another storage; this group must not be used afterwards."""
        moved = TableGroup(self.tables, seed=self.seed, make_storage=make_storage)
        moved.load_state_dict(self.state_dict())
        return moved

    def _reserve(self, num_rows: int) -> None:
        """Ensure capacity for `num_rows` rows."""
        if num_rows <= self.storage.capacity:
            return
        capacity = max(num_rows, int(self.storage.capacity * GROWTH))
        self.storage.grow(capacity)
        self.metadata.grow(capacity)

    def _expired(self) -> Keys:
        """Ids of collisionless tables, with and without a row, that retention settings evict."""
        rows = self.metadata.updated_rows()
        rows = rows[rows >= self.index.num_fixed]
        records, pending = self.metadata.records[rows], self.index.pending()
        tables, ids = self.index.owners(rows)
        history = IdHistory(
            tables=np.concatenate([tables, pending.tables]),
            ids=np.concatenate([ids, pending.ids]),
            last_seen=np.concatenate([records["version"], pending.last_seen]),
            sightings=np.concatenate([records["frequency"], pending.sightings]),
        )
        expired = np.zeros(len(history.ids), dtype=np.bool_)
        for policy in self._retention:
            expired |= policy.expired(history, self._window_starts)
        return _unseen(history.tables[expired], history.ids[expired])

    def _evict(self, keys: Keys) -> int:
        rows = self.index.resolve(keys)
        gone = np.flatnonzero(self.metadata.versions[rows])
        self.metadata.clear(rows[gone])
        self.storage.discard(rows[gone])
        self.index.remove(keys.take(np.flatnonzero(self.index.first_rows[keys.tables] < 0)))
        if self._may_wait:
            self._record_waiting(keys)
        self.changelog.record_removed(self.version, keys.tables[gone], keys.ids[gone])
        num_held = self.index.next_row - self.index.num_fixed - self.index.num_free
        if self.index.num_free > max(SHRINK_ABOVE, num_held):
            self._compact()
        return len(gone)

    def _compact(self) -> None:
        """Move rows of collisionless tables together, and release memory."""
        num_fixed, held = self.index.num_fixed, self.index.compact()
        capacity = max(num_fixed + self._first_room, int((num_fixed + len(held)) * GROWTH))
        kept = np.concatenate([np.arange(num_fixed), held])
        self.storage.compact(kept, capacity)
        self.metadata.compact(kept, capacity)
        self.changelog.renumber(kept)

    def _changed_rows(self, since: int) -> Int64s:
        """Rows changed after a version, ascending; from the log if it goes back that far."""
        versions = self.metadata.versions
        rows = self.changelog.rows_since(since, versions) if since else None
        if rows is None:
            rows = self.metadata.updated_rows()
            rows = rows[versions[rows] > since]
        return rows

    def _readable_rows(self, since: int, removed: tuple[Int32s, Int64s]) -> Int64s:
        """Rows that read something else than at a version, ascending, and than rows of removed keys."""
        return self._changed_rows(since)

    def _record_waiting(self, keys: Keys) -> None:
        self.changelog.record_waiting(self.version, keys.tables, keys.ids)

    def _waiting_since(self, since: int) -> Columns:
        """Counts of ids without a row that changed after a version; 0 for ids that no longer wait."""
        if since == 0:
            pending = pending_columns(self.index.pending())
            return {name.removeprefix("pending."): column for name, column in pending.items()}
        tables, ids = self.changelog.waiting_since(since)
        sightings, last_seen = self.index.waiting(_unseen(tables, ids))
        return {"tables": tables, "ids": ids, "sightings": sightings, "last_seen": last_seen}

    def _row_numbers(self, rows: Int64s) -> Columns:
        """The numbers of rows as a column, if decisions of the group depend on them."""
        return {}

    def _columns_of_policy(self) -> Columns:
        """Further columns of a saved group that are not by key."""
        return {}

    def _row_columns(self, rows: Int64s) -> Columns:
        """Copies of weights, optimizer state and metadata of some rows [R]."""
        return {**self.storage.columns(rows), **self.metadata.columns(rows)}

    def _header(self) -> TableGroupHeader:
        cursors, removed_from = self.changelog.saved_cursors()
        return replace(
            TableGroupHeader.of(self.tables, self.seed),
            step=self.step,
            version=self.version,
            window_starts=list(self._window_starts),
            cursors=cursors,
            removed_from=removed_from,
        )


def row_layout(tables: Sequence[TableConfig], seed: int) -> RowLayout:
    """Layout of the rows of a table group.

    Raises:
        ConfigError: Two tables have the same name, or dimensions differ.
    """
    dim = dim_of_tables(tables)
    optimizer = build_optimizer([table.optimizer for table in tables], dim)
    names, scales = [table.name for table in tables], [table.scale for table in tables]
    return RowLayout(dim, optimizer, FirstValues(names, scales, tables[0].rows, seed=seed), seed)


def _unseen(tables: Int32s, ids: Int64s) -> Keys:
    return Keys(tables, ids, np.zeros(len(ids), dtype=np.int32))
