"""Where rows live: two calls, so that a model does not know whether its rows are in this process or elsewhere."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.table import EmbeddingTable

__all__ = ["EmbeddingStore", "LocalStore"]

Float32s = npt.NDArray[np.float32]


class EmbeddingStore(Protocol):
    """Rows by unique (space, id). Spaces are numbered in the order of the job's config, the same for everyone.

    Attributes:
        step: The last step that was pushed.
    """

    @property
    def step(self) -> int: ...

    def pull(self, keys: Keys, *, admit: bool = False, after_step: int | None = None) -> Future[Float32s]:
        """Rows float32 [U, dim] of unique keys, a copy.

        Args:
            keys: Unique within the call; `keys.counts` are sightings.
            admit: Whether this is training: ids are counted and may get rows.
            after_step: The step whose updates the rows must have; None for `step`, the last one pushed. A caller that
                knows that later steps do not touch these keys may ask for less, and wait less.
        """

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """Make step `step` + 1 with gradients float32 [U, dim], summed per key; the optimizer lives beside the rows."""


class LocalStore:
    """Rows in this process: calls do their work at once and return a finished future."""

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.table.step

    def pull(self, keys: Keys, *, admit: bool = False, after_step: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.pull`; the rows have the updates of all steps."""
        pulled: Future[Float32s] = Future()
        pulled.set_result(self.table.pull(keys, admit=admit))
        return pulled

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """See `EmbeddingStore.push`."""
        self.table.push(keys, gradients)
        pushed: Future[None] = Future()
        pushed.set_result(None)
        return pushed
