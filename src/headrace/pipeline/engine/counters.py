"""What a pipeline did lately: per stage CPU time, waits, items, rows and bytes; and how long the consumer waited.

Totals only grow. A window is the difference between the totals now and a copy of them made some seconds ago, so that
counting costs additions and a reading is never a mean over the whole life of a pipeline.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from headrace.pipeline.engine.state import Blocked, PipelineState
from headrace.pipeline.transformations.chain import StageUse

__all__ = ["ConsumerReading", "PipelineCounters", "Recorder", "StageReading", "StageTotals", "count_waits"]

SNAPSHOT_EVERY_S = 0.25
"""Totals are copied this often; a window is exact to this."""

NUM_SNAPSHOTS = 241
"""Copies kept: a minute."""


@dataclass(slots=True)
class StageTotals:
    """What a stage used since the pipeline was opened; the fields are those of `StageReading`."""

    num_elements: int = 0
    num_rows_in: int = 0
    num_rows_out: int = 0
    num_bytes_in: int = 0
    num_bytes_out: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    wait_input_s: float = 0.0
    wait_output_s: float = 0.0
    wait_memory_s: float = 0.0
    wait_worker_s: float = 0.0
    queued_s: float = 0.0

    def add(self, use: StageUse, num_bytes_in: int) -> None:
        """Count one element."""
        self.num_elements += 1
        self.num_rows_in += use.num_rows_in
        self.num_rows_out += use.num_rows_out
        self.num_bytes_in += num_bytes_in
        self.num_bytes_out += use.num_bytes_out
        self.cpu_s += use.cpu_s
        self.wall_s += use.wall_s
        self.queued_s += use.queued_s


@dataclass(frozen=True, slots=True)
class StageReading:
    """A stage over a window.

    Attributes:
        name: Of the stage.
        group: Stages that one worker call runs together share their workers, waits and queue; joined by "+".
        num_workers: Elements the group may work on at once.
        num_running: Elements it is working on.
        queue_depth: Elements that wait in front of the group.
        num_elements: Elements finished in the window.
        num_rows_in: Rows taken in.
        num_rows_out: Rows given out.
        num_bytes_in: Bytes taken in.
        num_bytes_out: Bytes given out.
        cpu_s: CPU seconds, by the clock of the thread or process that ran it.
        wall_s: Wall seconds, added up over workers.
        wait_input_s: Worker seconds without an element to work on.
        wait_output_s: Worker seconds held back: enough is done ahead, or there is no memory for the result.
        wait_memory_s: Seconds, not of each worker, in which there was no memory for another result.
        wait_worker_s: Seconds, likewise, in which there was an element to work on but all threads were busy elsewhere.
        queued_s: Wall seconds in which worker processes were ready without a CPU; 0 for threads.
        visit_ratio: Elements for each batch delivered; 0 if none was.
    """

    name: str
    group: str
    num_workers: int
    num_running: int
    queue_depth: int
    num_elements: int
    num_rows_in: int
    num_rows_out: int
    num_bytes_in: int
    num_bytes_out: int
    cpu_s: float
    wall_s: float
    wait_input_s: float
    wait_output_s: float
    wait_memory_s: float
    wait_worker_s: float
    queued_s: float
    visit_ratio: float


@dataclass(frozen=True, slots=True)
class ConsumerReading:
    """The consumer over a window: batches and rows taken, seconds it waited for one, seconds between its requests."""

    num_batches: int
    num_rows: int
    wait_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class PipelineCounters:
    """A reading of all counters.

    Attributes:
        window_s: Seconds it covers.
        stages: By name, from the source on.
        consumer: Who takes the batches.
        bytes_in_flight: Charged to the ledger now.
        peak_bytes: Most ever charged.
        budget_bytes: What may be charged; 0 without a ledger.
        num_threads: Worker threads that run stages at once.
        process_groups: Groups whose stages run in worker processes.
        process_cpu_s: CPU seconds of this process, all threads.
        reads_storage: Whether the source reads files or the like; one in memory does not.
    """

    window_s: float
    stages: Mapping[str, StageReading]
    consumer: ConsumerReading
    bytes_in_flight: int = 0
    peak_bytes: int = 0
    budget_bytes: int = 0
    num_threads: int = 0
    process_groups: tuple[str, ...] = ()
    process_cpu_s: float = 0.0
    reads_storage: bool = True

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


@dataclass(slots=True)
class _ConsumerTotals:
    num_batches: int = 0
    num_rows: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class GroupNow:
    """The workers and queue of a group at this moment."""

    name: str
    num_workers: int
    num_running: int
    queue_depth: int


@dataclass
class Recorder:
    """Totals of all stages, and copies of them at some moments; whoever calls it holds a lock.

    Attributes:
        names: Stage names, from the source on.
        clock: Monotonic seconds.
        cpu_clock: CPU seconds of the process.
    """

    names: Sequence[str]
    clock: Callable[[], float]
    cpu_clock: Callable[[], float] = time.process_time
    stages: dict[str, StageTotals] = field(init=False)
    consumer: _ConsumerTotals = field(default_factory=_ConsumerTotals)
    _copies: deque[tuple[float, tuple[tuple[Any, ...], ...]]] = field(init=False)

    def __post_init__(self) -> None:
        self.stages = {name: StageTotals() for name in self.names}
        self._first = (self.clock(), self._copy())
        self._copies = deque([self._first], maxlen=NUM_SNAPSHOTS)
        self._next_copy = self._copies[0][0] + SNAPSHOT_EVERY_S

    def tick(self, now: float) -> None:
        """Keep a copy of the totals if the last one is old enough."""
        if now >= self._next_copy:
            self._copies.append((now, self._copy()))
            self._next_copy = now + SNAPSHOT_EVERY_S

    def delivered(self, num_rows: int, wait_s: float, busy_s: float) -> None:
        """Count a batch the consumer took after `wait_s`, having been busy elsewhere for `busy_s`."""
        self.consumer.num_batches += 1
        self.consumer.num_rows += num_rows
        self.consumer.wait_s += wait_s
        self.consumer.busy_s += busy_s

    def read(
        self, window_s: float, groups: Mapping[str, GroupNow]
    ) -> tuple[float, dict[str, StageReading], ConsumerReading]:
        """Seconds covered, readings of the stages and of the consumer.

        Args:
            window_s: About the last so many seconds, a minute at most; infinity for all since the pipeline was opened.
            groups: The workers and queues now.
        """
        now = self.clock()
        start, then = self._begin(now, window_s)
        current = self._copy()
        consumer: tuple[Any, ...]
        *stages, consumer, _ = (
            tuple(after - before for after, before in zip(late, early, strict=True))
            for late, early in zip(current, then, strict=True)
        )
        batches = consumer[0]
        readings = {}
        for name, values in zip(self.names, stages, strict=True):
            group = groups[name]
            parts: list[Any] = [name, group.name, group.num_workers, group.num_running, group.queue_depth, *values]
            parts.append(values[0] / batches if batches else 0.0)
            readings[name] = StageReading(*parts)
        return now - start, readings, ConsumerReading(*consumer)

    def process_cpu_s(self, window_s: float) -> float:
        """CPU seconds that all threads of this process took over the same window."""
        _, then = self._begin(self.clock(), window_s)
        return float(self.cpu_clock() - then[-1][0])

    def _begin(self, now: float, window_s: float) -> tuple[float, tuple[tuple[Any, ...], ...]]:
        """When a window began, and the totals then."""
        oldest = self._first if math.isinf(window_s) else self._copies[0]
        return next(((at, copy) for at, copy in reversed(self._copies) if at <= now - window_s), oldest)

    def _copy(self) -> tuple[tuple[Any, ...], ...]:
        return (*(_values(totals) for totals in self.stages.values()), _values(self.consumer), (self.cpu_clock(),))


def count_waits(
    stages: Mapping[str, StageTotals], state: PipelineState, names: Sequence[Sequence[str]], passed_s: float
) -> None:
    """Add some seconds to the reason why each lane starts nothing, for each of its workers that is idle.

    Args:
        stages: Totals by name.
        state: As it was in these seconds.
        names: Of the stages in each lane.
        passed_s: The seconds.
    """
    for index, (lane, lane_names) in enumerate(zip(state.lanes, names, strict=True)):
        reason = state.why_idle(index)
        idle_s = passed_s * max(state.limit(index) - lane.num_running, 0)
        for name in lane_names:
            totals = stages[name]
            if reason is Blocked.INPUT:
                totals.wait_input_s += idle_s
            elif reason in (Blocked.AHEAD, Blocked.MEMORY):
                totals.wait_output_s += idle_s
                totals.wait_memory_s += passed_s if reason is Blocked.MEMORY else 0.0
            elif reason is Blocked.THREADS:
                totals.wait_worker_s += passed_s


def _values(totals: StageTotals | _ConsumerTotals) -> tuple[Any, ...]:
    return tuple(getattr(totals, part.name) for part in fields(totals))
