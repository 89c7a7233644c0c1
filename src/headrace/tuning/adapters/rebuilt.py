"""`TunedRebuilt`: a loader that cannot change while it runs, but can begin at any batch: for instance `tf.data`.

The parallelism of a tf.data stage is read when its iterator is made, so a change needs another iterator. Its position
can be saved (`tf.train.Checkpoint`), but saving holds Python's lock while it waits for calls in progress, so that a
pipeline with a `py_function` stands still for ever (seen with TensorFlow 2.21). So the user's function says how to
begin at a batch, and the new iterator is started a few batches ahead while the old one goes on.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from headrace.tuning.adapters.one_stage import MAX_WORKERS, OneStageJob

__all__ = ["TunedRebuilt"]

AHEAD_S = 0.5
"""The new loader begins behind the batches the old one gives in this time, in which it can start."""
MAX_AHEAD = 64


class TunedRebuilt(OneStageJob):
    """Iterates over what a function makes; a `Job`, so a `Tuner` can drive it.

    def make(workers: int, start: int):
        names = tf.data.Dataset.from_tensor_slices(files[start:])          # one file a batch
        return names.map(read, num_parallel_calls=workers).prefetch(2)

    loader = TunedRebuilt(make)
    with Tuner(loader, "auto"):
        for batch in loader:
            ...
    """

    def __init__(
        self,
        make: Callable[[int, int], Iterable[Any]],
        *,
        workers: int = 1,
        max_workers: int = MAX_WORKERS,
        **options: Any,
    ) -> None:
        """Prepare; nothing is made yet.

        Args:
            make: Given workers and the number of a batch, gives an iterable of the batches from there on; the batches
                must be the same for any number of workers. What `dataset.skip(start)` leaves out is still computed,
                so it is better to leave out files or numbers of rows at the source.
            workers: Where tuning begins.
            max_workers: Most workers.
            options: Of `OneStageJob`.
        """
        super().__init__("dataset", workers, max_workers=max_workers, **options)
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        """All batches, in order."""
        return self._count(self._timed_cpu(self._batches()))

    def _batches(self) -> Iterator[Any]:
        number, workers = 0, self.workers
        batches = iter(self._make(workers, 0))
        successor: _Successor | None = None
        began = time.monotonic()
        try:
            while True:
                if successor is None and self.workers != workers:
                    rate, workers = number / max(time.monotonic() - began, 1e-9), self.workers
                    successor = _Successor(self._make, workers, number + min(int(rate * AHEAD_S) + 1, MAX_AHEAD))
                if successor is not None and number == successor.start:
                    batches, successor = successor.take(), None
                try:
                    batch = next(batches)
                except StopIteration:
                    return
                number += 1
                yield batch
        finally:
            if successor is not None:
                successor.join()

    def _timed_cpu(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Count the CPU time of all threads but the consumer's: the nearest to what the loader itself uses."""
        process, thread = time.process_time(), time.thread_time()
        for batch in batches:
            yield batch
            now, own = time.process_time(), time.thread_time()
            self.totals.cpu_s += max((now - process) - (own - thread), 0.0)
            process, thread = now, own


class _Successor:
    """Another loader, from a batch on, which begins to work in the background."""

    def __init__(self, make: Callable[[int, int], Iterable[Any]], workers: int, start: int) -> None:
        self.start = start
        self._first: list[Any] = []
        self._rest: Iterator[Any] = iter(())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._begin, args=(make, workers), name="headrace-rebuild", daemon=True)
        self._thread.start()

    def take(self) -> Iterator[Any]:
        """Its batches, once the first is there.

        Raises:
            Exception: What making it raised.
        """
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._chain()

    def join(self) -> None:
        """Wait until it has begun."""
        self._thread.join()

    def _chain(self) -> Iterator[Any]:
        yield from self._first
        yield from self._rest

    def _begin(self, make: Callable[[int, int], Iterable[Any]], workers: int) -> None:
        try:
            self._rest = iter(make(workers, self.start))
            self._first = [batch for _, batch in zip(range(1), self._rest, strict=False)]
        except Exception as error:
            self._failure = error
