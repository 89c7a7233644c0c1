"""`EmbeddingTable`: id directory, rows, optimizer state and per-row metadata of all spaces of one dimension."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
from torch import Tensor

from headrace.embeddings.arena import Arena
from headrace.embeddings.config import TableConfig
from headrace.embeddings.directory import CollisionlessDirectory
from headrace.embeddings.keys import Keys
from headrace.embeddings.optimizers import Rounding, build_optimizer
from headrace.embeddings.row_formats import as_tensor
from headrace.embeddings.table_state import Columns, TableHeader, pack, unpack

__all__ = ["EmbeddingTable"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

MAX_CONSUMERS = 31  # bits of the metadata's `dirty`


class EmbeddingTable:
    """Embeddings of several id spaces, in one arena. Not thread-safe; kernels inside use all of Numba's threads.

    An id of a collisionless space without a row (not yet admitted, evicted, or never seen) reads zeros. Rows of
    direct and hashed spaces always exist and read their first value until they are updated.

    Args:
        spaces: Name -> config. All have one kind of optimizer.
        embedding_dim: Floats per row.
        seed: Of first values and hashes. First values depend on (seed, space's name, id) only.

    Attributes:
        step: Updates so far.
        arena: The arrays. They move when the table grows.
    """

    def __init__(self, spaces: Mapping[str, TableConfig], embedding_dim: int, *, seed: int) -> None:
        self.spaces = dict(spaces)
        self.embedding_dim = embedding_dim
        self.seed = seed
        configs = list(self.spaces.values())
        self._optimizer = build_optimizer([config.optimizer for config in configs], embedding_dim)
        self.arena = self._make_arena()
        self.step = 0
        self._evict_after = np.array([config.evict_after or 0 for config in configs], dtype=np.int64)
        self._window_steps: list[int] = [0]  # the step at which each window still of interest began
        self._consumers: dict[str, int] = {}
        self._evictions = 0
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

    def lookup(self, keys: Keys, *, admit: bool) -> Int64s:
        """Rows int64 [U] of unique keys; 0, the zero row, for those without one.

        Args:
            keys: Unique keys; ids of direct and hashed spaces are in range.
            admit: Count this as a sighting: ids may get rows, frequency and last-seen change.
        """
        rows = self._directory.resolve(keys.spaces, keys.ids)
        if admit:
            admitted = self._directory.admit(keys.spaces, keys.ids, keys.counts, rows, step=self.step)
            if len(admitted):
                self.arena.reserve(self._directory.next_row)
                self.arena.begin_rows(rows[admitted], keys.spaces[admitted], keys.ids[admitted])
                self.arena.mark_updated(rows[admitted], step=self.step, consumer_bits=self._all_consumer_bits)
            self.arena.begin_untouched(rows, keys.spaces, keys.ids)
            self.arena.mark_seen(rows, keys.counts, step=self.step)
        return rows

    def pull(self, keys: Keys, *, admit: bool) -> Float32s:
        """Rows float32 [U, dim] of unique keys, a copy; see `lookup`."""
        rows = self.lookup(keys, admit=admit)
        if not admit:
            return self.arena.read(rows, keys.spaces, keys.ids)
        keys.resolved = (self, self._evictions, rows)  # which have begun, so `push` need not see to that
        return self.arena.gather(rows)

    def push(self, keys: Keys, gradients: Float32s) -> None:
        """One optimizer step: gradients float32 [U, dim] of unique keys; those without a row are left out."""
        owner, evictions, rows = keys.resolved or (None, 0, np.empty(0, dtype=np.int64))
        if owner is not self or evictions != self._evictions:
            rows = self._directory.resolve(keys.spaces, keys.ids)
            self.arena.begin_untouched(rows, keys.spaces, keys.ids)
        self.step += 1
        self._update(rows, keys.spaces, gradients)
        self.arena.mark_updated(rows, step=self.step, consumer_bits=self._all_consumer_bits)

    def end_window(self) -> int:
        """Note that a window has ended, and evict ids not seen in the last `evict_after` windows, this one included.

        Returns:
            How many rows were freed.
        """
        self._window_steps.append(self.step)
        longest = int(self._evict_after.max(initial=0))
        self._window_steps = self._window_steps[-(longest + 1) :]
        if longest == 0:
            return 0
        steps, ages = self._window_steps, self._evict_after
        # A window's sightings carry steps from its first on; space s keeps those of its last `ages[s]` windows.
        oldest = np.array([steps[-1 - age] if 0 < age < len(steps) else 0 for age in ages], dtype=np.int64)
        if not oldest.any():
            return 0
        arena, directory = self.arena, self._directory
        given_out = directory.next_row - directory.first_row
        last_seen = np.ascontiguousarray(arena.metadata["last_seen"][arena.num_fixed : directory.next_row])
        spaces = arena.dynamic_spaces[:given_out]
        old = np.flatnonzero((spaces >= 0) & (last_seen < oldest[spaces])) + arena.num_fixed
        directory.evict(last_seen, oldest)
        directory.free(old)
        arena.end_rows(old, consumer_bits=self._all_consumer_bits)
        self._evictions += 1
        return len(old)

    def add_consumer(self, name: str) -> None:
        """Begin to keep track of rows that change, for someone who will copy them (a delta checkpoint, a publisher).

        Rows that already differ from their first values count as changed.
        """
        if name in self._consumers:
            return
        assert len(self._consumers) < MAX_CONSUMERS, f"at most {MAX_CONSUMERS} consumers"
        bit = next(bit for bit in range(MAX_CONSUMERS) if bit not in self._consumers.values())
        self._consumers[name] = bit
        self.arena.metadata["dirty"] &= ~(1 << bit)
        self.arena.metadata["dirty"][self.arena.live_rows()] |= 1 << bit

    def dirty_rows(self, consumer: str) -> Int64s:
        """Rows, ascending, that changed since the consumer's `clear_dirty`; pass them to `state_dict`.

        Rows that lost their id are among them (space -1), so the columns of these rows, put over an older full state,
        give the state of now.
        """
        return np.flatnonzero(self.arena.metadata["dirty"] & (1 << self._consumers[consumer]))

    def clear_dirty(self, consumer: str) -> None:
        """The consumer has seen all rows as they are now."""
        self.arena.metadata["dirty"] &= ~(1 << self._consumers[consumer])

    def state_dict(self, rows: Int64s | None = None) -> Columns:
        """Raw columns (copies) of what differs from a new table; see `table_state` for the format.

        Args:
            rows: Only these, such as `dirty_rows` gives; None for all live rows.
        """
        return pack(
            self.arena,
            self._directory,
            TableHeader.of(self.spaces, self.embedding_dim, self.seed, self.step, self._window_steps),
            self.arena.live_rows() if rows is None else rows,
        )

    def load_state_dict(self, state: Columns) -> None:
        """Become the table that `state_dict()` (of all rows) was taken from; training goes on bit for bit the same.

        Consumers stay; to them every row of the state is new.

        Raises:
            VersionMismatch: The state is of another format.
            CheckpointError: It was saved with other spaces, dimension or seed; both sides are in the text.
        """
        saved = TableHeader.read(state)
        saved.check(TableHeader.of(self.spaces, self.embedding_dim, self.seed, 0, []))
        unpack(state, self.arena, self._directory)
        self.step, self._window_steps = saved.step, list(saved.window_steps)
        self._evictions += 1
        self.arena.metadata["dirty"][self.arena.live_rows()] = self._all_consumer_bits

    def _make_arena(self) -> Arena:
        return Arena(self.spaces, self.embedding_dim, self._optimizer, seed=self.seed)

    def _update(self, rows: Int64s, spaces: Int32s, gradients: Float32s) -> None:
        arena = self.arena
        rounding = Rounding.of(arena.row_format, self.seed, self.step)
        self._optimizer.apply(arena.weights, arena.slots, rows, spaces, gradients, self.step, rounding)

    def take_over(self, other: EmbeddingTable) -> None:
        """Become another table of the same config: rows, clocks, and consumers with what they have not yet seen."""
        self.load_state_dict(other.state_dict())
        self._consumers = dict(other._consumers)
        self.arena.metadata["dirty"][: other.arena.capacity] = other.arena.metadata["dirty"][: self.arena.capacity]

    @property
    def _all_consumer_bits(self) -> int:
        return sum(1 << bit for bit in self._consumers.values())
