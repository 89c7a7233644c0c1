"""Which segments of a chain a reader lacks that has an earlier version."""

from __future__ import annotations

from collections.abc import Callable

from headrace.embeddings.changes.chains import Chain
from headrace.embeddings.changes.segments import SegmentEntry

__all__ = ["segments_since"]

ChainAt = Callable[[int], Chain | None]
"""Gives the chain of a version, which may have the parts of a segment that later versions merged; None if unknown."""


def segments_since(chain: Chain, since: int, chain_at: ChainAt) -> Chain | None:
    """The segments, oldest first, that lead from one version to a later one; None if only a base does.

    A merged segment may begin before the reader's version and end after it. The chain of the version with which it ends
    has its parts; those that the reader lacks are taken in its place, if they have fewer bytes.

    Args:
        chain: Chain of the later version.
        since: The earlier version.
        chain_at: Gives the chain of a version between.
    """
    base = chain[0]
    after = tuple(entry for entry in chain[1:] if entry.last > since)
    if base.last > since:
        parts = _parts_of(base, since, chain_at)
        return None if parts is None else (*parts, *after)
    if not after or after[0].first > since:
        return after
    parts = _parts_of(after[0], since, chain_at)
    if parts is None or _num_bytes(parts) >= after[0].bytes:
        return after
    return (*parts, *after[1:])


def _parts_of(merged: SegmentEntry, since: int, chain_at: ChainAt) -> Chain | None:
    if merged.first == merged.last:
        return None
    before = chain_at(merged.last)
    if before is None or before[-1].last != merged.last:
        return None
    if any(entry.last - entry.first >= merged.last - merged.first for entry in before if entry.last > since):
        return None  # these are no parts of it
    return segments_since(before, since, chain_at)


def _num_bytes(chain: Chain) -> int:
    return sum(entry.bytes for entry in chain)
