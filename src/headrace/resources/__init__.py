"""The CPUs and memory that this process may currently use.

A container with two CPUs on a machine with 64 still reads 64 from `os.cpu_count()`, and a process in a 4 GiB cgroup
still reads 256 GiB from `/proc/meminfo`. Both lead to too many threads and to the out-of-memory killer. So all limits
are read (`headrace doctor` prints them), and the smallest one applies.
"""

from headrace.resources.cpus import CpuLimit, Cpus, effective_cpus, queued_s
from headrace.resources.memory import (
    Memory,
    MemoryLimit,
    effective_memory,
    free_unused_memory,
    peak_bytes,
    read_again,
    resident_bytes,
)
from headrace.resources.monitor import ResourceChange, ResourceMonitor, Resources, compare, effective_resources
from headrace.resources.quantities import format_bytes, parse_bytes
from headrace.resources.system import System

__all__ = [
    "CpuLimit",
    "Cpus",
    "Memory",
    "MemoryLimit",
    "ResourceChange",
    "ResourceMonitor",
    "Resources",
    "System",
    "compare",
    "effective_cpus",
    "effective_memory",
    "effective_resources",
    "format_bytes",
    "free_unused_memory",
    "parse_bytes",
    "peak_bytes",
    "queued_s",
    "read_again",
    "resident_bytes",
]
