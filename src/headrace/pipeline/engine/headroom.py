"""`Headroom`: whether the process has memory for more work, based on measurements rather than the ledger.

The ledger counts bytes of elements. This class learns how much extra memory functions need while they run, from the
growth of the process compared with the expected growth, and how much worker processes need, from what they report with
each result.

Plain numbers, without locks, clocks or files: `thread_feed.py` measures the memory and reports it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.pipeline.engine.ledger import RecentMax
from headrace.resources import Memory, format_bytes

__all__ = ["Headroom", "MemoryLook", "WorkerMemory", "check_floor"]

FIRST_FACTOR = 3.0
"""Initial guess of growth per result byte: a function that makes columns often copies them twice."""

MAX_FACTOR = 16.0
"""Limit of the learned factor: a process may grow for other reasons, such as a model's first step."""

MIN_EXPECTED_BYTES = 1 << 20
"""With less work than this in progress, growth says nothing about the work."""

TEMPLATE_BYTES = 56 << 20
WORKER_BYTES = 32 << 20
"""Memory of the process that forks workers (58 MiB measured), and a first guess for a worker (10 MiB without
functions)."""


@dataclass(frozen=True, slots=True)
class MemoryLook:
    """A memory measurement.

    Attributes:
        available_bytes: Memory that may still be allocated.
        used_bytes: Memory used by this process.
        peak_bytes: Peak memory of this process.
    """

    available_bytes: int
    used_bytes: int
    peak_bytes: int


class Headroom:
    """Memory available at the last measurement, minus the needs of work started since.

    Before the first measurement there is no limit. Only half of the available memory is given out before it is measured
    again, so near the limit every start follows a fresh measurement.
    """

    def __init__(self) -> None:
        """Start without a measurement."""
        self._last: MemoryLook | None = None
        self._factor = RecentMax()
        self._growing_bytes = 0.0
        self._expected_bytes = 0
        self._is_fresh = True
        self._was_short = False

    @property
    def factor(self) -> float:
        """Growth of the process per result byte."""
        return max(1.0, self._factor.value) if self._factor.value else FIRST_FACTOR

    @property
    def wants_look(self) -> bool:
        """Whether work was refused for lack of memory since the last measurement, so that a new one is worthwhile."""
        return self._was_short and not self._is_fresh

    def growth(self, result_bytes: int, worker_bytes: int | None) -> float:
        """Expected memory growth from some work: its result, plus what functions need in this or a worker process."""
        return result_bytes * self.factor if worker_bytes is None else result_bytes + worker_bytes

    def fits(self, growth_bytes: float) -> bool:
        """Whether there is memory for this growth."""
        if self._last is None:
            return True
        available = self._last.available_bytes if self._is_fresh else self._last.available_bytes / 2
        fits = self._growing_bytes + growth_bytes <= available
        self._was_short = self._was_short or not fits
        return fits

    def started(self, result_bytes: int, growth_bytes: float) -> None:
        """Record the start of work with this expected growth."""
        self._growing_bytes += growth_bytes
        self._expected_bytes += result_bytes
        self._is_fresh = False

    def finished(self, result_bytes: int, num_bytes: int) -> None:
        """Record the end of work, whose result may differ in size from the estimate."""
        self._expected_bytes += max(0, num_bytes - result_bytes)
        self._is_fresh = False

    def taken(self) -> None:
        """Record that the consumer took an element, and so released the previous one."""
        self._is_fresh = False

    def look(self, now: MemoryLook, growing_bytes: float) -> None:
        """Take a new measurement; work in progress may still grow by its full expected amount."""
        last, self._last = self._last, now
        if last is not None and self._expected_bytes >= MIN_EXPECTED_BYTES:
            peak = now.peak_bytes if now.peak_bytes > last.peak_bytes else now.used_bytes
            growth = max(0, peak - last.used_bytes) / self._expected_bytes
            self._factor.add(min(max(growth, 1.0), MAX_FACTOR))
        self._growing_bytes, self._expected_bytes = growing_bytes, 0
        self._is_fresh, self._was_short = True, False


class WorkerMemory:
    """Memory needs of a stage's worker processes. Thread-safe.

    Attributes:
        num_started: Number of worker processes.
        is_short: Whether memory is short, so that workers should free unused memory after each element.
    """

    def __init__(self) -> None:
        """Start without measurements."""
        self.num_started: Callable[[], int] = lambda: 0
        self.is_short = False
        self._lock = threading.Lock()
        self._is_known = False
        self._idle, self._growth, self._ratio = RecentMax(), RecentMax(), RecentMax()

    def learn(self, before_bytes: int, peak_bytes: int, result_bytes: int) -> None:
        """Record a worker's memory before an element and its peak, both without shared pages."""
        growth = max(0, peak_bytes - before_bytes)
        with self._lock:
            self._idle.add(before_bytes)
            self._growth.add(growth)
            self._ratio.add(min(growth / max(result_bytes, 1), MAX_FACTOR))
            self._is_known = True

    def need_bytes(self, result_bytes: int, num_busy: int) -> int:
        """Expected memory of the next element in its worker; more if a new worker must be started for it."""
        num_started = self.num_started()
        if self._is_known:
            growth, idle = max(self._growth.value, self._ratio.value * result_bytes), self._idle.value
        else:
            growth, idle = FIRST_FACTOR * result_bytes, WORKER_BYTES
        if num_busy < num_started:
            return int(growth)
        return int(growth + idle) + (0 if num_started else TEMPLATE_BYTES)


def check_floor(memory: Memory, interpreter_bytes: int, element_bytes: int, *, uses_processes: bool) -> None:
    """Refuse a memory limit that is too low to process even one element at a time.

    Args:
        memory: The limits.
        interpreter_bytes: Memory of the process without the pipeline.
        element_bytes: The source's estimate for the first element.
        uses_processes: Whether stages run in worker processes.

    Raises:
        ConfigError: The limit is below the minimum, which the message itemises.
    """
    parts = {"Python and loaded modules": interpreter_bytes, "one element and its result": 2 * element_bytes}
    if uses_processes:
        parts["worker processes"] = TEMPLATE_BYTES
    floor, limit = sum(parts.values()), memory.limiting
    if limit.limit_bytes < floor:
        needs = ", ".join(f"{format_bytes(size)} for {what}" for what, size in parts.items() if size)
        raise ConfigError(
            f"memory: the limit is {format_bytes(limit.limit_bytes)} ({limit.what}: {limit.where}), "
            f"expected at least {format_bytes(floor)}: {needs}"
        )
