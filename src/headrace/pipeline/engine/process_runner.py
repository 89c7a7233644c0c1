"""`ProcessRunner`: runs stages in worker processes, for user functions that hold the GIL.

A pipeline thread waits for each busy process, without holding the GIL. If a process dies it is replaced, and its
element is retried once in another one. If a process exceeds its timeout, its stack is recorded and it is stopped.
Workers are forked from a single-threaded template process, never from this one.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pyarrow as pa

from headrace.errors import PipelineError
from headrace.logs.source import Sources
from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.delivery import apply_result, describe_element, pipeline_error, stuck_error
from headrace.pipeline.engine.element import Element
from headrace.pipeline.engine.headroom import WorkerMemory
from headrace.pipeline.engine.options import StageGroup
from headrace.pipeline.processes.messages import Disconnected
from headrace.pipeline.processes.worker_pool import WorkerPool
from headrace.pipeline.processes.worker_process import WorkerProcess, ship
from headrace.pipeline.transformations.chain import ChainResult, StageFault, StageUse
from headrace.resources import effective_cpus

__all__ = ["ProcessRunner"]


class ProcessRunner:
    """Worker processes for one group of stages, one per element in progress."""

    def __init__(
        self,
        group: StageGroup,
        sources: Sources,
        epoch: int,
        decisions: Decisions,
        limit: Callable[[], int],
        memory: WorkerMemory,
    ) -> None:
        """Pickle the functions; processes start with the first elements.

        Raises:
            ConfigError: A function cannot be sent to a worker process.
        """
        self._group = group
        self._sources = sources
        self._epoch = epoch
        self._decisions = decisions
        self._memory = memory
        self._pool = WorkerPool(
            group.name,
            partial(WorkerProcess, ship(group.name, [stage.transformation for stage in group.stages])),
            limit=limit,
            at_once=lambda: effective_cpus().num_threads,
            report=lambda pid, how: self._record(pid, f"worker process {pid} {how} while starting"),
        )
        memory.num_started = lambda: self._pool.num_workers

    def run(self, element: Element) -> tuple[StageUse, ...]:
        """Process the element in a worker process; see `Runner`."""
        if not element.num_rows:
            return tuple(StageUse(0.0, 0.0, 0, 0, 0) for _ in self._group.stages)
        result, source = self._call(element), self._sources[element.segment]
        if isinstance(result, StageFault):
            raise pipeline_error(result, self._group.stages, element, source)
        apply_result(element, result, self._group.stages, source)
        return result.uses

    def close(self) -> None:
        """Stop all processes."""
        self._pool.close()

    def _call(self, element: Element) -> ChainResult | StageFault:
        seed = (self._epoch, *element.key)
        for attempt in range(2):
            try:
                worker = self._pool.acquire()
            except StageFault as fault:
                return fault
            try:
                control = (element.num_rows, element.num_bytes, seed, self._memory.is_short)
                result, rows = worker.call(control, element.payload, self._group.timeout_s)
            except Disconnected:
                self._report_death(worker, element, attempt)
                continue
            except TimeoutError:
                stack = worker.stack()
                self._pool.end(worker, grace_s=0.0)
                raise stuck_error(self._group, element, self._sources[element.segment], stack) from None
            except BaseException:
                self._pool.end(worker, grace_s=0.0)
                raise
            self._pool.give_back(worker)
            if isinstance(result, StageFault):
                return result
            result, (before_bytes, peak_bytes) = result
            assert isinstance(result, ChainResult)
            self._memory.learn(before_bytes, peak_bytes, result.num_bytes)
            return _with_payload(result, rows)
        raise PipelineError(f"stage {self._group.name}: its worker process died twice on {self._describe(element)}")

    def _describe(self, element: Element) -> str:
        return describe_element(element, self._sources[element.segment])

    def _report_death(self, worker: WorkerProcess, element: Element, attempt: int) -> None:
        how = self._pool.end(worker)
        if self._pool.is_closed:
            raise PipelineError(f"stage {self._group.name}: closed")
        again = "retried in another worker" if attempt == 0 else "not retried"
        what = f"{self._describe(element)} is {again}"
        self._record(worker.pid, f"worker process {worker.pid} {how}; {what}")

    def _record(self, pid: int, reason: str) -> None:
        self._decisions.record(f"stage {self._group.name}", {"worker": (pid, None)}, reason)


def _with_payload(result: ChainResult, rows: pa.RecordBatch | None) -> ChainResult:
    return ChainResult(rows, result.num_rows, result.num_bytes, result.num_filtered, result.faults, result.uses)
