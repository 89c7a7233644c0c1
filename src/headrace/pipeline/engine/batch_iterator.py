"""`BatchIterator`, returned by `Pipeline.open`: batches, the state after each batch, and row statistics."""

from __future__ import annotations

import time
import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol, Self

from headrace.observe.decisions import Decision
from headrace.pipeline.engine.counters import PipelineCounters, Recorder
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.downstream import CountedPipeline, DownstreamStage
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.explanation import Explanation
from headrace.pipeline.engine.inline_feed import InlineFeed
from headrace.pipeline.engine.options import OpenOptions
from headrace.pipeline.engine.position import Position, load_state, make_state, saved_segment
from headrace.pipeline.engine.thread_feed import ThreadFeed
from headrace.pipeline.engine.tuners import LateTuner, Tunable
from headrace.pipeline.logical_plan import LogicalPlan
from headrace.pipeline.row_stats import NO_ROWS, RowStats

__all__ = ["BatchIterator", "Feed", "Peek"]


class Feed(Protocol):
    """Runs the stages, and returns elements in order, then None."""

    recorder: Recorder

    @property
    def tunables(self) -> Mapping[str, Tunable]: ...

    def take(self) -> Element | None: ...

    def peek(self, num_batches: int) -> tuple[list[Element], bool]: ...

    def counters(self, window_s: float) -> PipelineCounters: ...

    def restart_counters(self) -> None: ...

    def close(self) -> None: ...


class Peek(NamedTuple):
    """Batches that are ready but not delivered yet.

    Attributes:
        batches: The batches, in delivery order.
        segments: Segment of each batch, from 0.
        is_all: Whether these are the last batches.
    """

    batches: tuple[Any, ...]
    segments: tuple[int, ...]
    is_all: bool


