"""`RowCounts`: what became of the rows that were read; the counts always add up."""

from __future__ import annotations

from dataclasses import asdict, dataclass

__all__ = ["RowCounts"]


@dataclass(frozen=True)
class RowCounts:
    """Rows of a window or a run: `read = used + filtered + dropped + quarantined`.

    Attributes:
        read: Rows looked at.
        used: Rows trained on (or scored).
        filtered: Rows the user's functions took out; negative where they added some.
        dropped: Bad rows dropped.
        quarantined: Bad rows written to the quarantine.
    """

    read: int = 0
    used: int = 0
    filtered: int = 0
    dropped: int = 0
    quarantined: int = 0

    def __post_init__(self) -> None:
        assert self.read == self.used + self.filtered + self.dropped + self.quarantined, self

    def __add__(self, other: RowCounts) -> RowCounts:
        return RowCounts(
            self.read + other.read,
            self.used + other.used,
            self.filtered + other.filtered,
            self.dropped + other.dropped,
            self.quarantined + other.quarantined,
        )

    @property
    def bad(self) -> int:
        """Bad rows, dropped or quarantined."""
        return self.dropped + self.quarantined

    def to_dict(self) -> dict[str, int]:
        """The counts by name."""
        return asdict(self)
