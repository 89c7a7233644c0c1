"""Runners: apply a group of stages to an element. `ThreadRunner` does so in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headrace.logs.source import Sources
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.delivery import apply_result, pipeline_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.options import StageGroup
from headrace.pipeline.transformations.chain import StageFault, StageUse, run_chain

__all__ = ["Runner", "ThreadRunner", "make_runner"]


class Runner(Protocol):
    """Applies a group of stages to elements. Thread-safe."""

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Replace the element's payload with the result; returns the resources that each stage used.

        Raises:
            PipelineError: A stage failed.
        """
        ...

    def close(self) -> None:
        """Stop all work. May be called from any thread."""
        ...


class ThreadRunner:
    """Runs the stages in the calling thread."""

    def __init__(self, group: StageGroup, sources: Sources, epoch: int) -> None:
        """Create the runner; the arguments are those of `make_runner`."""
        self._stages = group.stages
        self._sources = sources
        self._epoch = epoch

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Process the element in this thread."""
        seed, source = (self._epoch, *element.key), self._sources[element.segment]
        transformations = [stage.transformation.of_segment(element.segment) for stage in self._stages]
        try:
            result = run_chain(transformations, element.payload, element.num_rows, element.num_bytes, seed)
        except StageFault as fault:
            raise pipeline_error(fault, self._stages, element, source) from fault.__cause__
        apply_result(element, result, self._stages, source)
        return result.uses

    def close(self) -> None:
        """Do nothing: the thread belongs to the caller."""


def make_runner(
    group: StageGroup,
    sources: Sources,
    epoch: int,
    decisions: Decisions,
    limit: Callable[[], int],
    memory: WorkerMemory | None = None,
) -> Runner:
    """Create the runner for a group's executor.

    Args:
        group: The stages.
        sources: Sources of the segments; they describe the location of rows in error messages.
        epoch: Epoch, part of all seeds.
        decisions: Records replaced processes.
        limit: Returns the current maximum of elements processed at once.
        memory: Learns the memory needs of worker processes.

    Raises:
        ConfigError: A function cannot be sent to a worker process.
    """
    if group.executor == "thread":
        return ThreadRunner(group, sources, epoch)
    from headrace.pipeline.engine.process_runner import ProcessRunner  # imported only where needed: it is Unix-only

    return ProcessRunner(group, sources, epoch, decisions, limit, memory or WorkerMemory())
