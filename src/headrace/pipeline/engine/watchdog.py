"""The memory watchdog: checks actual memory use, independently of the ledger.

The ledger counts bytes of elements. It cannot see memory allocated by user functions while they run, by the model, or
by other processes in the same cgroup. So the watchdog reads the limits every quarter second. When little memory is left
it reduces prefetch first and workers second, until memory is free again.
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
"""Interval of checks. Each reads about a dozen small kernel files (0.9 ms on a slow machine): 0.4 % of one CPU."""

SHED_PREFETCH_ABOVE = 0.90
SHED_WORKERS_ABOVE = 0.95
RELAX_BELOW = 0.85
"""Thresholds as shares of the tightest limit. The gap between the last two is hysteresis, which prevents
oscillation."""

RESERVE_SHARE = 0.05
MAX_RESERVE_BYTES = 512 << 20
"""Share of a limit reserved for other allocations of the process between two checks."""

FREE_EVERY_BYTES = 8 << 20
"""Freeing unused allocator memory takes milliseconds, so it is repeated only after this much growth."""


def decide_pressure(now: Pressure, used_share: float) -> tuple[Pressure, str]:
    """Choose the pressure for a used share of the limit; returns it with the reason."""
    used = f"{used_share:.0%} of the memory limit is used"
    if used_share > SHED_WORKERS_ABOVE:
        return Pressure.WORKERS, f"{used}, above {SHED_WORKERS_ABOVE:.0%}: reducing to one worker without prefetch"
    if used_share > SHED_PREFETCH_ABOVE:
        if now is Pressure.WORKERS:
            return Pressure.PREFETCH, f"{used}, no longer above {SHED_WORKERS_ABOVE:.0%}: using all workers again"
        return Pressure.PREFETCH, f"{used}, above {SHED_PREFETCH_ABOVE:.0%}: prefetch stopped"
    if now is Pressure.NONE:
        return Pressure.NONE, f"{used}: no change"
    if used_share < RELAX_BELOW:
        return Pressure.NONE, f"{used}, below {RELAX_BELOW:.0%}: prefetch resumed"
    return Pressure.PREFETCH, f"{used}, not yet below {RELAX_BELOW:.0%}: prefetch stays off"


@cache
def interpreter_bytes() -> int:
    """Memory of this process when it opened its first pipeline, without file pages that the kernel can drop."""
    fields = System().read_fields("/proc/self/status")
    return fields.get("RssAnon", 0) + fields.get("RssShmem", 0) or resident_bytes()


class MemoryWatchdog:
    """Periodic memory check; a loop calls `poll`."""

    def __init__(
        self,
        decisions: Decisions,
        start_s: float,
        read: Callable[[], Memory] = effective_memory,
        read_again: Callable[[MemoryLimit], MemoryLimit] = read_again,
        tightest: MemoryLimit | None = None,
    ) -> None:
        """Schedule the first check soon after `start_s`."""
        self._decisions = decisions
        self._read, self._read_again = read, read_again
        self._tightest = tightest
        self._freed_at_bytes = 0
        self._next_s = start_s + CHECK_EVERY_S
        self._pressure = Pressure.NONE

    def is_due(self, now: float) -> bool:
        """Whether a check is due; claims it, so that only one caller runs it."""
        if now < self._next_s:
            return False
        self._next_s = now + CHECK_EVERY_S
        return True

    def look(self, *, free_unused: bool = False) -> MemoryLook:
        """Measure the memory left under the tightest limit of the last check.

        Args:
            free_unused: First free unused allocator memory, if the process has grown enough since the last time.
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
        """Read the limits and update the pressure."""
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
