"""The reference executor: one element at a time, in the consumer's thread, as plain generators.

What a pipeline means is written here in its shortest form; the other executors must give the same elements.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from itertools import islice

from headrace.errors import HeadraceError
from headrace.pipeline.engine.counters import GroupNow, PipelineCounters, Recorder
from headrace.pipeline.engine.delivery import element_of_piece, source_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.options import Group, OpenOptions, make_groups
from headrace.pipeline.engine.rebatcher import Cutter
from headrace.pipeline.engine.runners import ThreadRunner
from headrace.pipeline.engine.snapshot import Position
from headrace.pipeline.engine.tunables import Tunable
from headrace.pipeline.pipeline import Pipeline
from headrace.pipeline.sources import reads_storage
from headrace.pipeline.transformations.chain import StageUse

__all__ = ["InlineFeed"]


class InlineFeed:
    """Elements of a pipeline, made when they are asked for."""

    def __init__(self, pipeline: Pipeline, options: OpenOptions, epoch: int, position: Position) -> None:
        """Prepare the stages; nothing is read yet."""
        self._source = pipeline.source
        self._epoch = epoch
        names = ["source", *(stage.name for stage in pipeline.stages)]
        self.recorder = Recorder(names, time.monotonic)
        self.tunables: Mapping[str, Tunable] = {}
        stream = self._read(position.item, position.piece)
        num_cutters = 0
        self._groups = make_groups(pipeline, options)
        for group in self._groups:
            if group.cut is not None:
                rows, index = position.cuts[num_cutters]
                stream = _cut(stream, Cutter(group.cut, position.to_token(num_cutters), rows, index))
                num_cutters += 1
            stream = self._apply(group, stream)
        self._stream = stream

    def take(self) -> Element | None:
        """The next element, or None at the end."""
        return next(self._stream, None)

    def counters(self, window_s: float) -> PipelineCounters:
        """What the stages did lately."""
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

    def _read(self, first_item: int, first_piece: int) -> Iterator[Element]:
        for item in range(first_item, len(self._source)):
            skip = first_piece if item == first_item else 0
            pieces = islice(self._source.read(item), skip, None)
            while True:
                wall, cpu = time.perf_counter(), time.thread_time()
                try:
                    piece = next(pieces, None)
                except HeadraceError:
                    raise
                except Exception as error:
                    raise source_error(error, self._source, item) from error
                if piece is None:
                    break
                element = element_of_piece(piece, item, skip)
                use = StageUse(
                    time.thread_time() - cpu,
                    time.perf_counter() - wall,
                    piece.num_read,
                    element.num_rows,
                    element.num_bytes,
                )
                self.recorder.stages["source"].add(use, 0)
                yield element
                skip += 1

    def _apply(self, group: Group, stream: Iterator[Element]) -> Iterator[Element]:
        runner = ThreadRunner(group, self._source, self._epoch)
        for element in stream:
            num_bytes = element.num_bytes
            uses = runner.run(element)
            for stage, use in zip(group.stages, uses, strict=True):
                self.recorder.stages[stage.name].add(use, num_bytes)
                num_bytes = use.num_bytes_out
            yield element


def _cut(stream: Iterator[Element], cutter: Cutter) -> Iterator[Element]:
    for element in stream:
        yield from cutter.feed(element)
    yield from cutter.finish()
