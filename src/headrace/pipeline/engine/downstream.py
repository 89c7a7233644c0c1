"""`DownstreamStage`: work that the consumer of a pipeline does itself, counted with the pipeline's own stages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Protocol

from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder
from headrace.pipeline.engine.tuners import Tunable
from headrace.pipeline.transformations.chain import StageUse

__all__ = ["CountedPipeline", "DownstreamStage"]


class _Counted(Protocol):
    """What a feed tells about itself."""

    tunables: Mapping[str, Tunable]

    def counters(self, window_s: float) -> PipelineCounters: ...


class DownstreamStage:
    """Counts a stage that the consumer runs itself, and the consumer behind it. Thread-safe.

    The pipeline only sees the thread that takes its elements. With this stage the consumer in the counters is the one
    that uses its results, so `explain` and the tuner see the whole way to it.

    Attributes:
        name: Of the stage.
        num_workers: Threads that it may use; they are not the tuner's to change.
    """

    def __init__(self, name: str, num_workers: int, *, clock: Callable[[], float] | None = None) -> None:
        """Begin to count.

        Args:
            name: Of the stage.
            num_workers: Threads that it may use.
            clock: Monotonic seconds; None for `time.monotonic`.
        """
        self.name = name
        self.num_workers = num_workers
        self._lock = threading.Lock()
        self._clock = clock or time.monotonic
        self._recorder = Recorder([name], self._clock)
        self._num_arrived = 0

    def arrived(self) -> None:
        """An element has come out of the pipeline."""
        with self._lock:
            self._num_arrived += 1

    def add(self, use: StageUse, num_bytes_in: int) -> None:
        """Count one element that is done."""
        with self._lock:
            self._recorder.stages[self.name].add(use, num_bytes_in)
            self._recorder.tick(self._clock())

    def delivered(self, num_rows: int, wait_s: float, busy_s: float) -> None:
        """Count a batch that the consumer waited for, and the seconds that it was busy since the one before."""
        with self._lock:
            self._recorder.delivered(num_rows, wait_s, busy_s)
            self._recorder.tick(self._clock())

    @property
    def tunable(self) -> Tunable:
        """The number of workers, as a number with one possible value."""
        workers = self.num_workers
        get, set_ = (lambda: workers), (lambda value: None)
        return Tunable(f"{self.name}.workers", min=workers, max=workers, unit="workers", get=get, set=set_)

    def extend(self, counters: PipelineCounters, window_s: float) -> PipelineCounters:
        """The counters of a pipeline with this stage at its end."""
        with self._lock:
            waiting = self._num_arrived - self._recorder.stages[self.name].num_elements
            now = GroupNow(self.name, self.num_workers, min(waiting, self.num_workers), waiting)
            _, stages, consumer = self._recorder.read(window_s, {self.name: now})
        batches = consumer.num_batches
        before = {
            name: replace(reading, visit_ratio=reading.num_elements / batches if batches else 0.0)
            for name, reading in counters.stages.items()
        }
        return replace(counters, stages={**before, **stages}, consumer=consumer)


class CountedPipeline:
    """What the tuner and other readers see of a running pipeline: its feed, and a stage behind it if there is one.

    Attributes:
        downstream: The stage behind the pipeline, or None.
    """

    def __init__(self, feed: _Counted) -> None:
        """Args: feed: Runs the pipeline's own stages."""
        self._feed = feed
        self.downstream: DownstreamStage | None = None

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """Everything that may be changed, by name."""
        if self.downstream is None:
            return self._feed.tunables
        tunable = self.downstream.tunable
        return MappingProxyType({**self._feed.tunables, tunable.name: tunable})

    def counters(self, window_s: float) -> PipelineCounters:
        """What all stages did lately."""
        counters = self._feed.counters(window_s)
        return counters if self.downstream is None else self.downstream.extend(counters, window_s)
