"""`EmbeddingStore`: the interface that hides from models whether rows are in this process or in shards."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["EmbeddingStore", "LocalStore"]

Float32s = npt.NDArray[np.float32]


class EmbeddingStore(Protocol):
    """Rows by unique (table, id). Tables are numbered in the order of the job's config in all processes.

    Attributes:
        step: Number of the last requested update.
    """

    @property
    def step(self) -> int: ...

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """Read a copy of the rows of unique keys, float32 [U, dim], as the next update of these keys finds them.

        Reads have no side effects: a read may be repeated, early, cached or dropped.

        Args:
            keys: Keys, unique within the call; `keys.counts` are the counts of the update that follows, or zeros.
            after: The rows must include the updates up to this step; None for `step`, the last requested one. If later
                steps do not change these keys, an earlier step shortens the wait.
        """

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """Apply step `step` + 1: count ids, allocate rows for ids seen often enough, and run the optimizer.

        Args:
            keys: Keys, unique within the call; `keys.counts` are their occurrences in the batch.
            gradients: float32 [U, dim], summed per key. The optimizer runs where the rows are.
            num_rows: Rows of the batch. With several trainers, the gradients of a step are averaged over the rows of
                all. Optimizers with `reduction: sum` multiply by them.
            lr_factor: Factor of the learning rates in this step; the same for all trainers.
        """

    def evict(self, keys: Keys) -> Future[int]:
        """Evict some ids between the last requested step and the next; they start anew when they are next seen.

        See `TableGroup.evict`. Later reads find the ids evicted, even without waiting for the future; rows of these ids
        that were read before are outdated. With several trainers, each calls this after the same step, with the ids
        that it evicts, possibly none; the union is evicted.

        Args:
            keys: Keys, unique within the call, with tables ascending; `keys.counts` are ignored.

        Returns:
            Number of rows that were freed or reset to their initial values.
        """

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """Rows that changed after a version, as of one later version; see `TableGroup.changes`."""

    def acknowledge(self, consumer: str, version: int) -> None:
        """Record that a consumer of changes has all of them up to a version; see `TableGroup.acknowledge`."""


class LocalStore:
    """Store of rows in this process: calls run immediately and return a finished future."""

    def __init__(self, table_group: TableGroup) -> None:
        self.table_group = table_group

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.table_group.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; the rows include the updates of all steps."""
        rows: Future[Float32s] = Future()
        rows.set_result(self.table_group.read(keys))
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """See `EmbeddingStore.update`."""
        self.table_group.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)
        updated: Future[None] = Future()
        updated.set_result(None)
        return updated

    def evict(self, keys: Keys) -> Future[int]:
        """See `EmbeddingStore.evict`."""
        freed: Future[int] = Future()
        freed.set_result(self.table_group.evict(keys))
        return freed

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`."""
        return self.table_group.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `EmbeddingStore.acknowledge`."""
        self.table_group.acknowledge(consumer, version)
