"""The memory this process may use: the smallest of all limits that apply, and what is left under each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath

from headrace.resources.quantities import parse_bytes
from headrace.resources.system import System

__all__ = ["Memory", "MemoryLimit", "effective_memory"]

OWN_VARIABLE = "HEADRACE_MEMORY"
"""Set by a user who wants less memory used than there is, as "4GiB"."""

NO_LIMIT_BYTES = 1 << 60
"""Version 1 of cgroups writes "no limit" as the largest page-aligned int64; nothing real is above an exbibyte."""


@dataclass(frozen=True)
class MemoryLimit:
    """One limit on memory.

    Attributes:
        what: What sets it.
        limit_bytes: The limit.
        used_bytes: What counts against it now, without file cache that the kernel gives back when asked.
        where: Where it was read.
    """

    what: str
    limit_bytes: int
    used_bytes: int
    where: str

    @property
    def available_bytes(self) -> int:
        """What may still be taken under this limit."""
        return max(0, self.limit_bytes - self.used_bytes)


@dataclass(frozen=True)
class Memory:
    """Memory this process may use now.

    Attributes:
        sources: Every limit found, the machine's own memory first.
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
        """What counts against the smallest limit."""
        return self.limiting.used_bytes

    @property
    def available_bytes(self) -> int:
        """What may still be taken: the least that any limit leaves, which need not be the smallest limit."""
        return min(source.available_bytes for source in self.sources)


def effective_memory(system: System | None = None) -> Memory:
    """The memory this process may use now: the smallest of machine, cgroup limits up the tree, rlimits and hints.

    Args:
        system: Where to read; the real machine when None.

    Raises:
        ConfigError: If the variable HEADRACE_MEMORY holds no size.
    """
    return Memory(tuple(_limits(system or System())))


def _limits(system: System) -> Iterator[MemoryLimit]:
    yield _physical(system)
    for version, folder in system.cgroup_folders("memory"):
        yield from _cgroup_limits(system, version, folder)
    status = system.read_fields("/proc/self/status")
    for name, limit_bytes in system.rlimits().items():
        used = status.get("VmSize" if name == "RLIMIT_AS" else "VmData", 0)
        yield MemoryLimit("rlimit", limit_bytes, used, name)
    resident = status.get("VmRSS", 0)
    own = system.environment.get(OWN_VARIABLE)
    if own:
        limit_bytes = parse_bytes(own, where=f"environment variable {OWN_VARIABLE}")
        yield MemoryLimit("user", limit_bytes, resident, OWN_VARIABLE)
    for what, limit_bytes, where in _hints(system):
        yield MemoryLimit(what, limit_bytes, resident, where)


def _physical(system: System) -> MemoryLimit:
    fields = system.read_fields("/proc/meminfo")
    if "MemTotal" in fields:
        # MemAvailable is the kernel's own estimate with the cache it would give back (Linux 3.14 and later).
        available = fields.get("MemAvailable", fields.get("MemFree", 0))
        return MemoryLimit("machine", fields["MemTotal"], fields["MemTotal"] - available, "/proc/meminfo")
    import psutil  # not Linux

    memory = psutil.virtual_memory()
    return MemoryLimit("machine", int(memory.total), int(memory.total - memory.available), "psutil.virtual_memory()")


def _cgroup_limits(system: System, version: int, folder: PurePosixPath) -> Iterator[MemoryLimit]:
    # Above memory.high a cgroup is not killed but slowed down without mercy: for us both are limits.
    limits = ("memory.max", "memory.high") if version == 2 else ("memory.limit_in_bytes",)
    usage = folder / ("memory.current" if version == 2 else "memory.usage_in_bytes")
    for name in limits:
        text = (system.read(folder / name) or "").strip()
        if text.isdigit() and int(text) < NO_LIMIT_BYTES:
            current = (system.read(usage) or "").strip()
            used = (int(current) if current.isdigit() else 0) - _reclaimable_bytes(system, version, folder)
            yield MemoryLimit(f"cgroup v{version} {name.split('.')[1]}", int(text), max(0, used), str(folder / name))


def _reclaimable_bytes(system: System, version: int, folder: PurePosixPath) -> int:
    """File cache the kernel takes back before it kills: clean pages of both lists (tmpfs is in neither), slab."""
    fields = system.read_fields(folder / "memory.stat")
    prefix, dirty = ("", "file_dirty") if version == 2 else ("total_", "total_dirty")
    cache = fields.get(f"{prefix}inactive_file", 0) + fields.get(f"{prefix}active_file", 0)
    return max(0, cache - fields.get(dirty, 0)) + fields.get("slab_reclaimable", 0)


def _hints(system: System) -> Iterator[tuple[str, int, str]]:
    def megabytes(name: str) -> int | None:
        text = system.environment.get(name, "")
        return int(text) << 20 if text.isdigit() and int(text) > 0 else None  # Slurm writes 0 for "all of the node"

    node = megabytes("SLURM_MEM_PER_NODE")
    if node is not None:
        yield "Slurm, memory of the job on this node", node, "SLURM_MEM_PER_NODE"
    each, cpus = megabytes("SLURM_MEM_PER_CPU"), system.environment.get("SLURM_CPUS_ON_NODE", "")
    if each is not None and cpus.isdigit() and int(cpus) > 0:
        yield "Slurm, memory of the job's CPUs", each * int(cpus), "SLURM_MEM_PER_CPU"
    kubernetes = system.environment.get("KUBERNETES_MEMORY_LIMIT", "")
    if kubernetes.isdigit() and int(kubernetes) > 0:
        yield "Kubernetes, limits.memory through the downward API", int(kubernetes), "KUBERNETES_MEMORY_LIMIT"
