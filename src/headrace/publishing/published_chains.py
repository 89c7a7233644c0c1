"""`PublishedChains`: chains of publications, whose merged segments are named by later versions: files never change."""

from __future__ import annotations

import threading
from typing import Literal

from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.growing_chains import GrowingChains
from headrace.embeddings.changes.segment_folder import SegmentFolder
from headrace.embeddings.changes.segments import SegmentEntry

__all__ = ["PublishedChains"]


class PublishedChains(GrowingChains):
    """The chains with which the next version begins. `merge` may run beside everything else.

    Attributes:
        naming: To be held from when chains are read for a version until `has_written`.
    """

    def __init__(self, segments: SegmentFolder, base_every: int | Literal["auto"]) -> None:
        super().__init__(segments, base_every)
        self.naming = threading.Lock()
        self._merged: set[str] = set()  # segments that no version names yet

    def has_written(self, chains: Chains) -> int:
        """See `GrowingChains`; what was merged before is named now, or was merged again."""
        for name in self._merged:
            self.segments.forget_name(name)
        self._merged.clear()
        return super().has_written(chains)

    def merge(self, table_group: str, merged: Chain) -> SegmentEntry:
        """Write some adjacent segments as one, which takes their place from the next version on.

        Raises:
            TornCheckpoint: A segment is damaged.
            CheckpointError: The file cannot be written.
        """
        entry = super().merge(table_group, merged)
        with self.naming:
            self.replace(table_group, merged, entry)
            self._merged.add(entry.name)
        return entry
