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
    """

    num_rows: int = 0
    num_values: int = 0
    num_plain_values: int = 0
    num_ids: int = 0
    num_plain_ids: int = 0

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

    def add(self, num_values: int, num_plain_values: int, num_ids: int, num_plain_ids: int, num_rows: int = 0) -> None:
        """Count some features of a batch, and its rows where they are the first of it."""
        self._add(Savings(num_rows, num_values, num_plain_values, num_ids, num_plain_ids))

    def add_batch(self, num_rows: int) -> None:
        """Count the rows of a batch."""
        self._add(Savings(num_rows))

    @property
    def savings(self) -> Savings:
        """All so far."""
        with self._lock:
            return self._savings

    def _add(self, more: Savings) -> None:
        with self._lock:
            now = self._savings
            self._savings = Savings(
                now.num_rows + more.num_rows,
                now.num_values + more.num_values,
                now.num_plain_values + more.num_plain_values,
                now.num_ids + more.num_ids,
                now.num_plain_ids + more.num_plain_ids,
            )

    def __reduce__(self) -> tuple[Any, tuple[()]]:
        return Realised, ()
