"""The memory ledger: counts the bytes of all elements in flight and estimates the needs of new work.

Not thread-safe: callers hold a lock.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Charge", "Estimator", "Ledger", "RecentMax"]

SAFETY = 1.1
"""Margin of a reservation over the largest recent need; elements of one pipeline differ little in size."""

NUM_RECENT = 32
"""Number of recent elements in an estimate: enough to include large ones, few enough to follow a drift."""


class Ledger:
    """Counts bytes against a budget.

    Attributes:
        budget_bytes: Maximum bytes to charge. It may change at any time, even to less than is charged now.
        used_bytes: Bytes charged now, including reservations of work in progress.
        peak_bytes: Maximum bytes ever charged.
    """

    def __init__(self, budget_bytes: int) -> None:
        """Create an empty ledger."""
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.peak_bytes = 0

    def fits(self, num_bytes: int) -> bool:
        """Whether this many more bytes can be charged."""
        return self.used_bytes + num_bytes <= self.budget_bytes

    def add(self, num_bytes: int) -> None:
        """Charge bytes, or return them if negative."""
        self.used_bytes += num_bytes
        if self.used_bytes > self.peak_bytes:
            self.peak_bytes = self.used_bytes


class Charge:
    """Bytes charged for one element, shared by all elements that point into its memory."""

    __slots__ = ("_ledger", "_num_owners", "num_bytes")

    def __init__(self, ledger: Ledger, num_bytes: int, reserved_bytes: int = 0) -> None:
        """Charge bytes in place of their reservation."""
        self._ledger = ledger
        self._num_owners = 1
        self.num_bytes = num_bytes
        ledger.add(num_bytes - reserved_bytes)

    def share(self) -> None:
        """Add an owner."""
        self._num_owners += 1

    def release(self) -> None:
        """Remove an owner; the last one returns the bytes."""
        self._num_owners -= 1
        if self._num_owners == 0:
            self._ledger.add(-self.num_bytes)
        assert self._num_owners >= 0, "a charge was released twice"


class RecentMax:
    """The maximum of the most recent numbers."""

    __slots__ = ("_recent", "value")

    def __init__(self) -> None:
        """Start at 0."""
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self.value = 0.0

    def add(self, number: float) -> None:
        """Add a number and forget the oldest."""
        recent = self._recent
        forgotten = recent[0] if len(recent) == NUM_RECENT else -1.0
        recent.append(number)
        if number >= self.value:
            self.value = number
        elif forgotten >= self.value:  # recompute only when the maximum itself is forgotten
            self.value = max(recent)


class Estimator:
    """Estimates the result bytes of an element from recent ones.

    Attributes:
        is_known: Whether any result was seen; before that, elements are processed one at a time.
    """

    def __init__(self, first_ratio: float = 1.0, copies: float = 0.0) -> None:
        """Start with an initial guess.

        Args:
            first_ratio: Guessed output bytes per input byte.
            copies: Extra copies of the input that the work needs.
        """
        self._ratios = RecentMax()
        self._first_ratio = first_ratio
        self._copies = copies
        self.is_known = False

    def reserve(self, num_bytes_in: float) -> int:
        """Bytes to reserve for work on an element of this size."""
        ratio = self._ratios.value if self.is_known else self._first_ratio
        return int(num_bytes_in * (ratio * SAFETY + self._copies))

    def learn(self, num_bytes_in: int, num_bytes_out: int) -> None:
        """Learn from one element; elements without bytes are ignored."""
        if num_bytes_in > 0:
            self._ratios.add(num_bytes_out / num_bytes_in)
            self.is_known = True
