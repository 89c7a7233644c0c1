"""`EmbeddingTable`: id directory, rows, optimizer state and per-row metadata of all spaces of one dimension."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headrace.embeddings.changes.log import BLOCK_ROWS, ChangeLog, RowBlock
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.optimizers import Rounding, build_optimizer
from headrace.embeddings.storage.row_formats import as_tensor
from headrace.embeddings.tables.arena import Arena
from headrace.embeddings.tables.index import CollisionlessDirectory
from headrace.embeddings.tables.state import Columns, TableHeader, pack, row_columns, unpack
from headrace.errors import HeadraceError

__all__ = ["EmbeddingTable"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


MAX_CONSUMERS = 1_000
"""Of changes; each costs a name, but a shard must not be filled with names."""


class EmbeddingTable:
    """Embeddings of several id spaces, in one arena. Kernels inside use all of Numba's threads.

    `read` has no effect, so it may be repeated, done early or dropped, and several threads may read at once; `update`,
    `end_window` and `load_state_dict` need the table to themselves.

    An id of a collisionless space without a row (not yet admitted, evicted, or never seen) reads zeros. Rows of
    direct and hashed spaces always exist and read their first value until they are updated.

    Args:
        spaces: Name -> config. All have one kind of optimizer.
        embedding_dim: Floats per row.
        seed: Of first values and hashes. First values depend on (seed, space's name, id) only.

    Attributes:
        step: Updates so far.
        version: Changes so far: updates, and ends of windows. Each row carries the version that changed it last.
        arena: The arrays. They move when the table grows.
        changelog: Which rows changed at which version, for the consumers that joined it.
    """

    def __init__(self, spaces: Mapping[str, TableConfig], embedding_dim: int, *, seed: int) -> None:
        self.spaces = dict(spaces)
        self.embedding_dim = embedding_dim
        self.seed = seed
        configs = list(self.spaces.values())
        self._optimizer = build_optimizer([config.optimizer for config in configs], embedding_dim)
        self.arena = self._make_arena()
        self.step = self.version = 0
        self.changelog = ChangeLog()
        self._evict_after = np.array([config.evict_after or 0 for config in configs], dtype=np.int64)
        self._window_starts: list[int] = [0]  # the version at which each window still of interest began
        self._directory = CollisionlessDirectory(
            self.arena.first_rows,
            np.array([config.admission_count for config in configs], dtype=np.int64),
            first_row=self.arena.num_fixed,
            capacity=self.arena.capacity - self.arena.num_fixed,
        )

    @property
    def weights(self) -> Tensor:
        """All rows [capacity, dim] in their format, sharing memory with the table until it grows.

        Makes the first values of all rows, which may take a second where there are many.
        """
        self.arena.complete()
        return as_tensor(self.arena.weights, self.arena.row_format)

    @property
    def num_rows(self) -> int:
        """Rows in use: all of direct and hashed spaces, and those that collisionless ids hold."""
        directory = self._directory
        return self.arena.num_fixed - 1 + directory.next_row - directory.first_row - len(directory.free_rows)

    @property
    def num_bytes(self) -> int:
        """Bytes of rows, optimizer state, metadata and directory."""
        arena, directory = self.arena, self._directory
        return arena.num_bytes + directory.entries.nbytes + directory.pending_seen.nbytes

    def lookup(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of unique keys; 0, the zero row, for those without one."""
        return self._directory.resolve(keys.spaces, keys.ids)

    def read(self, keys: Keys) -> Float32s:
        """Rows float32 [U, dim] of unique keys, a copy: what an update of the same keys will find.

        Args:
            keys: Unique keys; ids of direct and hashed spaces are in range. `counts` are the sightings that the update
                will bring, zeros if none follows: an id that it admits reads its first value, any other one without a
                row reads zeros.
        """
        return self.arena.read(self._directory.find(keys.spaces, keys.ids, keys.counts), keys.spaces, keys.ids)

    def update(self, keys: Keys, gradients: Float32s) -> None:
        """One step: count sightings, give rows to ids seen often enough, and optimize.

        Args:
            keys: Unique keys, with their sightings.
            gradients: float32 [U, dim]; those of ids that stay without a row are left out.
        """
        self.step += 1
        self.version += 1
        arena, directory = self.arena, self._directory
        rows = directory.resolve(keys.spaces, keys.ids)
        admitted = directory.admit(keys.spaces, keys.ids, keys.counts, rows, version=self.version)
        if len(admitted):
            arena.reserve(directory.next_row)
            arena.give_rows(rows[admitted], keys.spaces[admitted], keys.ids[admitted])
        arena.initialize_lazily(rows, keys.spaces, keys.ids)
        self._optimize(rows, keys, gradients)
        arena.mark_updated(rows, keys.counts, version=self.version)
        self.changelog.record(self.version, rows, arena.metadata["version"])

    def end_window(self) -> int:
        """Note that a window has ended, and evict ids not seen in the last `evict_after` windows, this one included.

        Returns:
            How many rows were freed.
        """
        self._window_starts.append(self.version)
        longest = int(self._evict_after.max(initial=0))
        self._window_starts = self._window_starts[-(longest + 1) :]
        self.version += 1
        starts, ages = self._window_starts, self._evict_after
        # Space s keeps the ids seen after the start of its last `ages[s]` windows.
        oldest = np.array([starts[-1 - age] if 0 < age < len(starts) else 0 for age in ages], dtype=np.int64)
        if not oldest.any():
            return 0
        arena, directory = self.arena, self._directory
        given_out = directory.next_row - directory.first_row
        last_seen = np.ascontiguousarray(arena.metadata["version"][arena.num_fixed : directory.next_row])
        spaces = arena.dynamic_spaces[:given_out]
        old = np.flatnonzero((spaces >= 0) & (last_seen <= oldest[spaces])) + arena.num_fixed
        directory.evict(last_seen, oldest)
        directory.free(old)
        self.changelog.record_removed(self.version, *arena.owners(old))
        arena.take_rows(old)
        return len(old)

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """What changed after a version: rows as they are now, and ids that lost theirs.

        Costs as much as there is to tell, once a consumer has joined with `acknowledge`. Blocks are copies;
        the table must not change until the last one is taken.

        Args:
            since: The version the consumer has; 0 for all rows that are not as they began.

        Raises:
            HeadraceError: What was evicted after `since` is not known any more; read everything (`since=0`) instead.
        """
        version = self.version
        removed = (np.empty(0, np.int32), np.empty(0, np.int64)) if since == 0 else self.changelog.removed_since(since)
        if removed is None:
            raise HeadraceError(
                f"embedding table: changes since version {since} are not known, expected {self.changelog.removed_from} "
                "or later, or 0 for all rows"
            )
        versions = self.arena.metadata["version"]
        rows = self.changelog.rows_since(since, versions) if since else None
        if rows is None:
            rows = self.arena.live_rows()
            rows = rows[versions[rows] > since]
        for first in range(0, len(removed[1]), BLOCK_ROWS):
            last = first + BLOCK_ROWS
            yield RowBlock(version, removed[0][first:last], removed[1][first:last], {})
        for first in range(0, len(rows), BLOCK_ROWS):
            if self.version != version:
                raise RuntimeError(f"the table went from version {version} to {self.version} between two blocks")
            part = rows[first : first + BLOCK_ROWS]
            yield RowBlock(version, *self.arena.owners(part), row_columns(self.arena, part))

    def acknowledge(self, consumer: str, version: int) -> None:
        """A consumer of changes has everything up to a version, safely; one that is new joins there.

        Raises:
            HeadraceError: The table has not had that version yet, or there are too many consumers.
        """
        cursors = self.changelog.cursors
        if not 0 <= version <= self.version:
            raise HeadraceError(f"acknowledge: version: given {version}, expected 0 to {self.version}, the table's")
        if consumer not in cursors and len(cursors) >= MAX_CONSUMERS:
            raise HeadraceError(
                f"acknowledge: consumer: given a new one, expected one of the {MAX_CONSUMERS} there are"
            )
        self.changelog.acknowledge(consumer, version)

    def state_dict(self) -> Columns:
        """Raw columns (copies) of what differs from a new table; see `table_state` for the format."""
        return pack(self.arena, self._directory, self.changelog, self._header())

    def load_state_dict(self, state: Columns) -> None:
        """Become the table that `state_dict()` was taken from; training goes on bit for bit the same.

        Consumers of changes are those of the saved table.

        Raises:
            VersionMismatch: The state is of another format.
            CheckpointError: It was saved with other spaces, dimension or seed; both sides are in the text.
        """
        saved = TableHeader.read(state)
        saved.check(self._header())
        self.changelog = unpack(state, self.arena, self._directory)
        self.step, self.version, self._window_starts = saved.step, saved.version, list(saved.window_starts)

    def _make_arena(self) -> Arena:
        return Arena(self.spaces, self.embedding_dim, self._optimizer, seed=self.seed)

    def _optimize(self, rows: Int64s, keys: Keys, gradients: Float32s) -> None:
        arena = self.arena
        rounding = Rounding.of(arena.row_format, self.seed, self.step, arena.space_seeds)
        self._optimizer.apply(arena.weights, arena.state, rows, keys.spaces, keys.ids, gradients, self.step, rounding)

    def _header(self) -> TableHeader:
        return replace(
            TableHeader.of(self.spaces, self.embedding_dim, self.seed),
            step=self.step,
            version=self.version,
            window_starts=list(self._window_starts),
            cursors=dict(self.changelog.cursors),
            removed_from=self.changelog.removed_from,
        )
