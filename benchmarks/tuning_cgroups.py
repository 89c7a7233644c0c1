"""Control groups of the kernel, version 1 or 2, in which a benchmark limits memory or CPUs; where they can be made."""

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
    """The folder below which groups with this controller ("memory", "cpu") can be made; None if nowhere."""
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
    """A group; `folder` is where the kernel shows it."""

    folder: Path

    @classmethod
    @contextlib.contextmanager
    def make(cls, root: Path) -> Iterator[Cgroup]:
        """A new group below a folder, removed at the end; its processes must have ended by then.

        Raises:
            OSError: It cannot be made.
        """
        folder = root / f"headrace-{uuid.uuid4().hex[:8]}"
        folder.mkdir()
        try:
            yield cls(folder)
        finally:
            for _ in range(50):  # the kernel takes a moment to let go of a process that has ended
                try:
                    folder.rmdir()
                    break
                except OSError:
                    time.sleep(0.02)

    def limit_memory(self, num_bytes: int) -> None:
        """No more than this, and no swap."""
        first = self.folder / "memory.limit_in_bytes"
        (first if first.exists() else self.folder / "memory.max").write_text(str(num_bytes))
        for name, value in (("memory.memsw.limit_in_bytes", str(num_bytes)), ("memory.swap.max", "0")):
            with contextlib.suppress(OSError):
                if (self.folder / name).exists():
                    (self.folder / name).write_text(value)

    def limit_cpus(self, cpus: float) -> None:
        """A quota of so many CPUs."""
        quota = round(cpus * CPU_PERIOD_US)
        if (self.folder / "cpu.max").exists():
            (self.folder / "cpu.max").write_text(f"{quota} {CPU_PERIOD_US}")
        else:
            (self.folder / "cpu.cfs_period_us").write_text(str(CPU_PERIOD_US))
            (self.folder / "cpu.cfs_quota_us").write_text(str(quota))

    def enter(self) -> None:
        """Put this process into the group."""
        (self.folder / "cgroup.procs").write_text(str(os.getpid()))

    def used_bytes(self) -> int:
        """Memory of the processes in it now, as the kernel counts it."""
        first = self.folder / "memory.usage_in_bytes"
        return int((first if first.exists() else self.folder / "memory.current").read_text())

    def peak_bytes(self) -> int:
        """The most it ever used, with file cache; 0 where the kernel does not tell (version 2 before Linux 5.19)."""
        first = self.folder / "memory.max_usage_in_bytes"
        file = first if first.exists() else self.folder / "memory.peak"
        return int(file.read_text()) if file.exists() else 0

    def num_killed(self) -> int:
        """Processes of it that the kernel has killed for lack of memory."""
        first = self.folder / "memory.oom_control"
        lines = (first if first.exists() else self.folder / "memory.events").read_text().splitlines()
        return int(dict(line.split() for line in lines)["oom_kill"])
