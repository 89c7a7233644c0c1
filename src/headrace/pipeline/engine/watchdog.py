"""The memory watchdog: what the machine says, whatever the ledger believes.

The ledger counts bytes of elements; it cannot see what user functions allocate while they run, the model, or other
processes in the same cgroup. So the limits themselves are read every quarter second, and if little is left, prefetch
is shed first and workers second, until memory is free again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from headrace.pipeline.engine.decisions import Decisions
from headrace.pipeline.engine.headroom import MemoryLook
from headrace.pipeline.engine.state import Pressure
from headrace.resources import (
    Memory,
    MemoryLimit,
    System,
    effective_memory,
    format_bytes,
    free_unused_memory,
    peak_bytes,
    read_again,
    resident_bytes,
)

__all__ = ["MemoryWatchdog", "decide_pressure", "interpreter_bytes"]

CHECK_EVERY_S = 0.25
"""A check reads about a dozen small kernel files (0.9 ms on a slow machine): 0.4 % of one CPU."""

SHED_PREFETCH_ABOVE = 0.90
SHED_WORKERS_ABOVE = 0.95
RELAX_BELOW = 0.85
"""Shares of the tightest limit. Between the last two nothing changes, so that it does not swing."""

RESERVE_SHARE = 0.05
MAX_RESERVE_BYTES = 512 << 20
"""Of a limit, left to what else the process does between two looks."""

FREE_EVERY_BYTES = 8 << 20
"""Freeing what allocators keep takes milliseconds, so the process must have grown by this much since the last time."""


def decide_pressure(now: Pressure, used_share: float) -> tuple[Pressure, str]:
    """The pressure at some share of the limit used, and why."""
    used = f"{used_share:.0%} of the memory limit is used"
    if used_share > SHED_WORKERS_ABOVE:
        return Pressure.WORKERS, f"{used}, above {SHED_WORKERS_ABOVE:.0%}: one worker and nothing ahead"
    if used_share > SHED_PREFETCH_ABOVE:
        if now is Pressure.WORKERS:
            return Pressure.PREFETCH, f"{used}, no longer above {SHED_WORKERS_ABOVE:.0%}: all workers again"
        return Pressure.PREFETCH, f"{used}, above {SHED_PREFETCH_ABOVE:.0%}: nothing is made ahead"
    if now is Pressure.NONE:
        return Pressure.NONE, f"{used}: nothing to do"
    if used_share < RELAX_BELOW:
        return Pressure.NONE, f"{used}, below {RELAX_BELOW:.0%}: prefetch again"
    return Pressure.PREFETCH, f"{used}, not yet below {RELAX_BELOW:.0%}: nothing is made ahead"


@cache
def interpreter_bytes() -> int:
    """What this process took when it opened its first pipeline, without files that the kernel can read again."""
    fields = System().read_fields("/proc/self/status")
    return fields.get("RssAnon", 0) + fields.get("RssShmem", 0) or resident_bytes()


class MemoryWatchdog:
    """Checks now and then; whoever has a loop calls `poll` in it."""

    def __init__(
        self,
        decisions: Decisions,
        start_s: float,
        read: Callable[[], Memory] = effective_memory,
        read_again: Callable[[MemoryLimit], MemoryLimit] = read_again,
        tightest: MemoryLimit | None = None,
    ) -> None:
        """Check for the first time soon after `start_s`."""
        self._decisions = decisions
        self._read, self._read_again = read, read_again
        self._tightest = tightest
        self._freed_at_bytes = 0
        self._next_s = start_s + CHECK_EVERY_S
        self._pressure = Pressure.NONE

    def is_due(self, now: float) -> bool:
        """Whether it is time; claims the check, so that one caller makes it."""
        if now < self._next_s:
            return False
        self._next_s = now + CHECK_EVERY_S
        return True

    def look(self, *, free_unused: bool = False) -> MemoryLook:
        """What is left under the limit that left least at the last check.

        Args:
            free_unused: Free what allocators only keep, if it may be worth its time: the process has grown since.
        """
        if free_unused and resident_bytes() > self._freed_at_bytes + FREE_EVERY_BYTES:
            free_unused_memory()
            self._freed_at_bytes = resident_bytes()
        if self._tightest is None:
            self._tightest = self._read().tightest
        else:
            self._tightest = self._read_again(self._tightest)
        reserve = min(RESERVE_SHARE * self._tightest.limit_bytes, MAX_RESERVE_BYTES)
        available = max(0, self._tightest.available_bytes - int(reserve))
        return MemoryLook(available, resident_bytes(), peak_bytes())

    def poll(self) -> Pressure:
        """Read the limits and decide."""
        memory = self._read()
        self._tightest = memory.tightest if memory.sources else None
        tightest = min(memory.sources, key=lambda each: each.available_bytes / max(1, each.limit_bytes))
        share = 1 - tightest.available_bytes / max(1, tightest.limit_bytes)
        before = self._pressure
        self._pressure, reason = decide_pressure(before, share)
        if self._pressure is not before:
            self._decisions.record(
                "memory watchdog",
                {"pressure": (before.value, self._pressure.value)},
                f"{reason} ({tightest.what}, {format_bytes(tightest.limit_bytes)})",
                {"used_bytes": tightest.used_bytes, "limit_bytes": tightest.limit_bytes},
            )
        return self._pressure
