"""`TunedRebuilt`: tunes a loader that cannot change while it runs but can start at any batch, such as `tf.data`.

tf.data reads the parallelism of a stage when its iterator is created, so a change needs a new iterator. The position
could be saved with `tf.train.Checkpoint`, but that holds the GIL while it waits for calls in progress, so a pipeline
with a `py_function` deadlocks (seen with TensorFlow 2.21). So a user function creates a loader that starts at a given
batch, and the new iterator starts a few batches ahead while the old one continues.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from headrace.tuning.adapters.one_stage import MAX_WORKERS, OneStageJob

__all__ = ["TunedRebuilt"]

AHEAD_S = 0.5
"""Time for the new loader to start: it begins after the batches that the old one delivers meanwhile."""
MAX_AHEAD = 64


class TunedRebuilt(OneStageJob):
    """Iterates over loaders made by a function, and is a `Job` that a `Tuner` can drive.

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
        """Prepare without creating a loader yet.

        Args:
            make: Called with the number of workers and a batch number; returns an iterable of the batches from that one
                on. The batches must not depend on the number of workers. `dataset.skip(start)` still computes the
                skipped batches, so prefer to skip files or rows at the source.
            workers: Initial number of workers.
            max_workers: Maximum number of workers.
            options: Arguments of `OneStageJob`.
        """
        super().__init__("dataset", workers, max_workers=max_workers, **options)
        self._make = make

    def __iter__(self) -> Iterator[Any]:
        """Iterate over all batches, in order."""
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
        """Count the CPU time of all threads except the consumer's, the best estimate of the loader's own."""
        process, thread = time.process_time(), time.thread_time()
        for batch in batches:
            yield batch
            now, own = time.process_time(), time.thread_time()
            self.totals.cpu_s += max((now - process) - (own - thread), 0.0)
            process, thread = now, own


class _Successor:
    """A loader starting at a given batch, which starts in the background."""

    def __init__(self, make: Callable[[int, int], Iterable[Any]], workers: int, start: int) -> None:
        self.start = start
        self._first: list[Any] = []
        self._rest: Iterator[Any] = iter(())
        self._failure: BaseException | None = None
        self._thread = threading.Thread(target=self._begin, args=(make, workers), name="headrace-rebuild", daemon=True)
        self._thread.start()

    def take(self) -> Iterator[Any]:
        """Return its batches once the first is ready.

        Raises:
            Exception: The loader could not be created.
        """
        self.join()
        if self._failure is not None:
            raise self._failure
        return self._chain()

    def join(self) -> None:
        """Wait until it has started."""
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
