"""`DownstreamStage`: a stage that the consumer of a pipeline runs itself, counted with the pipeline's own stages."""

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
    """A feed with counters and tunables."""

    @property
    def tunables(self) -> Mapping[str, Tunable]: ...

    def counters(self, window_s: float) -> PipelineCounters: ...

    def restart_counters(self) -> None: ...


class DownstreamStage:
    """Counters of a stage that the consumer runs itself, and of the consumer after it. Thread-safe.

    The pipeline only sees the thread that takes its elements. With this stage, the consumer in the counters is the
    thread that uses the stage's results, so `explain` and the tuner see the whole path.

    Attributes:
        name: Name of the stage.
        num_workers: Threads that it may use; the tuner does not change them.
    """

    def __init__(self, name: str, num_workers: int, *, clock: Callable[[], float] | None = None) -> None:
        """Start counting.

        Args:
            name: Name of the stage.
            num_workers: Threads that it may use.
            clock: Returns monotonic seconds; None for `time.monotonic`.
        """
        self.name = name
        self.num_workers = num_workers
        self._lock = threading.Lock()
        self._clock = clock or time.monotonic
        self._recorder = Recorder([name], self._clock)
        self._num_arrived = 0

    def arrived(self) -> None:
        """Record that an element came out of the pipeline."""
        with self._lock:
            self._num_arrived += 1

    def add(self, use: StageUse, num_bytes_in: int) -> None:
        """Count one finished element."""
        with self._lock:
            self._recorder.stages[self.name].add(use, num_bytes_in)
            self._recorder.tick(self._clock())

    def delivered(self, num_rows: int, wait_s: float, busy_s: float) -> None:
        """Count a batch taken after waiting `wait_s`, the consumer having been busy for `busy_s` before."""
        with self._lock:
            self._recorder.delivered(num_rows, wait_s, busy_s)
            self._recorder.tick(self._clock())

    def restart_counters(self) -> None:
        """Restart the period of counters over the whole time."""
        with self._lock:
            self._recorder.restart()

    @property
    def tunable(self) -> Tunable:
        """The number of workers, as a tunable with a single allowed value."""
        workers = self.num_workers
        get, set_ = (lambda: workers), (lambda value: None)
        return Tunable(f"{self.name}.workers", min=workers, max=workers, unit="workers", get=get, set=set_)

    def extend(self, counters: PipelineCounters, window_s: float) -> PipelineCounters:
        """A pipeline's counters with this stage appended."""
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
    """A running pipeline as the tuner sees it: its feed, and a downstream stage if there is one.

    Attributes:
        downstream: The downstream stage, or None.
    """

    def __init__(self, feed: _Counted) -> None:
        """Wrap the feed that runs the pipeline's own stages."""
        self._feed = feed
        self.downstream: DownstreamStage | None = None

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """All settings that may change, by name."""
        if self.downstream is None:
            return self._feed.tunables
        tunable = self.downstream.tunable
        return MappingProxyType({**self._feed.tunables, tunable.name: tunable})

    def restart_counters(self) -> None:
        """Restart the period of counters over the whole time."""
        self._feed.restart_counters()
        if self.downstream is not None:
            self.downstream.restart_counters()

    def counters(self, window_s: float) -> PipelineCounters:
        """Counters of all stages over a recent window."""
        counters = self._feed.counters(window_s)
        return counters if self.downstream is None else self.downstream.extend(counters, window_s)
