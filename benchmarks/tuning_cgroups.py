"""Linux control groups (version 1 or 2), with which benchmarks limit the memory or the CPUs of processes."""

from __future__ import annotations

import contextlib
import os
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Cgroup", "controller"]

ROOT = Path("/sys/fs/cgroup")
CPU_PERIOD_US = 100_000


def controller(name: str) -> Path | None:
    """Return the folder in which groups with this controller ("memory", "cpu") can be created, or None."""
    for root in (ROOT / name, ROOT / "cpu,cpuacct" if name == "cpu" else ROOT, ROOT):
        try:
            if (root / "cgroup.subtree_control").exists():
                if name not in (root / "cgroup.subtree_control").read_text().split():
                    continue
            elif not (root / "cgroup.procs").exists() or root == ROOT:
                continue
            with Cgroup.make(root):
                return root
        except OSError:
            continue
    return None


@dataclass(frozen=True)
class Cgroup:
    """A control group; `folder` is its folder below /sys/fs/cgroup."""

    folder: Path

    @classmethod
    @contextlib.contextmanager
    def make(cls, root: Path) -> Iterator[Cgroup]:
        """Create a group below a folder and remove it at the end, when all of its processes must have ended.

        Raises:
            OSError: The group cannot be created.
        """
        folder = root / f"headrace-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            yield cls(folder)
        finally:
            for _ in range(50):  # a process that has ended stays in its group for a moment
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)

    def limit_memory(self, num_bytes: int) -> None:
        """Limit the memory of the group, and forbid swap."""
        first = self.folder / "memory.limit_in_bytes"
        (first if first.exists() else self.folder / "memory.max").write_text(str(num_bytes))
        for name, value in (("memory.memsw.limit_in_bytes", str(num_bytes)), ("memory.swap.max", "0")):
            with contextlib.suppress(OSError):
                if (self.folder / name).exists():
                    (self.folder / name).write_text(value)

    def limit_cpus(self, cpus: float) -> None:
        """Limit the group to this number of CPUs, by quota."""
        quota = round(cpus * CPU_PERIOD_US)
        if (self.folder / "cpu.max").exists():
            (self.folder / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota))

    def enter(self) -> None:
        """Move this process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def used_bytes(self) -> int:
        """Return the memory that the group uses now, as the kernel counts it."""
        first = self.folder / "memory.usage_in_bytes"
        return int((first if first.exists() else self.folder / "memory.current").read_text())

    def peak_bytes(self) -> int:
        """Return the peak memory of the group with file cache; 0 if unknown (version 2 before Linux 5.19)."""
        first = self.folder / "memory.max_usage_in_bytes"
        file = first if first.exists() else self.folder / "memory.peak"
        return int(file.read_text()) if file.exists() else 0

    def num_killed(self) -> int:
        """Return how many of the group's processes the out-of-memory killer has killed."""
        first = self.folder / "memory.oom_control"
        lines = (first if first.exists() else self.folder / "memory.events").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])
