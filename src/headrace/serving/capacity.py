"""How many rows to score at a time, and which requests to refuse, so that answers come within a promised time.

A batch of n rows is taken to last `per_batch_s + n * per_row_s`, which is measured while serving. While one batch is
scored, requests gather for the next: nobody waits for a batch to fill up, and a batch grows as load does. Two limits
keep the promise:

- A request that arrives waits for the batch that is being scored and for those before its own, so a batch may take at
  most half of the promise.
- A request is refused at once if, by this estimate, it could not be answered in time; one that can only be late helps
  nobody, and makes those behind it late too.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Capacity", "Cost", "plan_capacity"]

FORGET = 0.98
"""Weight of what was measured before, per batch: about the last 50 batches count."""
BATCH_SHARE = 0.5
"""Part of the promise that a batch may take."""
SHED_SHARE = 0.9
"""Part of the promise that the estimate for a new request may take."""
FIRST_ROWS = 64
"""Rows of a batch before anything was measured."""


@dataclass(frozen=True)
class Cost:
    """A running least-squares fit of the seconds of a batch over its rows.

    Attributes:
        weight: Sum of weights.
        rows, seconds: Weighted sums.
        rows_squared, rows_seconds: Weighted sums of products.
    """

    weight: float = 0.0
    rows: float = 0.0
    seconds: float = 0.0
    rows_squared: float = 0.0
    rows_seconds: float = 0.0

    def add(self, rows: int, seconds: float) -> Cost:
        """With another batch."""
        return replace(
            self,
            weight=FORGET * self.weight + 1.0,
            rows=FORGET * self.rows + rows,
            seconds=FORGET * self.seconds + seconds,
            rows_squared=FORGET * self.rows_squared + rows * rows,
            rows_seconds=FORGET * self.rows_seconds + rows * seconds,
        )

    @property
    def per_row_s(self) -> float:
        """Seconds per row, at least 0."""
        spread = self.weight * self.rows_squared - self.rows * self.rows
        if spread <= 1e-9 * self.weight * self.rows_squared:  # all batches had the same size
            return self.seconds / self.rows if self.rows else 0.0
        return max((self.weight * self.rows_seconds - self.rows * self.seconds) / spread, 0.0)

    @property
    def per_batch_s(self) -> float:
        """Seconds per batch beside those of its rows, at least 0."""
        return max((self.seconds - self.per_row_s * self.rows) / self.weight, 0.0) if self.weight else 0.0


@dataclass(frozen=True)
class Capacity:
    """What can be promised at present.

    Attributes:
        most_rows: Maximum rows of a batch.
        most_waiting_rows: Rows that may wait; a request is refused if there are more before it.
        reason: Why, in one line.
    """

    most_rows: int
    most_waiting_rows: int
    reason: str


def plan_capacity(cost: Cost, promise_s: float, *, most_rows: int) -> Capacity:
    """Decide the limits.

    Args:
        cost: What batches took.
        promise_s: Seconds within which 99 % of requests are to be answered.
        most_rows: Upper limit of the rows of a batch.
    """
    if not cost.weight or not cost.per_row_s:
        rows = min(FIRST_ROWS, most_rows)
        return Capacity(rows, 4 * rows, "nothing was measured yet")
    per_batch, per_row = cost.per_batch_s, cost.per_row_s
    rows = max(1, min(most_rows, int((BATCH_SHARE * promise_s - per_batch) / per_row)))
    batch_s = per_batch + rows * per_row
    # A new request waits for the batch that is being scored, then for those before it, and for its own.
    batches = (SHED_SHARE * promise_s - batch_s) / batch_s
    waiting = max(rows, int(batches * rows))
    reason = (
        f"{1e3 * per_batch:.2f} ms per batch and {1e6 * per_row:.1f} us per row: {rows:,} rows take "
        f"{1e3 * batch_s:.1f} of {1e3 * promise_s:g} ms"
    )
    return Capacity(rows, waiting, reason)
