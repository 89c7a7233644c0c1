"""`GrowingChains`: the chains of the newest checkpoint or publication, to which segments are added and merged."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Literal

from headrace.embeddings.changes.chains import Chain, Chains, plan_merge, replaced
from headrace.embeddings.changes.merging import merge_segments
from headrace.embeddings.changes.segment_folder import SegmentFolder
from headrace.embeddings.changes.segments import SegmentEntry

__all__ = ["GrowingChains"]


class GrowingChains:
    """The chains of the newest version. Not thread-safe, except that `merge` may run beside everything else.

    Args:
        segments: Folder of the segments.
        base_every: Versions after which all segments become a new base; `auto` by their bytes, see `plan_merge`.

    Attributes:
        newest: The chains of the newest version, with merges since.
        needs_base: Table groups whose chain must not be continued.
    """

    def __init__(self, segments: SegmentFolder, base_every: int | Literal["auto"]) -> None:
        self.segments = segments
        self.newest: Chains = {}
        self.needs_base: set[str] = set()
        self._base_every = base_every

    def follow(self, chains: Mapping[str, tuple[Chain, ...]], needs_base: Iterable[str] = ()) -> None:
        """Continue the chains of a version that was loaded, except for some table groups."""
        self.newest, self.needs_base = dict(chains), set(needs_base)

    def has_base(self, table_group: str) -> bool:
        """Whether a delta can continue a chain; otherwise the next one needs everything."""
        return table_group in self.newest and table_group not in self.needs_base

    def continued(self, entries: Mapping[str, Sequence[SegmentEntry]]) -> Chains:
        """The chains with a new segment for each part of each table group."""
        return {name: self._with(name, parts) for name, parts in entries.items()}

    def _with(self, table_group: str, entries: Sequence[SegmentEntry]) -> tuple[Chain, ...]:
        if all(entry.is_base for entry in entries):
            return tuple((entry,) for entry in entries)
        before = zip(self.newest[table_group], entries, strict=True)
        return tuple((entry,) if entry.is_base else (*chain, entry) for chain, entry in before)

    def has_written(self, chains: Chains) -> int:
        """Record that a version with these chains is complete; returns the bytes of its own segments."""
        self.newest = chains
        self.needs_base -= {name for name, parts in chains.items() if all(len(chain) == 1 for chain in parts)}
        return sum(chain[-1].bytes for parts in chains.values() for chain in parts)

    def next_merge(self) -> tuple[str, Chain, str] | None:
        """The next segments to merge: table group, segments and reason; None if there are none."""
        for name, parts in self.newest.items():
            for chain in () if name in self.needs_base else parts:
                plan = plan_merge(chain, self._base_every)
                if plan is not None:
                    return name, chain[plan.first : plan.last], plan.reason
        return None

    def merge(self, table_group: str, merged: Chain) -> SegmentEntry:
        """Write some adjacent segments as one, whose name is kept until `segments.forget_name`.

        Raises:
            TornCheckpoint: A segment is damaged.
            CheckpointError: The file cannot be written.
        """
        name = self.segments.new_name(merged[0].first, merged[-1].last)
        try:
            return merge_segments(self.segments.place(table_group), merged, name)
        except BaseException:
            self.segments.forget_name(name)
            raise

    def replace(self, table_group: str, merged: Chain, by: SegmentEntry) -> None:
        """Name a segment in place of those that were merged into it."""
        parts = tuple(replaced(chain, merged, by) for chain in self.newest.get(table_group, ()))
        self.newest = self.newest | {table_group: parts}
