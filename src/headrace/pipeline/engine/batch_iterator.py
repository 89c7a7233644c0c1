"""`BatchIterator`: what `Pipeline.open` returns: batches, the state behind each of them, and what became of rows."""

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
    """What runs the stages: hands out elements in order, until None."""

    recorder: Recorder
    tunables: Mapping[str, Tunable]

    def take(self) -> Element | None: ...

    def peek(self, num_batches: int) -> tuple[list[Element], bool]: ...

    def counters(self, window_s: float) -> PipelineCounters: ...

    def restart_counters(self) -> None: ...

    def close(self) -> None: ...


class Peek(NamedTuple):
    """Batches that are ready and not delivered yet.

    Attributes:
        batches: In the order in which they will be delivered.
        segments: The segment of each, counted from 0.
        is_all: Whether no batch comes behind them.
    """

    batches: tuple[Any, ...]
    segments: tuple[int, ...]
    is_all: bool


class BatchIterator:
    """Iterates over the batches of a pipeline, each exactly once over any number of stops and resumes.

    A context manager; leaving it stops all workers. Not to be shared between threads, except for `counters`,
    `tunables`, `explain` and `close`.
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
        """The next batch, once it is ready, of this segment or a later one.

        Raises:
            PipelineError: A stage failed on an element of this batch.
        """
        while (element := self._take()) is not None:
            if element.num_rows:
                return element.payload
        raise StopIteration

    def next_in_segment(self) -> Any | None:
        """The next batch of the segment, once it is ready; None at its end.

        The call after that goes on with the next segment. Behind the last one it is always None.

        Raises:
            PipelineError: A stage failed on an element of this batch.
        """
        element = self._take()
        return None if element is None else element.payload

    @property
    def segment(self) -> int:
        """The segment of the last batch, or that whose end was told last, counted from 0."""
        return self._position.segment

    @property
    def num_segments(self) -> int:
        """How many segments there are."""
        return len(self._plan.sources)

    def peek(self, num_batches: int) -> Peek:
        """The next batches, as far as they are ready, without taking them: to plan for the keys they bring.

        They may be of later segments than the next batch.

        Changes nothing: positions, counters and the order of batches are as if it was not called, and the bytes of a
        batch stay charged until it is delivered. At most the batches of `prefetch`, and those just made, can be ready;
        with `executor="inline"` none is.

        Args:
            num_batches: At most so many.
        """
        elements, is_all = self._feed.peek(num_batches)
        payloads, segments = (element.payload for element in elements), (element.segment for element in elements)
        return Peek(tuple(payloads), tuple(segments), is_all)

    def state_dict(self) -> dict[str, Any]:
        """Where the next batch begins, as a small JSON-able dict; give it to `open(state=...)` to go on there.

        At the end of a segment it is that end: going on from there, the segment gives nothing but its end.
        """
        return make_state(self._plan.signature(self.segment), self._epoch, self._position)

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a saved state; what was made ready is thrown away, what was not yet accounted for is forgotten.

        Raises:
            CheckpointError: The state was saved by another pipeline.
        """
        epoch, position = self._load(state)
        self.close()
        self._epoch, self._position = epoch, position
        self._row_stats, self._losses, self._after = NO_ROWS, NO_ROWS, None
        self._start()

    def take_row_stats(self) -> RowStats:
        """What became of the rows of the batches delivered since the last call, with the rejected ones."""
        stats, self._row_stats = self._row_stats, NO_ROWS
        return stats

    def add_stage(self, name: str, num_workers: int) -> DownstreamStage:
        """Count work that the caller does on each batch as a stage behind the others; see `DownstreamStage`.

        Call it before the first batch is taken. From then on the caller also reports when it has used a batch.
        """
        self._counted.downstream = DownstreamStage(name, num_workers)
        return self._counted.downstream

    def counters(self, window_s: float = 5.0) -> PipelineCounters:
        """What the stages did over about the last `window_s` seconds: a minute at most, or infinity for all of them."""
        return self._counted.counters(window_s)

    def restart_counters(self) -> None:
        """From now on, `explain` and `counters` of all seconds are about what follows."""
        self._counted.restart_counters()
        self._left = time.perf_counter()

    @property
    def tunables(self) -> Mapping[str, Tunable]:
        """Everything that may be changed while it runs, by name."""
        return self._counted.tunables

    @property
    def decisions(self) -> list[Decision]:
        """What the pipeline decided by itself (workers replaced, prefetch shed, ...), with reasons; oldest first."""
        return self._decisions.list()

    def explain(self) -> Explanation:
        """What limits the pipeline, why, what would help, and what the tuner did; printed, it is a few lines.

        Raises:
            ConfigError: Not every stage has finished something yet.
        """
        return self._tuner.explain()

    @property
    def epoch(self) -> int:
        """The epoch this iterator reads."""
        return self._epoch

    def close(self) -> None:
        """Stop all workers and give all memory back; safe to call twice."""
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
        # Also runs when the iterator is forgotten, and before the interpreter ends.
        self._closer = weakref.finalize(self, _close, self._tuner, self._feed)
        self._left = time.perf_counter()

    def _take(self) -> Element | None:
        """The next element that is a batch, or ends a segment; None at the end of all."""
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
        """Move the position behind the last element taken, and account for all taken since the last delivery."""
        if self._after is None:
            return
        self._position = self._after
        self._row_stats += self._losses + RowStats(num_used=num_rows)
        self._losses, self._after = NO_ROWS, None


def _close(tuner: LateTuner, feed: Feed) -> None:
    tuner.close()
    feed.close()
