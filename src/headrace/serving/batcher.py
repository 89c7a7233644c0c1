"""`Batcher`: collects requests, has them scored together in threads, and refuses what cannot be answered in time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from headrace.errors import HeadraceError
from headrace.serving.capacity import Capacity, Cost, plan_capacity

__all__ = ["Batcher", "Overloaded", "Waiting"]

PLAN_EVERY = 16
"""Batches after which limits are decided anew."""


class Overloaded(HeadraceError):
    """A request is refused, because it could not be answered in time."""


class Waiting(Protocol):
    """A request that waits.

    Attributes:
        num_rows: Its rows, or an estimate of them.
    """

    num_rows: int

    def give_up(self, error: Exception) -> None:
        """Answer with an error."""


W = TypeVar("W", bound=Waiting)


class Batcher(Generic[W]):
    """A bounded queue and the threads that empty it.

    Args:
        score: Answers requests, all of them, and returns the number of their rows; it may raise.
        promise_s: Seconds within which 99 % of requests are to be answered.
        most_rows: Upper limit of the rows of a batch.
        num_threads: Threads that score.
        prepare: Called once in each thread.
        clock: Seconds, ascending.

    Attributes:
        capacity: The limits at present.
        cost: The measured cost of batches.
        num_shed: Requests that were refused.
        num_batches, num_rows: Batches that were scored, and their rows.
    """

    def __init__(
        self,
        score: Callable[[Sequence[W]], int],
        *,
        promise_s: float,
        most_rows: int,
        num_threads: int = 1,
        prepare: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._score, self._promise_s, self._most_rows = score, promise_s, most_rows
        self._prepare, self._clock = prepare, clock
        self.cost = Cost()
        self.capacity: Capacity = plan_capacity(self.cost, promise_s, most_rows=most_rows)
        self.num_shed = self.num_batches = self.num_rows = 0
        self._queue: deque[W] = deque()
        self._waiting_rows = 0
        self._num_scoring = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self._threads = [
            threading.Thread(target=self._run, name=f"score-{number}", daemon=True) for number in range(num_threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    @property
    def waiting_rows(self) -> int:
        """Rows of requests that wait."""
        return self._waiting_rows

    def add(self, request: W) -> None:
        """Add a request; it is answered later.

        Raises:
            Overloaded: It could not be answered in time, or the server is stopping.
        """
        with self._changed:
            if self._is_closed:
                raise Overloaded("the server is stopping")
            limit = self.capacity.most_waiting_rows * len(self._threads)
            if self._queue and self._waiting_rows + request.num_rows > limit:
                self.num_shed += 1
                raise Overloaded(
                    f"overloaded: {self._waiting_rows:,} rows wait, and {limit:,} can be answered within "
                    f"{1e3 * self._promise_s:g} ms"
                )
            self._queue.append(request)
            self._waiting_rows += request.num_rows
            self._changed.notify()

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, and wait for those that are there; returns whether all were answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._num_scoring, timeout_s)

    def _run(self) -> None:
        self._prepare()
        while batch := self._take():
            began = self._clock()
            num_rows = 0
            try:
                num_rows = self._score(batch)
            except Exception as error:  # an error of one batch must not end the thread
                for request in batch:
                    request.give_up(error)
            self._note(num_rows, self._clock() - began)

    def _take(self) -> list[W]:
        """The next requests to score together; empty when there will be no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._is_closed)
            batch: list[W] = []
            num_rows, most = 0, self.capacity.most_rows
            while self._queue and (not batch or num_rows + self._queue[0].num_rows <= most):
                batch.append(self._queue.popleft())
                num_rows += batch[-1].num_rows
            self._waiting_rows -= num_rows
            self._num_scoring += bool(batch)
            return batch

    def _note(self, num_rows: int, seconds: float) -> None:
        with self._changed:
            self._num_scoring -= 1
            if num_rows:
                self.cost = self.cost.add(num_rows, seconds)
                self.num_batches += 1
                self.num_rows += num_rows
                if self.num_batches % PLAN_EVERY == 0 or self.num_batches < PLAN_EVERY:
                    self.capacity = plan_capacity(self.cost, self._promise_s, most_rows=self._most_rows)
            self._changed.notify_all()
