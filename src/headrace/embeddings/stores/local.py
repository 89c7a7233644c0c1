"""Where rows live: four calls, so that a model does not know whether its rows are in this process or elsewhere."""

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
    """Rows by unique (table, id). Tables are numbered in the order of the job's config, the same for everyone.

    Attributes:
        step: The last update that was handed in.
    """

    @property
    def step(self) -> int: ...

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """Rows float32 [U, dim] of unique keys, a copy, as an update of the same keys will find them.

        Has no effect, ever: a read may be repeated, early, cached or dropped.

        Args:
            keys: Unique within the call; `keys.counts` are those of the update that follows, zeros if none does.
            after: The step whose updates the rows must have; None for `step`, the last one handed in. A caller that
                knows that later steps do not touch these keys may ask for less, and wait less.
        """

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1) -> Future[None]:
        """Make step `step` + 1: count ids, give rows to those seen often enough, optimize.

        Args:
            keys: Unique within the call; `keys.counts` is how often each was seen in the batch.
            gradients: float32 [U, dim], summed per key; the optimizer lives beside the rows.
            num_rows: Rows of the batch. Where several trainers make a step, gradients are averaged over all their rows.
        """

    def evict(self, keys: Keys) -> Future[int]:
        """Forget some ids after the step handed in last and before the next: they begin anew when they are next seen.

        See `TableGroup.evict`. A read that is handed in later finds them forgotten, whether or not the future was
        waited for; what was read before is out of date for these ids. Where several trainers make a step, each calls
        this after the same step, with the ids that it wants forgotten, perhaps none; their union is forgotten.

        Args:
            keys: Unique within the call, tables ascending; `keys.counts` are not looked at.

        Returns:
            How many rows were freed, or became as they began.
        """

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """What changed after a version, consistent at one later version; see `TableGroup.changes`."""

    def acknowledge(self, consumer: str, version: int) -> None:
        """A consumer of changes has everything up to a version, or joins there; see `TableGroup.acknowledge`."""


class LocalStore:
    """Rows in this process: calls do their work at once and return a finished future."""

    def __init__(self, table_group: TableGroup) -> None:
        self.table_group = table_group

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.table_group.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; the rows have the updates of all steps."""
        rows: Future[Float32s] = Future()
        rows.set_result(self.table_group.read(keys))
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1) -> Future[None]:
        """See `EmbeddingStore.update`."""
        self.table_group.update(keys, gradients)
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
