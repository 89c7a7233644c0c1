"""Runners: who applies a group of stages to an element. `ThreadRunner` does it in the calling thread."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from headrace.logs.source import Source
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.delivery import apply_result, pipeline_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.options import StageGroup
from headrace.pipeline.transformations.chain import StageFault, StageUse, run_chain

__all__ = ["Runner", "ThreadRunner", "make_runner"]


class Runner(Protocol):
    """Applies a group of stages; called by several threads at once."""

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Change the element into the result; return what each stage used.

        Raises:
            PipelineError: A stage failed.
        """
        ...

    def close(self) -> None:
        """Stop everything that runs, from any thread."""
        ...


class ThreadRunner:
    """Runs the stages in the thread that calls."""

    def __init__(self, group: StageGroup, source: Source, epoch: int) -> None:
        """Prepare."""
        self._stages = group.stages
        self._transformations = [stage.transformation for stage in group.stages]
        self._source = source
        self._epoch = epoch

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Change the element into the result, here and now."""
        seed = (self._epoch, *element.key)
        try:
            result = run_chain(self._transformations, element.payload, element.num_rows, element.num_bytes, seed)
        except StageFault as fault:
            raise pipeline_error(fault, self._stages, element, self._source) from fault.__cause__
        apply_result(element, result, self._stages, self._source)
        return result.uses

    def close(self) -> None:
        """Nothing to stop: the thread belongs to who calls."""


def make_runner(
    group: StageGroup,
    source: Source,
    epoch: int,
    decisions: Decisions,
    limit: Callable[[], int],
    memory: WorkerMemory | None = None,
) -> Runner:
    """The runner that a group asks for.

    Args:
        group: The stages.
        source: Names places in errors.
        epoch: Part of all seeds.
        decisions: Where replaced processes are reported.
        limit: How many elements may be worked on at once, now.
        memory: Told what worker processes take.

    Raises:
        ConfigError: A function cannot be sent to a worker process.
    """
    if group.executor == "thread":
        return ThreadRunner(group, source, epoch)
    from headrace.pipeline.engine.process_runner import ProcessRunner  # only where needed: it uses what only Unix has

    return ProcessRunner(group, source, epoch, decisions, limit, memory or WorkerMemory())
