"""`RowStats`: how many of the rows read were used, filtered, dropped and quarantined; the counts always add up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from headrace.errors import CheckpointError

__all__ = ["NO_ROWS", "RowStats"]


@dataclass(frozen=True, slots=True)
class RowStats:
    """Counts of rows by outcome: `num_read = num_used + num_filtered + num_dropped + num_quarantined`.

    Good rows count as read when they are delivered; bad rows are counted with the batch that holds the last good row of
    their source batch. So the sum over all batches does not depend on how often a job is stopped and resumed.

    Attributes:
        num_used: Rows delivered, for training or scoring.
        num_filtered: Rows removed by user functions; negative if they added rows.
        num_dropped: Bad rows dropped, and rows of a last batch dropped by `drop_last`.
        num_quarantined: Bad rows quarantined.
        rejects: The quarantined rows, as batches with `REJECT_SCHEMA`; empty if only counts are kept.
    """

    num_used: int = 0
    num_filtered: int = 0
    num_dropped: int = 0
    num_quarantined: int = 0
    rejects: tuple[pa.RecordBatch, ...] = ()

    @classmethod
    def quarantine(cls, rejects: pa.RecordBatch) -> RowStats:
        """Stats of a batch of quarantined rows."""
        return cls(num_quarantined=rejects.num_rows, rejects=(rejects,))

    @property
    def num_read(self) -> int:
        """Rows read: the sum of all counts."""
        return self.num_used + self.num_filtered + self.num_dropped + self.num_quarantined

    @property
    def num_bad(self) -> int:
        """Rows dropped or quarantined."""
        return self.num_dropped + self.num_quarantined

    def __add__(self, other: RowStats) -> RowStats:
        if self is NO_ROWS:
            return other
        if other is NO_ROWS:
            return self
        return RowStats(
            self.num_used + other.num_used,
            self.num_filtered + other.num_filtered,
            self.num_dropped + other.num_dropped,
            self.num_quarantined + other.num_quarantined,
            self.rejects + other.rejects,
        )

    def counts(self) -> RowStats:
        """The same counts without the rejected rows."""
        return replace(self, rejects=()) if self.rejects else self

    def to_dict(self) -> dict[str, int]:
        """The counts by name, as stored in checkpoints and `metrics.jsonl`."""
        return {
            "read": self.num_read,
            "used": self.num_used,
            "filtered": self.num_filtered,
            "dropped": self.num_dropped,
            "quarantined": self.num_quarantined,
        }

    @classmethod
    def from_dict(cls, counts: Mapping[str, Any]) -> RowStats:
        """Load the result of `to_dict`.

        Raises:
            CheckpointError: A count is missing, or the counts do not add up.
        """
        try:
            stats = cls(
                num_used=int(counts["used"]),
                num_filtered=int(counts["filtered"]),
                num_dropped=int(counts["dropped"]),
                num_quarantined=int(counts["quarantined"]),
            )
            read = int(counts["read"])
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"row counts: not readable: {error!r}") from error
        if stats.num_read != read:
            raise CheckpointError(
                f"row counts: {read:,} rows read, but {stats.num_read:,} accounted for: {dict(counts)}"
            )
        return stats


NO_ROWS = RowStats()
