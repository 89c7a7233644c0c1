"""`Batcher`: collects requests, has them scored together in threads, and refuses what cannot be answered in time."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from headrace.errors import HeadraceError
from headrace.serving.capacity import FIRST_BATCHES, FIRST_ROWS

__all__ = ["Batcher", "Overloaded", "Waiting"]


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
    """A bounded queue and the threads that empty it. Its limits may be changed at any time.

    Args:
        score: Answers requests, all of them, and returns the number of their rows; it may raise.
        num_threads: Threads that score; 0 if `step` is called instead.
        prepare: Called once in each thread.
        clock: Seconds, ascending.

    Attributes:
        num_threads: Threads that score.
        most_rows: Maximum rows of a batch; a larger request is a batch of its own.
        most_waiting_rows: Maximum rows that wait or are scored; a request is refused if there are more with it.
        num_shed: Requests that were refused.
        num_batches, num_rows, busy_s: Batches that were scored, their rows, and the seconds that they took.
    """

    def __init__(
        self,
        score: Callable[[Sequence[W]], int],
        *,
        num_threads: int = 1,
        prepare: Callable[[], object] = lambda: None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self._score, self._prepare, self._clock = score, prepare, clock
        self.most_rows, self.most_waiting_rows = FIRST_ROWS, FIRST_BATCHES * FIRST_ROWS
        self.num_shed = self.num_batches = self.num_rows = 0
        self.busy_s = 0.0
        self._queue: deque[W] = deque()
        self._waiting_rows = 0
        self._num_scoring = 0
        self._scoring_rows = 0
        self._is_closed = False
        self._changed = threading.Condition()
        self.num_threads = num_threads
        self._wake: Callable[[], object] | None = None
        self._threads = [
            threading.Thread(target=self._run, name=f"score-{number}", daemon=True) for number in range(num_threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def wake_with(self, wake: Callable[[], object]) -> None:
        """Without threads: have a function called when there is something to do, which has `step` called soon."""
        self._wake = wake

    def step(self) -> bool:
        """Score one batch in the calling thread, if there is one; returns whether more requests wait."""
        if batch := self._take(wait=False):
            self._score_one(batch)
        return bool(self._queue)

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
            before = self._waiting_rows + self._scoring_rows
            limit = self.most_waiting_rows
            if (
                not self.num_threads
            ):  # what is added now has waited for the batch before, which was as large as the next
                limit //= 2
            if before and before + request.num_rows > limit:
                self.num_shed += 1
                raise Overloaded(
                    f"overloaded: {before:,} rows come first, and only {limit:,} could be answered in time"
                )
            self._queue.append(request)
            self._waiting_rows += request.num_rows
            self._changed.notify()
        if self._wake is not None:
            self._wake()

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests, and wait for those that are there; returns whether all were answered."""
        with self._changed:
            self._is_closed = True
            self._changed.notify_all()
            return self._changed.wait_for(lambda: not self._queue and not self._num_scoring, timeout_s)

    def _run(self) -> None:
        self._prepare()
        while batch := self._take():
            self._score_one(batch)

    def _score_one(self, batch: list[W]) -> None:
        began, taken = self._clock(), sum(request.num_rows for request in batch)
        num_rows = 0
        try:
            num_rows = self._score(batch)
        except Exception as error:  # an error of one batch must not end the thread
            for request in batch:
                request.give_up(error)
        self._note(taken, num_rows, self._clock() - began)

    def _take(self, *, wait: bool = True) -> list[W]:
        """The next requests to score together; empty when there will be no more, or there are none now."""
        with self._changed:
            if wait:
                self._changed.wait_for(lambda: self._queue or self._is_closed)
            batch: list[W] = []
            num_rows, most = 0, self.most_rows
            while self._queue and (not batch or num_rows + self._queue[0].num_rows <= most):
                batch.append(self._queue.popleft())
                num_rows += batch[-1].num_rows
            self._waiting_rows -= num_rows
            self._num_scoring += bool(batch)
            self._scoring_rows += num_rows
            return batch

    def _note(self, taken_rows: int, num_rows: int, seconds: float) -> None:
        with self._changed:
            self._num_scoring -= 1
            self._scoring_rows -= taken_rows
            self.num_batches += 1
            self.num_rows += num_rows
            self.busy_s += seconds
            self._changed.notify_all()
