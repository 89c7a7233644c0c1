"""The number of CPUs that this process may use: the smallest of all limits."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

from headrace.errors import ConfigError
from headrace.resources.system import System

__all__ = ["CpuLimit", "Cpus", "effective_cpus", "queued_s"]

OWN_VARIABLE = "HEADRACE_CPUS"
"""Set by users to limit CPUs; an invalid value is an error, not ignored."""

HINTS = {
    "SLURM_CPUS_PER_TASK": "Slurm, CPUs of this task",
    "SLURM_CPUS_ON_NODE": "Slurm, CPUs of the job on this node",
    "KUBERNETES_CPU_LIMIT": "Kubernetes, limits.cpu through the downward API",
}
"""Variables of schedulers. Kubernetes has none; map `resourceFieldRef: limits.cpu` to this one."""


@dataclass(frozen=True)
class CpuLimit:
    """A limit on CPUs: what sets it, the number of CPUs, and where it was read."""

    what: str
    count: float
    where: str


@dataclass(frozen=True)
class Cpus:
    """The CPUs that this process may use now.

    Attributes:
        count: The smallest limit; cgroup quotas may be fractional.
        sources: All limits found, starting with the machine's CPUs.
    """

    count: float
    sources: tuple[CpuLimit, ...]

    @property
    def limiting(self) -> CpuLimit:
        """The smallest limit."""
        return min(self.sources, key=lambda limit: limit.count)

    @property
    def num_threads(self) -> int:
        """Number of threads that can run at once: `count` rounded down, at least 1."""
        return max(1, math.floor(self.count + 1e-6))


def queued_s(thread: int | None = None) -> float:
    """Seconds that a thread has been runnable without a CPU since it started; takes about 20 us.

    Args:
        thread: Native id of a thread of this process; None for the calling thread.

    Returns:
        The seconds; 0 if the system does not report them or the thread has ended.
    """
    path = "/proc/thread-self/schedstat" if thread is None else f"/proc/self/task/{thread}/schedstat"
    try:
        with open(path) as file:
            return int(file.read().split()[1]) * 1e-9
    except (OSError, IndexError, ValueError):
        return 0.0


def effective_cpus(system: System | None = None) -> Cpus:
    """Determine the CPUs that this process may use now: the smallest of machine, affinity, cpuset, cgroup quotas and
    hints.

    Args:
        system: Source of the limits; None for the real machine.

    Raises:
        ConfigError: HEADRACE_CPUS is not a positive number.
    """
    sources = tuple(_limits(system or System()))
    return Cpus(count=min(limit.count for limit in sources), sources=sources)


def _limits(system: System) -> Iterator[CpuLimit]:
    online = _count_cpu_list(system.read("/sys/devices/system/cpu/online") or "")
    if online:
        yield CpuLimit("machine", online, "/sys/devices/system/cpu/online")
    else:
        yield CpuLimit("machine", system.cpu_count() or 1, "os.cpu_count()")
    affinity = system.affinity()
    if affinity:
        yield CpuLimit("affinity", affinity, "sched_getaffinity")
    yield from _cpusets(system)
    yield from _quotas(system)
    yield from _variables(system)


def _cpusets(system: System) -> Iterator[CpuLimit]:
    # A cpuset's effective CPUs are a subset of its parent's, so the first folder that has them is enough.
    names = {1: ("cpuset.effective_cpus", "cpuset.cpus"), 2: ("cpuset.cpus.effective", "cpuset.cpus")}
    for version, folder in system.cgroup_folders("cpuset"):
        for name in names[version]:
            count = _count_cpu_list(system.read(folder / name) or "")
            if count:
                yield CpuLimit(f"cpuset (cgroup v{version})", count, str(folder / name))
                return


def _quotas(system: System) -> Iterator[CpuLimit]:
    for version, folder in system.cgroup_folders("cpu"):
        if version == 2:
            words = (system.read(folder / "cpu.max") or "").split()
            where = folder / "cpu.max"
        else:
            where = folder / "cpu.cfs_quota_us"
            words = [(system.read(where) or "").strip(), (system.read(folder / "cpu.cfs_period_us") or "").strip()]
        # No quota is "max" (version 2) or -1 (version 1).
        if len(words) == 2 and words[0].isdigit() and words[1].isdigit() and int(words[0]) > 0 < int(words[1]):
            yield CpuLimit(f"cgroup v{version} quota", int(words[0]) / int(words[1]), str(where))


def _variables(system: System) -> Iterator[CpuLimit]:
    own = system.environment.get(OWN_VARIABLE)
    if own:
        count = _parse_cpus(own)
        if count is None:
            raise ConfigError(f"environment variable {OWN_VARIABLE}: given {own!r}, expected a number of CPUs above 0")
        yield CpuLimit("user", count, OWN_VARIABLE)
    for name, what in HINTS.items():
        count = _parse_cpus(system.environment.get(name, ""))
        if count is not None:
            yield CpuLimit(what, count, name)


def _parse_cpus(text: str) -> float | None:
    """Parse a positive number of CPUs, also in Kubernetes' thousandths ("1500m"); None if invalid."""
    milli = text.strip().endswith("m")
    try:
        count = float(text.strip().removesuffix("m")) / (1000 if milli else 1)
    except ValueError:
        return None
    return count if math.isfinite(count) and count > 0 else None


def _count_cpu_list(text: str) -> int:
    """Number of CPUs in a kernel list such as "0-3,8"; 0 if it is empty or invalid."""
    count = 0
    for part in text.strip().split(","):
        first, _, last = part.partition("-")
        if not first.isdigit() or (last and not last.isdigit()):
            return 0
        count += int(last or first) - int(first) + 1
    return count
