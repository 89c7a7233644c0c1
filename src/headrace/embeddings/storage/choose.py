"""Chooses the storage of a table group."""

from __future__ import annotations

from headrace.embeddings.storage.config import StorageConfig
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.protocol import MakeStorage, RowLayout, RowStorage
from headrace.embeddings.storage.tiered import TieredStorage

__all__ = ["choose_storage"]

SMALL_ROW_BYTES = 16
"""Smaller rows, such as the weights of a linear part, stay in memory: index and metadata take more."""


def choose_storage(config: StorageConfig) -> MakeStorage:
    """Return a function that creates the storage of a table group."""
    if config.kind == "memory":
        return HostStorage

    def make(layout: RowLayout, capacity: int) -> RowStorage:
        if layout.row_bytes < SMALL_ROW_BYTES:
            return HostStorage(layout, capacity)
        assert config.path is not None
        if config.kind == "mapped":
            return MappedStorage(layout, capacity, folder=config.path)
        return TieredStorage(layout, capacity, folder=config.path, memory_bytes=config.memory_bytes)

    return make
