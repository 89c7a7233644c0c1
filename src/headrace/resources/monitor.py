"""`ResourceMonitor`: detects that the machine was resized while a job runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from headrace.resources.cpus import Cpus, effective_cpus
from headrace.resources.memory import Memory, effective_memory
from headrace.resources.quantities import format_bytes
from headrace.resources.system import System

__all__ = ["ResourceChange", "ResourceMonitor", "Resources", "compare", "effective_resources"]


@dataclass(frozen=True)
class Resources:
    """CPUs and memory at one point in time."""

    cpus: Cpus
    memory: Memory


@dataclass(frozen=True)
class ResourceChange:
    """A resize: resources before and after, and the reason in one line."""

    before: Resources
    after: Resources
    reason: str


def effective_resources(system: System | None = None) -> Resources:
    """CPUs and memory that this process may use now; see `effective_cpus` and `effective_memory`."""
    system = system or System()
    return Resources(cpus=effective_cpus(system), memory=effective_memory(system))


def compare(before: Resources, after: Resources) -> ResourceChange | None:
    """Compare resources; returns the resize, or None. Only limits are compared, because use changes all the time."""
    reasons = []
    if before.cpus.count != after.cpus.count:
        limit = after.cpus.limiting
        reasons.append(f"CPUs {before.cpus.count:g} -> {after.cpus.count:g} ({limit.what}: {limit.where})")
    if before.memory.limit_bytes != after.memory.limit_bytes:
        sizes = f"{format_bytes(before.memory.limit_bytes)} -> {format_bytes(after.memory.limit_bytes)}"
        reasons.append(f"memory {sizes} ({after.memory.limiting.what}: {after.memory.limiting.where})")
    return ResourceChange(before, after, "; ".join(reasons)) if reasons else None


class ResourceMonitor:
    """Remembers the last limits and reports changes.

    It has no thread or clock: call `poll` in a loop, about every second (a poll reads about a dozen small kernel files,
    in 0.9 ms on a slow virtual machine).
    """

    def __init__(self, read: Callable[[], Resources] = effective_resources) -> None:
        """Read resources with `read`."""
        self._read = read
        self._last = read()

    @property
    def resources(self) -> Resources:
        """The resources at the last poll."""
        return self._last

    def poll(self) -> ResourceChange | None:
        """Read the resources; returns the change since the last call, or None."""
        before, self._last = self._last, self._read()
        return compare(before, self._last)
