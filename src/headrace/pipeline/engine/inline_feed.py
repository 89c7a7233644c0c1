"""The reference executor: one element at a time, in the consumer's thread, with plain generators.

It defines the semantics of a pipeline in the shortest form; the other executors must produce the same elements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import count, islice

from headrace.errors import HeadraceError
from headrace.logs.source import Source
from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder
from headrace.pipeline.engine.delivery import element_of, open_source, source_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.options import OpenOptions, StageGroup, make_groups
from headrace.pipeline.engine.position import Position
from headrace.pipeline.engine.rebatcher import Rebatcher
from headrace.pipeline.engine.runners import ThreadRunner
from headrace.pipeline.engine.tuners import Tunable
from headrace.pipeline.logical_plan import LogicalPlan
from headrace.pipeline.sources import reads_storage
from headrace.pipeline.transformations.chain import StageUse

__all__ = ["InlineFeed"]


class InlineFeed:
    """Produces the elements of a pipeline on demand."""

    def __init__(self, plan: LogicalPlan, options: OpenOptions, epoch: int, position: Position) -> None:
        """Prepare the stages without reading anything yet."""
        self._sources = plan.sources
        self._reads_storage = reads_storage(plan.sources[position.segment])
        self._epoch = epoch
        names = ["source", *(stage.name for stage in plan.stages)]
        self.recorder = Recorder(names, time.monotonic)
        self.tunables: Mapping[str, Tunable] = {}
        self._groups = make_groups(plan, options)
        self._stream = self._connect(position)
        self._has_ended = False

    def take(self) -> Element | None:
        """The next element, or None at the end."""
        element = next(self._stream, None)
        self._has_ended = element is None
        return element

    def peek(self, num_batches: int) -> tuple[list[Element], bool]:
        """No elements, because none is ready in advance; and whether the end was reached."""
        return [], self._has_ended

    def counters(self, window_s: float) -> PipelineCounters:
        """Counters of the stages over a recent window."""
        groups = {"source": GroupNow("source", 1, 0, 0)}
        for group in self._groups:
            groups |= {stage.name: GroupNow(group.name, 1, 0, 0) for stage in group.stages}
        return PipelineCounters(
            *self.recorder.read(window_s, groups),
            process_cpu_s=self.recorder.process_cpu_s(window_s),
            reads_storage=self._reads_storage,
        )

    def restart_counters(self) -> None:
        """Restart the period of counters over the whole time."""
        self.recorder.restart()

    def close(self) -> None:
        """Stop reading."""
        self._stream = iter(())

    def _connect(self, position: Position) -> Iterator[Element]:
        """Chain all stages."""
        stream = self._read(position)
        num_rebatches = 0
        for group in self._groups:
            if group.rebatch is not None:
                begin = position.before(num_rebatches), *position.rebatches[num_rebatches]
                stream = _regroup(stream, Rebatcher(group.rebatch, *begin))
                num_rebatches += 1
            stream = self._apply(group, stream)
        return stream

    def _read(self, first: Position) -> Iterator[Element]:
        """The elements of all segments, with a marker after each segment."""
        for segment in range(first.segment, len(self._sources)):
            begin = first if segment == first.segment else Position(0, 0, segment=segment)
            source = open_source(self._sources, segment)
            for split in range(begin.split, len(source)):
                yield from self._read_split(source, begin if split == begin.split else Position(split, 0, (), segment))
            end = Position(len(source), 0, (), segment)
            yield Element(None, 0, (end.split, 0), end, end, ends_segment=True)

    def _read_split(self, source: Source, place: Position) -> Iterator[Element]:
        """The elements of a split, from a position in it."""
        batches = islice(source.read(place.split), place.source_batch, None)
        for number in count(place.source_batch):
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                batch = next(batches, None)
            except HeadraceError:
                raise
            except Exception as error:
                raise source_error(error, source, place.split) from error
            if batch is None:
                break
            element = element_of(batch, Position(place.split, number, (), place.segment))
            use = StageUse(
                time.thread_time() - cpu,
                time.perf_counter() - wall,
                batch.num_read,
                element.num_rows,
                element.num_bytes,
            )
            self.recorder.stages["source"].add(use, 0)
            yield element

    def _apply(self, group: StageGroup, stream: Iterator[Element]) -> Iterator[Element]:
        runner = ThreadRunner(group, self._sources, self._epoch)
        for element in stream:
            if element.ends_segment:
                yield element
                continue
            num_bytes = element.num_bytes
            uses = runner.run(element)
            for stage, use in zip(group.stages, uses, strict=True):
                self.recorder.stages[stage.name].add(use, num_bytes)
                num_bytes = use.num_bytes_out
            yield element


def _regroup(stream: Iterator[Element], rebatcher: Rebatcher) -> Iterator[Element]:
    for element in stream:
        yield from rebatcher.feed(element)
