"""`Element`: the unit that travels through a pipeline: rows, their position, and counts of lost rows."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.pipeline.engine.position import Position
from headrace.pipeline.row_stats import NO_ROWS, RowStats

__all__ = ["Element", "Hold", "merge_splits"]


class Hold(Protocol):
    """A reference-counted charge to the memory ledger."""

    def share(self) -> None:
        """Add an owner."""
        ...

    def release(self) -> None:
        """Remove an owner; the last one returns the bytes."""
        ...


@dataclass(slots=True, eq=False)
class Element:
    """A unit of work: some rows at some stage of processing.

    Attributes:
        payload: A `pa.RecordBatch`; after a rebatcher a list of `RowSlice`s; after a transform a `Batch`; None without
            rows.
        num_rows: Rows in the payload.
        key: Identifies the element within its stream; with seed and epoch it seeds random numbers.
        before: Position from which this element and all later ones can be rebuilt.
        after: Position from which the next element and all later ones can be rebuilt.
        losses: Counts of lost rows that are reported together with this element.
        splits: Splits of the segment's source that its rows come from, for error messages.
        num_bytes: Bytes of the payload, as charged to the ledger.
        holds: Shared charges of other elements whose memory the payload still points into.
        ends_segment: Whether it is the marker that ends a segment; it has no rows.
    """

    payload: Any
    num_rows: int
    key: tuple[int, ...]
    before: Position
    after: Position
    losses: RowStats = NO_ROWS
    splits: tuple[int, ...] = ()
    num_bytes: int = 0
    holds: tuple[Hold, ...] = ()
    ends_segment: bool = False

    @property
    def segment(self) -> int:
        """The segment of the element."""
        return self.before.segment

    def release(self) -> None:
        """Release all charges held for the payload."""
        for hold in self.holds:
            hold.release()
        self.holds = ()


def merge_splits(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """The distinct splits of all groups, in order."""
    return tuple(sorted({split for group in groups for split in group}))
