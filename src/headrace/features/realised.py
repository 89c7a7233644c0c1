"""`Realised`: how much a plan has really saved by computing once what repeats."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import Any

__all__ = ["Realised", "Savings"]


@dataclass(frozen=True)
class Savings:
    """What a plan computed, against what it would have without deduplication.

    Attributes:
        num_rows: Rows of the batches.
        num_values: Features times the rows they were computed for.
        num_plain_values: Features times rows.
        num_ids: Ids written into batches.
        num_plain_ids: Ids that all rows have.
        num_bytes: Of the batches.
        num_plain_bytes: That batches of plain rows would have.
    """

    num_rows: int = 0
    num_values: int = 0
    num_plain_values: int = 0
    num_ids: int = 0
    num_plain_ids: int = 0
    num_bytes: int = 0
    num_plain_bytes: int = 0

    def __add__(self, more: Savings) -> Savings:
        return self._joined(more, 1)

    def __sub__(self, before: Savings) -> Savings:
        return self._joined(before, -1)

    def _joined(self, other: Savings, sign: int) -> Savings:
        return Savings(
            self.num_rows + sign * other.num_rows,
            self.num_values + sign * other.num_values,
            self.num_plain_values + sign * other.num_plain_values,
            self.num_ids + sign * other.num_ids,
            self.num_plain_ids + sign * other.num_plain_ids,
            self.num_bytes + sign * other.num_bytes,
            self.num_plain_bytes + sign * other.num_plain_bytes,
        )

    @property
    def values_factor(self) -> float:
        """Features delivered per feature computed."""
        return self.num_plain_values / self.num_values if self.num_values else 1.0

    @property
    def ids_factor(self) -> float:
        """Ids of all rows per id written."""
        return self.num_plain_ids / self.num_ids if self.num_ids else 1.0


class Realised:
    """Adds up savings; any thread may add."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._savings = Savings()

    def add(self, more: Savings) -> None:
        """Count some of what was computed."""
        with self._lock:
            self._savings += more

    @property
    def savings(self) -> Savings:
        """All so far."""
        with self._lock:
            return self._savings

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return Realised, ()
