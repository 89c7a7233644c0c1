"""Runners: who applies a group of stages to an element. `ThreadRunner` does it in the calling thread."""

from __future__ import annotations

from typing import Protocol

from headrace.logs.pieces import Source
from headrace.pipeline.chain import StageFault, StageUse, run_chain
from headrace.pipeline.delivery import apply_result, pipeline_error
from headrace.pipeline.elements import Element
from headrace.pipeline.options import Group

__all__ = ["Runner", "ThreadRunner"]


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

    def __init__(self, group: Group, source: Source, epoch: int) -> None:
        """Prepare."""
        self._stages = group.stages
        self._operations = [stage.operation for stage in group.stages]
        self._source = source
        self._epoch = epoch

    def run(self, element: Element) -> tuple[StageUse, ...]:
        seed = (self._epoch, *element.key)
        try:
            result = run_chain(self._operations, element.payload, element.num_rows, element.num_bytes, seed)
        except StageFault as fault:
            raise pipeline_error(fault, self._stages, element, self._source) from fault.__cause__
        apply_result(element, result, self._stages, self._source)
        return result.uses

    def close(self) -> None:
        pass
