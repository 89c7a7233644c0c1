"""`PublishedTable`: a small publisher, for tests of those who read publications."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.changes.chains import Chains
from headrace.embeddings.changes.growing_chains import GrowingChains
from headrace.embeddings.changes.segments import write_delta
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.publishing.publications import DENSE, Publication, PublicationFolder

__all__ = ["GROUP", "PublishedTable", "every_key", "keys_of"]

GROUP, NUM_IDS = "items", 80


class PublishedTable:
    """Publishes a small table that is trained and loses ids.

    Args:
        path: Folder of the publications.
        keep: Number of newest versions to keep there.
        seed: Seed of ids and gradients.
        lineage: Name of the run.
        dim: Dimension of its rows.
        base_every: Versions after which segments become a base, or auto.

    Attributes:
        folder: The folder.
        version: The newest version.
        expected: For each version, the rows of `every_key` at the trainer.
    """

    def __init__(
        self, path: Path, *, keep: int = 100, seed: int = 0, lineage: str = "a", dim: int = 2, base_every: Any = "auto"
    ) -> None:
        self.group = TableGroup([TableConfig(name="items", embedding_dim=dim)], seed=3)
        self.folder = PublicationFolder(path, keep=keep)
        self.expected: dict[int, Any] = {}
        self._chains = GrowingChains(self.folder.segments, base_every)
        self._rng, self._lineage, self._dim, self.version = np.random.default_rng(seed), lineage, dim, 0

    def publish(self, count: int = 1) -> None:
        """Train, and publish some versions."""
        for _ in range(count):
            self.version += 1
            ids = np.sort(self._rng.choice(NUM_IDS, 20, replace=False))
            gradients = self._rng.standard_normal((20, self._dim)).astype(np.float32)
            self.group.update(Keys(np.zeros(20, np.int32), ids, np.ones(20, np.int32)), gradients)
            self.group.evict(keys_of(np.sort(self._rng.choice(NUM_IDS, 5, replace=False))))
            self._write()
            self.expected[self.version] = self.group.read(every_key()).copy()

    def _write(self) -> None:
        version, segments = self.version, self.folder.segments
        name = segments.new_name(version, version)

        def write(place: Path) -> Publication:
            delta = self.group.delta(everything=not self._chains.has_base(GROUP))
            entry = write_delta(segments.place(GROUP) / name, delta, first=version)
            self.group.mark_saved(self.group.version)
            save_file({"bias": np.full(1, version, np.float32)}, place / DENSE)
            chains: Chains = self._chains.continued({GROUP: [entry]})
            header = TableGroupHeader.read(delta.whole)
            return Publication(version, self._lineage, version, 1.5 * version, 20, {GROUP: (header,)}, chains)

        self._chains.has_written(self.folder.add(version, write).chains)
        segments.forget_name(name)
        while plan := self._chains.next_merge():
            self._chains.replace(plan[0], plan[1], self._chains.merge(plan[0], plan[1]))


def keys_of(ids: Any) -> Keys:
    """Keys of ids of the table, without counts."""
    return Keys(np.zeros(len(ids), np.int32), np.asarray(ids, np.int64), np.zeros(len(ids), np.int32))


def every_key() -> Keys:
    """All ids that are ever trained, and some others."""
    return keys_of(np.arange(NUM_IDS + 5))
