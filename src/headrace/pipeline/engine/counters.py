"""Pipeline counters over a recent window: CPU time, waits, elements, rows and bytes per stage, and the consumer's
waits.

Totals only grow. A window is the difference between the current totals and a copy made some seconds ago, so counting
costs only additions and a reading is never a mean over the pipeline's whole lifetime.
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
"""Interval between copies of the totals; the precision of a window."""

NUM_SNAPSHOTS = 241
"""Number of copies kept, covering a minute."""


@dataclass(slots=True)
class StageTotals:
    """Totals of a stage since the pipeline was opened; fields as in `StageReading`."""

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
    """Counters of one stage over a window.

    Attributes:
        name: Name of the stage.
        group: Names of the stages that one worker call runs together, joined by "+"; they share workers, waits and
            queue.
        num_workers: Maximum elements the group processes at once.
        num_running: Elements it is processing now.
        queue_depth: Elements waiting for the group now.
        num_elements: Elements finished in the window.
        num_rows_in: Input rows.
        num_rows_out: Output rows.
        num_bytes_in: Input bytes.
        num_bytes_out: Output bytes.
        cpu_s: CPU seconds of the threads or processes that ran it.
        wall_s: Wall seconds, summed over workers.
        wait_input_s: Worker seconds spent waiting for input.
        wait_output_s: Worker seconds held back because enough results are ready or there is no memory for another one.
        wait_memory_s: Seconds (not summed over workers) without memory for another result.
        wait_worker_s: Seconds (not summed over workers) in which an element was waiting but all threads were busy with
            other stages.
        queued_s: Wall seconds in which worker processes were runnable but had no CPU; 0 for threads.
        visit_ratio: Elements per batch delivered; 0 if none was delivered.
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
    """Counters of the consumer over a window: batches and rows taken, seconds waiting, seconds between requests."""

    num_batches: int
    num_rows: int
    wait_s: float
    busy_s: float


@dataclass(frozen=True, slots=True)
class PipelineCounters:
    """Counters of a pipeline over a window.

    Attributes:
        window_s: Seconds covered.
        stages: Counters of each stage by name, in data order, starting with the source.
        consumer: Counters of the consumer.
        bytes_in_flight: Bytes charged to the memory ledger now.
        peak_bytes: Maximum bytes ever charged.
        budget_bytes: Memory budget of the ledger; 0 without a ledger.
        num_threads: Number of worker threads that may run stages at once.
        process_groups: Names of the groups whose stages run in worker processes.
        process_cpu_s: CPU seconds of all threads of this process.
        reads_storage: Whether the source reads from storage or a network, rather than from memory.
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
        """The counters as plain values."""
        return asdict(self)


@dataclass(slots=True)
class _ConsumerTotals:
    num_batches: int = 0
    num_rows: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0


@dataclass(slots=True)
class GroupNow:
    """Current workers and queue of a group."""

    name: str
    num_workers: int
    num_running: int
    queue_depth: int


@dataclass
class Recorder:
    """Totals of all stages and periodic copies of them. Not thread-safe: callers hold a lock.

    Attributes:
        names: Stage names, starting with the source.
        clock: Returns monotonic seconds.
        cpu_clock: Returns the CPU seconds of the process.
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
        """Copy the totals if the last copy is old enough."""
        if now >= self._next_copy:
            self._copies.append((now, self._copy()))
            self._next_copy = now + SNAPSHOT_EVERY_S

    def restart(self) -> None:
        """Restart the period of unlimited windows."""
        self._first = (self.clock(), self._copy())

    def delivered(self, num_rows: int, wait_s: float, busy_s: float) -> None:
        """Count a batch that the consumer took after waiting `wait_s`, having been busy elsewhere for `busy_s`."""
        self.consumer.num_batches += 1
        self.consumer.num_rows += num_rows
        self.consumer.wait_s += wait_s
        self.consumer.busy_s += busy_s

    def read(
        self, window_s: float, groups: Mapping[str, GroupNow]
    ) -> tuple[float, dict[str, StageReading], ConsumerReading]:
        """Read the window: seconds covered, counters of the stages and of the consumer.

        Args:
            window_s: Approximate length of the window, a minute at most; infinity for everything since `restart`, or
                since the pipeline was opened.
            groups: Current workers and queues.
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
        """CPU seconds of all threads of this process over the same window."""
        _, then = self._begin(self.clock(), window_s)
        return float(self.cpu_clock() - then[-1][0])

    def _begin(self, now: float, window_s: float) -> tuple[float, tuple[tuple[Any, ...], ...]]:
        """Start time of a window, and the totals at that time."""
        oldest = self._first if math.isinf(window_s) else self._copies[0]
        return next(((at, copy) for at, copy in reversed(self._copies) if at <= now - window_s), oldest)

    def _copy(self) -> tuple[tuple[Any, ...], ...]:
        return (*(_values(totals) for totals in self.stages.values()), _values(self.consumer), (self.cpu_clock(),))


def count_waits(
    stages: Mapping[str, StageTotals], state: PipelineState, names: Sequence[Sequence[str]], passed_s: float
) -> None:
    """Add `passed_s` to each idle lane's wait counter, per idle worker, according to the reason it is idle.

    Args:
        stages: Totals by name.
        state: State of the pipeline during these seconds.
        names: Names of the stages in each lane.
        passed_s: Seconds since the last call.
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
