"""The memory that this process may use: the smallest of all limits, and the memory left under each."""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from headrace.resources.quantities import parse_bytes
from headrace.resources.system import System

__all__ = [
    "Memory",
    "MemoryLimit",
    "effective_memory",
    "free_unused_memory",
    "peak_bytes",
    "read_again",
    "resident_bytes",
]

OWN_VARIABLE = "HEADRACE_MEMORY"
"""Set by users to limit memory, as "4GiB"."""

NO_LIMIT_BYTES = 1 << 60
"""cgroups version 1 represents "no limit" by the largest page-aligned int64; no real limit is above an exbibyte."""


@dataclass(frozen=True)
class MemoryLimit:
    """A limit on memory.

    Attributes:
        what: What sets the limit.
        limit_bytes: The limit.
        used_bytes: Memory that counts against it now, without reclaimable file cache.
        where: Where it was read.
    """

    what: str
    limit_bytes: int
    used_bytes: int
    where: str

    @property
    def available_bytes(self) -> int:
        """Memory that may still be allocated under this limit."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class Memory:
    """The memory that this process may use now.

    Attributes:
        sources: All limits found, starting with the machine's memory.
    """

    sources: tuple[MemoryLimit, ...]

    @property
    def limiting(self) -> MemoryLimit:
        """The smallest limit."""
        return min(self.sources, key=lambda source: source.limit_bytes)

    @property
    def limit_bytes(self) -> int:
        """The smallest limit, in bytes."""
        return self.limiting.limit_bytes

    @property
    def used_bytes(self) -> int:
        """Memory that counts against the smallest limit."""
        return self.limiting.used_bytes

    @property
    def tightest(self) -> MemoryLimit:
        """The limit with the least memory left."""
        return min(self.sources, key=lambda source: source.available_bytes)

    @property
    def available_bytes(self) -> int:
        """Memory that may still be allocated: the minimum over all limits, not necessarily under the smallest one."""
        return self.tightest.available_bytes


def effective_memory(system: System | None = None) -> Memory:
    """Determine the memory that this process may use now: the smallest of machine, cgroup limits, rlimits and hints.

    Args:
        system: Source of the limits; None for the real machine.

    Raises:
        ConfigError: HEADRACE_MEMORY is not a valid size.
    """
    return Memory(tuple(_limits(system or System())))


def resident_bytes() -> int:
    """Current memory of this process."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * mmap.PAGESIZE
    except OSError:
        import psutil  # not Linux

        return int(psutil.Process().memory_info().rss)


def peak_bytes() -> int:
    """Peak memory of this process."""
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def free_unused_memory() -> None:
    """Return freed memory to the system, of which allocators keep up to 64 MiB per thread."""
    if "pyarrow" in sys.modules:
        sys.modules["pyarrow"].default_memory_pool().release_unused()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


def read_again(limit: MemoryLimit, system: System | None = None) -> MemoryLimit:
    """Update the use of a limit, reading one or two small files, where `effective_memory` reads a dozen."""
    system = system or System()
    if limit.what == "machine":
        return _physical(system)
    for version in (1, 2):
        if limit.what.startswith(f"cgroup v{version}"):
            return replace(limit, used_bytes=_cgroup_used(system, version, PurePosixPath(limit.where).parent))
    if limit.what == "rlimit":
        return replace(limit, used_bytes=system.read_fields("/proc/self/status").get(_RLIMIT_FIELDS[limit.where], 0))
    return replace(limit, used_bytes=_resident_bytes(system))


_RLIMIT_FIELDS = {"RLIMIT_AS": "VmSize", "RLIMIT_DATA": "VmData"}


def _limits(system: System) -> Iterator[MemoryLimit]:
    yield _physical(system)
    for version, folder in system.cgroup_folders("memory"):
        yield from _cgroup_limits(system, version, folder)
    status = system.read_fields("/proc/self/status")
    for name, limit_bytes in system.rlimits().items():
        yield MemoryLimit("rlimit", limit_bytes, status.get(_RLIMIT_FIELDS[name], 0), name)
    hints = list(_hints(system))
    own = system.environment.get(OWN_VARIABLE)
    if own:
        hints.insert(0, ("user", parse_bytes(own, where=f"environment variable {OWN_VARIABLE}"), OWN_VARIABLE))
    if hints:
        resident = _resident_bytes(system)
        for what, limit_bytes, where in hints:
            yield MemoryLimit(what, limit_bytes, resident, where)


