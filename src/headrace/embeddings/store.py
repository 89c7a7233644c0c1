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
    """Rows by unique (space, id). Spaces are numbered in the order of the job's config, the same for everyone."""

    def pull(self, keys: Keys, *, admit: bool = False) -> Future[Float32s]:
        """Rows float32 [U, dim] of unique keys, a copy.

        Args:
            keys: Unique within the call; `keys.counts` are sightings.
            admit: Whether this is training: ids are counted and may get rows.
        """

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """Apply gradients float32 [U, dim], summed per key, with the optimizer that lives beside the rows."""


class LocalStore:
    """Rows in this process: calls do their work at once and return a finished future."""

    def __init__(self, table: EmbeddingTable) -> None:
        self.table = table

    def pull(self, keys: Keys, *, admit: bool = False) -> Future[Float32s]:
        """See `EmbeddingStore.pull`."""
        pulled: Future[Float32s] = Future()
        pulled.set_result(self.table.pull(keys, admit=admit))
        return pulled

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """See `EmbeddingStore.push`."""
        self.table.push(keys, gradients)
        pushed: Future[None] = Future()
        pushed.set_result(None)
        return pushed
