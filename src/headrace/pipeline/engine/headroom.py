"""`Headroom`: whether the process has the memory for more work, whatever the ledger believes.

The ledger counts bytes of elements. What functions take beside them while they work is learned here, from how much the
process grew compared with what was expected; and what worker processes take from what they say with each result.

Plain numbers, without locks, clocks or files: `threads.py` looks at the memory and tells.
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
"""Growth for each byte of a result, before any was measured: a function that makes columns often copies them twice."""

MAX_FACTOR = 16.0
"""A process may grow for other reasons, such as a model that allocates in its first step."""

MIN_EXPECTED_BYTES = 1 << 20
"""Growth beside less work than this says nothing about the work."""

TEMPLATE_BYTES = 56 << 20
WORKER_BYTES = 32 << 20
"""What the process that forks workers takes (58 MiB measured), and a worker before one was measured (10 MiB without its
functions)."""


@dataclass(frozen=True, slots=True)
class MemoryLook:
    """Memory at one moment.

    Attributes:
        available_bytes: What may still be taken.
        used_bytes: Of this process.
        peak_bytes: The most it ever had.
    """

    available_bytes: int
    used_bytes: int
    peak_bytes: int


class Headroom:
    """What was available at the last look, less what the work started since then will take.

    Without a look there is no limit. Only half of what was seen is given away before memory is looked at again, so that
    near the limit every start follows a look of its own.
    """

    def __init__(self) -> None:
        """Nothing seen yet."""
        self._last: MemoryLook | None = None
        self._factor = RecentMax()
        self._growing_bytes = 0.0
        self._expected_bytes = 0
        self._is_fresh = True
        self._was_short = False

    @property
    def factor(self) -> float:
        """Growth of the process for each byte of a result."""
        return max(1.0, self._factor.value) if self._factor.value else FIRST_FACTOR

    @property
    def wants_look(self) -> bool:
        """Whether work was refused for lack of memory, and there may be more by now."""
        return self._was_short and not self._is_fresh

    def growth(self, result_bytes: int, worker_bytes: int | None) -> float:
        """What work will take: its result, and what functions need beside it, here or in a worker process."""
        return result_bytes * self.factor if worker_bytes is None else result_bytes + worker_bytes

    def fits(self, growth_bytes: float) -> bool:
        """Whether there is memory for so much more."""
        if self._last is None:
            return True
        available = self._last.available_bytes if self._is_fresh else self._last.available_bytes / 2
        fits = self._growing_bytes + growth_bytes <= available
        self._was_short = self._was_short or not fits
        return fits

    def started(self, result_bytes: int, growth_bytes: float) -> None:
        """Work was started that will take so much."""
        self._growing_bytes += growth_bytes
        self._expected_bytes += result_bytes
        self._is_fresh = False

    def finished(self, result_bytes: int, num_bytes: int) -> None:
        """Work is done whose result has another size than was expected."""
        self._expected_bytes += max(0, num_bytes - result_bytes)
        self._is_fresh = False

    def taken(self) -> None:
        """The consumer has taken an element, and so let go of the one before it."""
        self._is_fresh = False

    def look(self, now: MemoryLook, growing_bytes: float) -> None:
        """Start again from what is available now; work in progress may still take all it was started with."""
        last, self._last = self._last, now
        if last is not None and self._expected_bytes >= MIN_EXPECTED_BYTES:
            peak = now.peak_bytes if now.peak_bytes > last.peak_bytes else now.used_bytes
            growth = max(0, peak - last.used_bytes) / self._expected_bytes
            self._factor.add(min(max(growth, 1.0), MAX_FACTOR))
        self._growing_bytes, self._expected_bytes = growing_bytes, 0
        self._is_fresh, self._was_short = True, False


class WorkerMemory:
    """What the worker processes of a stage take. Any thread may call.

    Attributes:
        num_started: How many there are.
        is_short: Whether they should free what they do not need after each element.
    """

    def __init__(self) -> None:
        """Nothing measured yet."""
        self.num_started: Callable[[], int] = lambda: 0
        self.is_short = False
        self._lock = threading.Lock()
        self._is_known = False
        self._idle, self._growth, self._ratio = RecentMax(), RecentMax(), RecentMax()

    def learn(self, before_bytes: int, peak_bytes: int, result_bytes: int) -> None:
        """A worker had so much before an element came, and so much at most, both without what it shares."""
        growth = max(0, peak_bytes - before_bytes)
        with self._lock:
            self._idle.add(before_bytes)
            self._growth.add(growth)
            self._ratio.add(min(growth / max(result_bytes, 1), MAX_FACTOR))
            self._is_known = True

    def need_bytes(self, result_bytes: int, num_busy: int) -> int:
        """What the next element takes in its worker: less in one that is there than in one that has yet to start."""
        num_started = self.num_started()
        if self._is_known:
            growth, idle = max(self._growth.value, self._ratio.value * result_bytes), self._idle.value
        else:
            growth, idle = FIRST_FACTOR * result_bytes, WORKER_BYTES
        if num_busy < num_started:
            return int(growth)
        return int(growth + idle) + (0 if num_started else TEMPLATE_BYTES)


def check_floor(memory: Memory, interpreter_bytes: int, element_bytes: int, *, uses_processes: bool) -> None:
    """Refuse a memory limit under which not even one element at a time can be worked on.

    Args:
        memory: The limits.
        interpreter_bytes: What the process takes without the pipeline.
        element_bytes: Of the first element, as the source estimates it.
        uses_processes: Whether stages run in worker processes.

    Raises:
        ConfigError: Says the floor and what it consists of.
    """
    parts = {"Python and what is loaded": interpreter_bytes, "one element and its result": 2 * element_bytes}
    if uses_processes:
        parts["worker processes"] = TEMPLATE_BYTES
    floor, limit = sum(parts.values()), memory.limiting
    if limit.limit_bytes < floor:
        needs = ", ".join(f"{format_bytes(size)} for {what}" for what, size in parts.items() if size)
        raise ConfigError(
            f"memory: the limit is {format_bytes(limit.limit_bytes)} ({limit.what}: {limit.where}), "
            f"expected at least {format_bytes(floor)}: {needs}"
        )
