"""The reference executor: one element at a time, in the consumer's thread, with plain generators.

It defines the semantics of a pipeline in the shortest form; the other executors must produce the same elements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from headrace.errors import HeadraceError
from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder
from headrace.pipeline.engine.delivery import element_of, source_error
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
        self._source = plan.source
        self._epoch = epoch
        names = ["source", *(stage.name for stage in plan.stages)]
        self.recorder = Recorder(names, time.monotonic)
        self.tunables: Mapping[str, Tunable] = {}
        stream = self._read(position.split, position.source_batch)
        num_rebatches = 0
        self._groups = make_groups(plan, options)
        for group in self._groups:
            if group.rebatch is not None:
                begin = position.before(num_rebatches), *position.rebatches[num_rebatches]
                stream = _regroup(stream, Rebatcher(group.rebatch, *begin))
                num_rebatches += 1
            stream = self._apply(group, stream)
        self._stream = stream
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
            reads_storage=reads_storage(self._source),
        )

    def close(self) -> None:
        """Stop reading."""
        self._stream = iter(())

    def _read(self, first_split: int, first_batch: int) -> Iterator[Element]:
        for split in range(first_split, len(self._source)):
            skip = first_batch if split == first_split else 0
            batches = islice(self._source.read(split), skip, None)
            while True:
                wall, cpu = time.perf_counter(), time.thread_time()
                try:
                    batch = next(batches, None)
                except HeadraceError:
                    raise
                except Exception as error:
                    raise source_error(error, self._source, split) from error
                if batch is None:
                    break
                element = element_of(batch, split, skip)
                use = StageUse(
                    time.thread_time() - cpu,
                    time.perf_counter() - wall,
                    batch.num_read,
                    element.num_rows,
                    element.num_bytes,
                )
                self.recorder.stages["source"].add(use, 0)
                yield element
                skip += 1

    def _apply(self, group: StageGroup, stream: Iterator[Element]) -> Iterator[Element]:
        runner = ThreadRunner(group, self._source, self._epoch)
        for element in stream:
            num_bytes = element.num_bytes
            uses = runner.run(element)
            for stage, use in zip(group.stages, uses, strict=True):
                self.recorder.stages[stage.name].add(use, num_bytes)
                num_bytes = use.num_bytes_out
            yield element


def _regroup(stream: Iterator[Element], rebatcher: Rebatcher) -> Iterator[Element]:
    for element in stream:
        yield from rebatcher.feed(element)
    yield from rebatcher.finish()
