"""`Element`: what travels through a pipeline: rows, the position after them, and what became of rows that were lost."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Protocol

import pyarrow as pa

__all__ = ["NO_LOSSES", "Account", "Cut", "Element", "Hold", "Losses", "Token"]

Token = tuple[Any, ...]
"""A position in the stream, from which everything behind it can be rebuilt.

Of the source: `(item, piece)`, the next piece to read. Behind a cutter (see `cutting.py`):
`(token of the stream before it, rows of the next element already used, number of the next element)`.
"""


class Hold(Protocol):
    """A share in bytes charged to the memory ledger, given back once."""

    def share(self) -> None:
        """One more owner."""
        ...

    def release(self) -> None:
        """One owner less; the last one gives the bytes back."""
        ...


@dataclass(frozen=True, slots=True)
class Losses:
    """Rows that were read but do not reach the consumer, and why.

    Attributes:
        num_filtered: Rows the user's functions took out; negative where they added some.
        num_dropped: Bad rows dropped, and rows left over by `drop_last`.
        rejects: Bad rows to quarantine, each batch with `REJECT_SCHEMA`.
    """

    num_filtered: int = 0
    num_dropped: int = 0
    rejects: tuple[pa.RecordBatch, ...] = ()

    def __add__(self, other: Losses) -> Losses:
        if self is NO_LOSSES:
            return other
        if other is NO_LOSSES:
            return self
        return Losses(
            self.num_filtered + other.num_filtered, self.num_dropped + other.num_dropped, self.rejects + other.rejects
        )

    @property
    def num_quarantined(self) -> int:
        """Bad rows to quarantine."""
        return sum(batch.num_rows for batch in self.rejects)

    @property
    def num_rows(self) -> int:
        """All rows lost."""
        return self.num_filtered + self.num_dropped + self.num_quarantined


NO_LOSSES = Losses()


@dataclass(frozen=True, slots=True)
class Cut:
    """Rows `start` to `stop` of an element's record batch, not copied yet."""

    rows: pa.RecordBatch
    start: int
    stop: int

    @property
    def num_rows(self) -> int:
        """Rows in the cut."""
        return self.stop - self.start


@dataclass(slots=True, eq=False)
class Element:
    """A unit of work: some rows in one form or another.

    Attributes:
        payload: A `pa.RecordBatch`; behind a cutter a list of `Cut`s; behind a transform a `Batch`; None without rows.
        num_rows: Rows in the payload.
        key: Which element of its stream this is; together with seed and epoch it seeds random numbers.
        before: Position from which this element and all behind it can be rebuilt.
        after: The same for the element behind it.
        losses: Rows lost on the way that are accounted together with this element.
        items: Source items its rows come from, for error texts.
        num_bytes: Bytes of the payload as charged to the ledger.
        holds: Shares in what other elements were charged, where the payload still points into their memory.
    """

    payload: Any
    num_rows: int
    key: tuple[int, ...]
    before: Token
    after: Token
    losses: Losses = NO_LOSSES
    items: tuple[int, ...] = ()
    num_bytes: int = 0
    holds: tuple[Hold, ...] = ()

    def release(self) -> None:
        """Give back what is held for the payload."""
        for hold in self.holds:
            hold.release()
        self.holds = ()


@dataclass(slots=True)
class Account:
    """What delivered batches read and lost; `num_read = num_delivered + filtered + dropped + quarantined`, always.

    Good rows count as read when they are delivered, bad ones with the batch that holds the last good row of their
    piece, so the sum of all accounts is the same however often a job is stopped and resumed.

    Attributes:
        num_read: Rows looked at.
        num_delivered: Rows in the delivered batches.
        num_filtered: Rows the user's functions took out; negative where they added some.
        num_dropped: Bad rows dropped, and rows left over by `drop_last`.
        rejects: Bad rows to quarantine, each batch with `REJECT_SCHEMA`.
    """

    num_read: int = 0
    num_delivered: int = 0
    num_filtered: int = 0
    num_dropped: int = 0
    rejects: list[pa.RecordBatch] = field(default_factory=list)

    @property
    def num_quarantined(self) -> int:
        """Bad rows to quarantine."""
        return sum(batch.num_rows for batch in self.rejects)

    def add(self, num_delivered: int, losses: Losses) -> None:
        """Count one delivered element."""
        self.num_read += num_delivered + losses.num_rows
        self.num_delivered += num_delivered
        self.num_filtered += losses.num_filtered
        self.num_dropped += losses.num_dropped
        self.rejects.extend(losses.rejects)


def merge_items(groups: Iterable[tuple[int, ...]]) -> tuple[int, ...]:
    """All items named in the groups, each once, in order."""
    return tuple(sorted({item for group in groups for item in group}))