def _resident_bytes(system: System) -> int:
    """Resident memory of this process and its descendants, counting shared pages once (PSS) if the kernel reports
    it."""
    total, waiting = 0, ["self"]
    for process in waiting:
        for thread in system.names(f"/proc/{process}/task"):
            waiting += (system.read(f"/proc/{process}/task/{thread}/children") or "").split()
    for process in waiting:
        shared = system.read_fields(f"/proc/{process}/smaps_rollup").get("Pss") if len(waiting) > 1 else None
        total += system.read_fields(f"/proc/{process}/status").get("VmRSS", 0) if shared is None else shared
    return total


def _physical(system: System) -> MemoryLimit:
    fields = system.read_fields("/proc/meminfo")
    if "MemTotal" in fields:
        # MemAvailable is the kernel's estimate including reclaimable cache (Linux 3.14 and later).
        available = fields.get("MemAvailable", fields.get("MemFree", 0))
        return MemoryLimit("machine", fields["MemTotal"], fields["MemTotal"] - available, "/proc/meminfo")
    import psutil  # not Linux

    memory = psutil.virtual_memory()
    return MemoryLimit("machine", int(memory.total), int(memory.total - memory.available), "psutil.virtual_memory()")


def _cgroup_limits(system: System, version: int, folder: PurePosixPath) -> Iterator[MemoryLimit]:
    # Above memory.high a cgroup is not killed but throttled heavily, so both are limits.
    limits = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    for name in limits:
        text = (system.read(folder / name) or "").strip()
        if text.isdigit() and int(text) < NO_LIMIT_BYTES:
            used = _cgroup_used(system, version, folder)
            yield MemoryLimit(f"cgroup v{version} {name.split('.')[1]}", int(text), used, str(folder / name))


def _cgroup_used(system: System, version: int, folder: PurePosixPath) -> int:
    current = system.read(folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")) or ""
    used = int(current) if current.strip().isdigit() else 0
    return max(0, used - _reclaimable_bytes(system, version, folder))


def _reclaimable_bytes(system: System, version: int, folder: PurePosixPath) -> int:
    """Reclaimable file cache: clean pages of both lists (tmpfs is in neither) and slab."""
    fields = system.read_fields(folder / "memory.stat")
    prefix, dirty = ("", "file_dirty") if version == 2 else ("total_", "total_dirty")
    cache = fields.get(f"{prefix}inactive_file", 0) + fields.get(f"{prefix}active_file", 0)
    return max(0, cache - fields.get(dirty, 0)) + fields.get("slab_reclaimable", 0)


def _hints(system: System) -> Iterator[tuple[str, int, str]]:
    def megabytes(name: str) -> int | None:
        text = system.environment.get(name, "")
        return int(text) << 20 if text.isdigit() and int(text) > 0 else None  # 0 means "all of the node" in Slurm

    node = megabytes("SLURM_MEM_PER_NODE")
    if node is not None:
        yield "Slurm, memory of the job on this node", node, "SLURM_MEM_PER_NODE"
    each, cpus = megabytes("SLURM_MEM_PER_CPU"), system.environment.get("SLURM_CPUS_ON_NODE", "")
    if each is not None and cpus.isdigit() and int(cpus) > 0:
        yield "Slurm, memory of the job's CPUs", each * int(cpus), "SLURM_MEM_PER_CPU"
    kubernetes = system.environment.get("KUBERNETES_MEMORY_LIMIT", "")
    if kubernetes.isdigit() and int(kubernetes) > 0:
        yield "Kubernetes, limits.memory through the downward API", int(kubernetes), "KUBERNETES_MEMORY_LIMIT"
