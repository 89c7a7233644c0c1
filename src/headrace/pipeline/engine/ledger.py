"""The memory ledger: bytes of all elements in flight, and what the next piece of work will probably need.

Plain numbers, without locks: whoever calls holds one.
"""

from __future__ import annotations

from collections import deque

__all__ = ["Charge", "Estimator", "Ledger", "RecentMax"]

SAFETY = 1.1
"""Reservations are this much above the largest recent need; elements of one pipeline differ little in size."""

NUM_RECENT = 32
"""Elements an estimate remembers: long enough to see the large ones, short enough to forget a drift."""


class Ledger:
    """Counts bytes against a budget.

    Attributes:
        budget_bytes: What may be charged. It may change at any time, also below what is charged.
        used_bytes: Charged now, including reservations of work in progress.
        peak_bytes: Most ever charged.
    """

    def __init__(self, budget_bytes: int) -> None:
        """An empty ledger."""
        self.budget_bytes = budget_bytes
        self.used_bytes = 0
        self.peak_bytes = 0

    def fits(self, num_bytes: int) -> bool:
        """Whether so much more can be charged."""
        return self.used_bytes + num_bytes <= self.budget_bytes

    def add(self, num_bytes: int) -> None:
        """Charge bytes, or give them back if negative."""
        self.used_bytes += num_bytes
        if self.used_bytes > self.peak_bytes:
            self.peak_bytes = self.used_bytes


class Charge:
    """Bytes charged for one element, shared by all elements that point into its memory."""

    __slots__ = ("_ledger", "_num_owners", "num_bytes")

    def __init__(self, ledger: Ledger, num_bytes: int, reserved_bytes: int = 0) -> None:
        """Charge bytes in place of what was reserved for them."""
        self._ledger = ledger
        self._num_owners = 1
        self.num_bytes = num_bytes
        ledger.add(num_bytes - reserved_bytes)

    def share(self) -> None:
        """One more owner."""
        self._num_owners += 1

    def release(self) -> None:
        """One owner less; the last one gives the bytes back."""
        self._num_owners -= 1
        if self._num_owners == 0:
            self._ledger.add(-self.num_bytes)
        assert self._num_owners >= 0, "a charge was given back twice"


class RecentMax:
    """The largest of the latest numbers."""

    __slots__ = ("_recent", "value")

    def __init__(self) -> None:
        """None seen yet: 0."""
        self._recent: deque[float] = deque(maxlen=NUM_RECENT)
        self.value = 0.0

    def add(self, number: float) -> None:
        """See one more, and forget the oldest."""
        recent = self._recent
        forgotten = recent[0] if len(recent) == NUM_RECENT else -1.0
        recent.append(number)
        if number >= self.value:
            self.value = number
        elif forgotten >= self.value:  # the largest is looked for again only when it is forgotten
            self.value = max(recent)


class Estimator:
    """How many bytes an element becomes, learned from recent ones.

    Attributes:
        is_known: Whether anything was learned; before that, elements are worked on one at a time.
    """

    def __init__(self, first_ratio: float = 1.0, copies: float = 0.0) -> None:
        """Start with a guess.

        Args:
            first_ratio: Output bytes for each input byte.
            copies: Copies of the input that work needs beside it.
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
        """Remember one element; those without bytes teach nothing."""
        if num_bytes_in > 0:
            self._ratios.add(num_bytes_out / num_bytes_in)
            self.is_known = True
