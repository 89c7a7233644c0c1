"""How many rows to score at a time, and which requests to refuse, so that answers come within a promised time.

A batch of n rows is taken to last `per_batch_s + n * per_row_s`, which is measured while serving. While one batch is
scored, requests gather for the next: nobody waits for a batch to fill up, and a batch grows as load does. Two limits
keep the promise:

- A request that arrives waits for the batch that is being scored and for those before its own, so a batch may take at
  most half of the promise.
- A request is refused at once if, by this estimate, it could not be answered in time behind the rows that are being
  scored and those that wait; one that can only be late helps nobody, and makes those behind it late too.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Capacity", "Cost", "plan_capacity"]

FORGET = 0.97
"""Weight of what was measured before, per window: about the last thirty count."""
BATCH_SHARE = 0.5
"""Part of the promise that a batch may take."""
SHED_SHARE = 0.9
"""Part of the promise that the estimate for a new request may take."""
LEAST_WAITING = 32
"""Rows that may always wait: where the promise cannot be kept anyway, it is no reason to refuse."""
MIN_SPREAD = 1e-3
"""Squared coefficient of variation of rows per batch, about, below which sizes are the same."""
FIRST_ROWS = 64
"""Rows of a batch before anything was measured ..."""
FIRST_BATCHES = 16
"""... and such batches that may wait."""
MOST_WAITING = 1 << 16
"""Rows that may wait at most, however cheap they seem."""


@dataclass(frozen=True)
class Cost:
    """A running least-squares fit of the seconds of some batches over their number and their rows.

    Attributes:
        batches_squared, rows_squared, batches_rows, batches_seconds, rows_seconds: Weighted sums of products.
    """

    batches_squared: float = 0.0
    rows_squared: float = 0.0
    batches_rows: float = 0.0
    batches_seconds: float = 0.0
    rows_seconds: float = 0.0

    def add(self, batches: int, rows: int, seconds: float) -> Cost:
        """With further batches."""
        return Cost(
            FORGET * self.batches_squared + batches * batches,
            FORGET * self.rows_squared + rows * rows,
            FORGET * self.batches_rows + batches * rows,
            FORGET * self.batches_seconds + batches * seconds,
            FORGET * self.rows_seconds + rows * seconds,
        )

    def fit(self) -> tuple[float, float]:
        """Seconds per batch and per row, at least 0; both 0 before anything was added.

        Batches of about the same size do not tell the two apart. Then all counts as the cost of a batch, so that
        batches may grow, and it shows.
        """
        if not self.rows_squared:
            return 0.0, 0.0
        spread = self.batches_squared * self.rows_squared - self.batches_rows**2
        if spread <= MIN_SPREAD * self.batches_squared * self.rows_squared:
            return max(self.batches_seconds / self.batches_squared, 0.0), 0.0
        per_row = (self.batches_squared * self.rows_seconds - self.batches_rows * self.batches_seconds) / spread
        per_batch = (self.rows_squared * self.batches_seconds - self.batches_rows * self.rows_seconds) / spread
        if per_row <= 0:
            return max(self.batches_seconds / self.batches_squared, 0.0), 0.0
        return (per_batch, per_row) if per_batch >= 0 else (0.0, self.rows_seconds / self.rows_squared)


@dataclass(frozen=True)
class Capacity:
    """What can be promised at present.

    Attributes:
        most_rows: Maximum rows of a batch.
        most_waiting_rows: Rows that may wait or be scored; a request is refused if there are more with it.
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
    per_batch, per_row = cost.fit()
    if not per_batch and not per_row:
        rows = min(FIRST_ROWS, most_rows)
        return Capacity(rows, FIRST_BATCHES * rows, "nothing was measured yet")
    rows = int((BATCH_SHARE * promise_s - per_batch) / max(per_row, 1e-9) + 1e-6)
    rows = max(1, min(most_rows, rows))
    batch_s = per_batch + rows * per_row
    waiting = max(rows, int((SHED_SHARE * promise_s - 2 * per_batch) / max(per_row, 1e-9)), LEAST_WAITING)
    waiting = min(waiting, MOST_WAITING)
    reason = (
        f"{1e3 * per_batch:.2f} ms per batch and {1e6 * per_row:.1f} us per row: {rows:,} rows take "
        f"{1e3 * batch_s:.1f} of {1e3 * promise_s:g} ms"
    )
    return Capacity(rows, waiting, reason)
