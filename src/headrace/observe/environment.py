"""Examines the machine and the installation: CPUs, memory, threads, bf16, versions, disk."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from headrace.kernel_folders import CACHE_VARIABLE, kernel_folders
from headrace.resources import Cpus, Memory, System, effective_cpus, effective_memory, format_bytes

__all__ = ["Environment", "MatrixSpeed", "examine", "find_warnings", "measure_matrix_speed"]

PACKAGES = ("torch", "numpy", "numba", "pyarrow", "pydantic", "safetensors", "fsspec", "tensorboard", "torchrec")
BF16_FLAGS = ("avx512_bf16", "amx_bf16", "amx_tile", "avx512f", "avx2", "bf16")
"""CPU flags of /proc/cpuinfo; the last one is that of Arm processors."""
SMALL_SHM_BYTES = 1 << 30
"""Docker's default is 64 MiB, with which PyTorch's DataLoader workers die with a bus error."""
SMALL_DISK_BYTES = 5 << 30


@dataclass(frozen=True)
class MatrixSpeed:
    """Speed of multiplying two square matrices, in GFLOP/s; None if unsupported."""

    size: int
    fp32: float | None
    bf16: float | None


@dataclass(frozen=True)
class Environment:
    """The resources of the machine and the installation.

    Attributes:
        cpus: Limits on CPUs.
        memory: Limits on memory.
        threads: Number of threads of each library with a thread pool.
        flags: Those of `BF16_FLAGS` that the processor has.
        matrix_speed: Measured speed of matrix products.
        versions: Versions of Python and installed packages.
        disks: (what, path, free bytes, total bytes); "temporary folder" only if there is one.
        shm_bytes: Size of /dev/shm, or None if it does not exist.
        processor: Name of the processor.
        kernels: Folder of compiled kernels, or None if no folder is writable.
    """

    cpus: Cpus
    memory: Memory
    threads: Mapping[str, int]
    flags: tuple[str, ...]
    matrix_speed: MatrixSpeed
    versions: Mapping[str, str]
    disks: tuple[tuple[str, str, int, int], ...]
    shm_bytes: int | None
    processor: str
    kernels: Path | None = None

    def to_dict(self) -> dict[str, Any]:
        """All values as plain data, with the warnings."""
        return {
            "processor": self.processor,
            "cpus": {
                "count": self.cpus.count,
                "limiting": self.cpus.limiting.what,
                "sources": [asdict(source) for source in self.cpus.sources],
            },
            "memory": {
                "limit_bytes": self.memory.limit_bytes,
                "used_bytes": self.memory.used_bytes,
                "available_bytes": self.memory.available_bytes,
                "limiting": self.memory.limiting.what,
                "sources": [asdict(source) for source in self.memory.sources],
            },
            "threads": dict(self.threads),
            "bf16": {"flags": list(self.flags), **asdict(self.matrix_speed)},
            "versions": dict(self.versions),
            "disks": [
                dict(zip(("what", "path", "free_bytes", "total_bytes"), disk, strict=True)) for disk in self.disks
            ],
            "shm_bytes": self.shm_bytes,
            "kernels": None if self.kernels is None else str(self.kernels),
            "warnings": find_warnings(self),
        }


def examine(system: System | None = None) -> Environment:
    """Examine everything; takes about a second and imports torch, Numba and Arrow.

    Args:
        system: Source of the limits; None for the real machine.
    """
    system = system or System()
    words = (system.read("/proc/cpuinfo") or "").splitlines()
    return Environment(
        cpus=effective_cpus(system),
        memory=effective_memory(system),
        threads=_threads(),
        flags=_flags(words),
        matrix_speed=measure_matrix_speed(),
        versions=_versions(),
        disks=tuple(_disks()),
        shm_bytes=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,
        processor=next((line.partition(":")[2].strip() for line in words if line.startswith("model name")), "")
        or platform.processor()
        or platform.machine(),
        kernels=kernel_folders(Path(__file__).parents[1] / "features").kept,
    )


def find_warnings(found: Environment) -> list[str]:
    """Likely problems with speed or resources, each with a remedy."""
    warnings = []
    for what, count in found.threads.items():
        if not what.endswith("I/O") and count > max(1.0, found.cpus.count):
            variable = {"torch": "OMP_NUM_THREADS", "Numba": "NUMBA_NUM_THREADS", "Arrow": "OMP_NUM_THREADS"}.get(what)
            remedy = f"set {variable}={found.cpus.num_threads}" if variable else "use fewer"
            warnings.append(f"{what} has {count} threads for {found.cpus.count:g} effective CPUs; {remedy}")
    if found.shm_bytes is not None and found.shm_bytes < SMALL_SHM_BYTES:
        size = format_bytes(found.shm_bytes)
        warnings.append(f"/dev/shm has {size}; PyTorch's DataLoader workers need more (docker run --shm-size=2g)")
    for what, path, free, _ in found.disks:
        if free < SMALL_DISK_BYTES:
            warnings.append(
                f"{what} {path}: {format_bytes(free)} free; checkpoints need room for two copies of all tables"
            )
    if not any(what == "temporary folder" for what, *_ in found.disks):
        warnings.append("no writable temporary folder; set TMPDIR to a writable folder")
    speed = found.matrix_speed
    if speed.fp32 and speed.bf16 and speed.bf16 < 0.9 * speed.fp32:
        warnings.append(f"bf16 matrix products are {speed.fp32 / speed.bf16:.1f}x slower than fp32 here; keep fp32")
    if found.kernels is None:
        warnings.append(
            f"compiled kernels cannot be stored: no writable folder; each process spends minutes compiling what the "
            f"installation does not include. Set {CACHE_VARIABLE} to a writable folder"
        )
    if os.environ.get("NUMBA_DISABLE_JIT", "0") not in ("", "0"):
        warnings.append("NUMBA_DISABLE_JIT is set: kernels cannot run; unset it")
    if found.memory.available_bytes < 1 << 30:
        warnings.append(f"only {format_bytes(found.memory.available_bytes)} of memory are available")
    return warnings


def measure_matrix_speed(size: int = 768, seconds: float = 0.2) -> MatrixSpeed:
    """Multiply square matrices in fp32 and in bf16 for about `seconds` each; the best repetition counts."""
    import torch

    speeds: dict[str, float | None] = {}
    for name, dtype in (("fp32", torch.float32), ("bf16", torch.bfloat16)):
        try:
            left = torch.ones(size, size, dtype=dtype)
            torch.mm(left, left)  # selects and compiles the kernel
            best, end = float("inf"), time.perf_counter() + seconds
            while time.perf_counter() < end:
                start = time.perf_counter()
                torch.mm(left, left)
                best = min(best, time.perf_counter() - start)
            speeds[name] = 2 * size**3 / best / 1e9 if best < float("inf") else None
        except RuntimeError:  # no such kernel for this processor
            speeds[name] = None
    return MatrixSpeed(size, speeds["fp32"], speeds["bf16"])


def _threads() -> dict[str, int]:
    import numba
    import pyarrow as pa
    import torch

    return {
        "torch": torch.get_num_threads(),
        "Numba": numba.get_num_threads(),
        "Arrow": pa.cpu_count(),
        "Arrow I/O": pa.io_thread_count(),
    }


def _flags(cpuinfo: list[str]) -> tuple[str, ...]:
    lines = (line for line in cpuinfo if line.lower().startswith(("flags", "features")))
    there = set(next(lines, "").partition(":")[2].split())
    return tuple(flag for flag in BF16_FLAGS if flag in there)


def _versions() -> dict[str, str]:
    versions = {"Python": sys.version.split()[0]}
    for name in ("headrace", *PACKAGES):
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return versions


def _disks() -> list[tuple[str, str, int, int]]:
    places = {"working folder": Path.cwd()}
    with suppress(FileNotFoundError):  # no writable folder, see `find_warnings`
        places["temporary folder"] = Path(tempfile.gettempdir())
    disks = []
    for what, path in places.items():
        usage = shutil.disk_usage(path)
        disks.append((what, str(path), usage.free, usage.total))
    return disks
