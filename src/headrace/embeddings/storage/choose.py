"""Chooses the storage of a table group."""

from __future__ import annotations

from dataclasses import dataclass, replace

from headrace.embeddings.storage.config import StorageConfig
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.protocol import MakeStorage, RowLayout, RowStorage
from headrace.embeddings.storage.tiered import TieredStorage

__all__ = ["choose_storage", "divided"]

SMALL_ROW_BYTES = 16
"""Smaller rows, such as the weights of a linear part, stay in memory: index and metadata take more."""


@dataclass(frozen=True)
class ConfiguredStorage:
    """Creates storages of a table group with rows in files, a `MakeStorage`.

    Attributes:
        config: Where rows are.
        num_groups: Number of storages that divide the memory.
    """

    config: StorageConfig
    num_groups: int = 1

    def __call__(self, layout: RowLayout, capacity: int) -> RowStorage:
        """See `MakeStorage`."""
        config = self.config
        if layout.row_bytes < SMALL_ROW_BYTES:
            return HostStorage(layout, capacity)
        assert config.path is not None
        if config.kind == "mapped":
            return MappedStorage(layout, capacity, folder=config.path)
        memory_bytes = config.memory_bytes // self.num_groups
        return TieredStorage(layout, capacity, folder=config.path, memory_bytes=memory_bytes)


def choose_storage(config: StorageConfig) -> MakeStorage:
    """Return a function that creates the storage of a table group."""
    return HostStorage if config.kind == "memory" else ConfiguredStorage(config)


def divided(make_storage: MakeStorage, num_groups: int) -> MakeStorage:
    """The same storage for several groups that divide the memory of one."""
    return replace(make_storage, num_groups=num_groups) if isinstance(make_storage, ConfiguredStorage) else make_storage