class BatchIterator:
    """Iterates over the batches of a pipeline, each exactly once across any number of resumes.

    A context manager; leaving it stops all workers. Not thread-safe, except for `counters`, `tunables`, `explain` and
    `close`.
    """

    def __init__(self, plan: LogicalPlan, options: OpenOptions, state: Mapping[str, Any] | None = None) -> None:
        """Use `Pipeline.open`."""
        self._plan = plan
        self._options = options
        self._epoch = options.epoch
        self._position = Position.start(plan.num_rebatches)
        if state is not None:
            self._epoch, self._position = self._load(state)
        self._decisions = Decisions(options.decisions)
        self._row_stats, self._losses = NO_ROWS, NO_ROWS
        self._after: Position | None = None
        self._left = 0.0
        self._start()

    def __iter__(self) -> Self:
        return self

    def __next__(self) -> Any:
        """Wait for and return the next batch, of this segment or a later one.

        Raises:
            PipelineError: A stage failed on an element of this batch.
        """
        while (element := self._take()) is not None:
            if element.num_rows:
                return element.payload
        raise StopIteration

    def next_in_segment(self) -> Any | None:
        """Wait for and return the next batch of the segment; None at its end.

        The next call then continues with the next segment. After the last segment, all calls return None.

        Raises:
            PipelineError: A stage failed on an element of this batch.
        """
        element = self._take()
        return None if element is None else element.payload

    @property
    def segment(self) -> int:
        """The segment of the last batch or of the last end of a segment, from 0."""
        return self._position.segment

    @property
    def num_segments(self) -> int:
        """Number of segments."""
        return len(self._plan.sources)

    def peek(self, num_batches: int) -> Peek:
        """Return the next batches that are ready, without taking them, for instance to prefetch their keys.

        They may belong to later segments than the next batch.

        Has no side effects: positions, counters and the order of batches do not change, and a batch stays in the memory
        budget until it is delivered. At most the batches of `prefetch`, and those just completed, are ready; none with
        `executor="inline"`.

        Args:
            num_batches: Maximum number of batches.
        """
        elements, is_all = self._feed.peek(num_batches)
        payloads, segments = (element.payload for element in elements), (element.segment for element in elements)
        return Peek(tuple(payloads), tuple(segments), is_all)

    def state_dict(self) -> dict[str, Any]:
        """Position of the next batch, as a small JSON-able dict; pass it to `open(state=...)` to resume there.

        At the end of a segment, resuming from the state yields no more batches of that segment, only its end.
        """
        return make_state(self._plan.signature(self.segment), self._epoch, self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a saved state. Ready batches and pending row statistics are discarded.

        Raises:
            CheckpointError: The state was saved by a different pipeline.
        """
        epoch, position = self._load(state)
        self.close()
        self._epoch, self._position = epoch, position
        self._row_stats, self._losses, self._after = NO_ROWS, NO_ROWS, None
        self._start()

    def take_row_stats(self) -> RowStats:
        """Row statistics of the batches delivered since the last call, including rejected rows."""
        stats, self._row_stats = self._row_stats, NO_ROWS
        return stats

    def add_stage(self, name: str, num_workers: int) -> DownstreamStage:
        """Add a stage that counts the caller's work on each batch; see `DownstreamStage`.

        Call it before taking the first batch. The caller must then also report when it has used a batch.
        """
        self._counted.downstream = DownstreamStage(name, num_workers)
        return self._counted.downstream

    def counters(self, window_s: float = 5.0) -> PipelineCounters:
        """Counters of the stages over about the last `window_s` seconds, at most 60, or infinity for the whole time."""
        return self._counted.counters(window_s)

    def restart_counters(self) -> None:
        """Restart the period that `explain` and `counters(inf)` cover."""
        self._counted.restart_counters()
        self._left = time.perf_counter()

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """Settings that can be changed while the pipeline runs, by name."""
        return self._counted.tunables

    @property
    def decisions(self) -> list[Decision]:
        """Automatic decisions of the pipeline (workers replaced, prefetch reduced, ...) with reasons, oldest first."""
        return self._decisions.list()

    def explain(self) -> Explanation:
        """Explain what limits the pipeline, why, what would help, and what the tuner did. `str()` gives a few lines.

        Raises:
            ConfigError: Some stage has not finished any element yet.
        """
        return self._tuner.explain()

    @property
    def epoch(self) -> int:
        """The epoch of this iterator."""
        return self._epoch

    def close(self) -> None:
        """Stop all workers and release memory; safe to call twice."""
        self._closer()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _load(self, state: Mapping[str, Any]) -> tuple[int, Position]:
        return load_state(state, self._plan.signature(saved_segment(state, self.num_segments)))

    def _start(self) -> None:
        if self._options.executor == "inline":
            self._feed: Feed = InlineFeed(self._plan, self._options, self._epoch, self._position)
        else:
            self._feed = ThreadFeed(self._plan, self._options, self._epoch, self._position, self._decisions)
        self._counted = CountedPipeline(self._feed)
        self._tuner = LateTuner(self._options.tuner, self._counted, self._decisions)
        # Also runs when the iterator is garbage collected, and before the interpreter exits.
        self._closer = weakref.finalize(self, _close, self._tuner, self._feed)
        self._left = time.perf_counter()

    def _take(self) -> Element | None:
        """The next element that is a batch or the end of a segment; None after the last segment."""
        asked, left = time.perf_counter(), self._left
        self._tuner.begin()
        while (element := self._feed.take()) is not None:
            self._losses += element.losses
            self._after = element.after
            if element.num_rows or element.ends_segment:
                break
        if element is None:
            self._tuner.close()
            return None
        self._deliver(element.num_rows)
        if element.num_rows:
            now = time.perf_counter()
            if self._counted.downstream is None:
                self._feed.recorder.delivered(element.num_rows, now - asked, asked - left)
            self._left = now
        return element

    def _deliver(self, num_rows: int) -> None:
        """Move the position past the last element taken, and count all rows taken since the last delivery."""
        if self._after is None:
            return
        self._position = self._after
        self._row_stats += self._losses + RowStats(num_used=num_rows)
        self._losses, self._after = NO_ROWS, None


def _close(tuner: LateTuner, feed: Feed) -> None:
    tuner.close()
    feed.close()
