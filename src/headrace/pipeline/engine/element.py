"""`Element`: what travels through a pipeline: rows, the position after them, and what became of rows that were lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Protocol

from headrace.pipeline.engine.position import Position
from headrace.pipeline.row_stats import NO_ROWS, RowStats

__all__ = ["Element", "Hold", "merge_splits"]


class Hold(Protocol):
    """A share in bytes charged to the memory ledger, given back once."""

    def share(self) -> None:
        """One more owner."""
        ...

    def release(self) -> None:
        """One owner less; the last one gives the bytes back."""
        ...


@dataclass(slots=True, eq=False)
class Element:
    """A unit of work: some rows in one form or another.

    Attributes:
        payload: A `pa.RecordBatch`; behind a rebatcher a list of `RowSlice`s; behind a transform a `Batch`; None
            without rows.
        num_rows: Rows in the payload.
        key: Which element of its stream this is; together with seed and epoch it seeds random numbers.
        before: Position from which this element and all behind it can be rebuilt.
        after: The same for the element behind it.
        losses: Rows lost on the way that are accounted together with this element; none of them used.
        splits: Splits of the source that its rows come from, for error texts.
        num_bytes: Bytes of the payload as charged to the ledger.
        holds: Shares in what other elements were charged, where the payload still points into their memory.
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

    def release(self) -> None:
        """Give back what is held for the payload."""
        for hold in self.holds:
            hold.release()
        self.holds = ()


def merge_splits(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """All splits named in the groups, each once, in order."""
    return tuple(sorted({split for group in groups for split in group}))
