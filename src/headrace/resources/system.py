"""`System`: reads resource limits from /proc, /sys, the environment and rlimits."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

__all__ = ["System"]


def _affinity() -> int | None:
    # Of the main thread, because a library may have pinned the calling thread.
    try:
        return len(os.sched_getaffinity(os.getpid()))
    except (AttributeError, OSError):  # not Linux, or refused by a sandbox
        return None


def _rlimits() -> dict[str, int]:
    try:
        import resource
    except ImportError:  # Windows
        return {}
    soft = {name: resource.getrlimit(getattr(resource, name))[0] for name in ("RLIMIT_AS", "RLIMIT_DATA")}
    return {name: limit for name, limit in soft.items() if limit != resource.RLIM_INFINITY}


@dataclass(frozen=True)
class System:
    """Access to the operating system, with replaceable sources, so that tests can describe a machine as a folder.

    Attributes:
        root: Folder that contains /proc and /sys.
        environment: Environment variables.
        affinity: Number of CPUs in the process's affinity mask; None if unknown.
        rlimits: Soft limits in bytes, by their name in the module `resource`.
        cpu_count: CPUs of the machine, if /sys does not have them.
    """

    root: Path = Path("/")
    environment: Mapping[str, str] = field(default_factory=lambda: os.environ)
    affinity: Callable[[], int | None] = _affinity
    rlimits: Callable[[], Mapping[str, int]] = _rlimits
    cpu_count: Callable[[], int | None] = os.cpu_count

    def read(self, path: str | PurePosixPath) -> str | None:
        """Read a file by its path on a real machine ("/proc/meminfo"); None if it cannot be read."""
        try:
            return (self.root / str(path).lstrip("/")).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None

    def names(self, path: str | PurePosixPath) -> list[str]:
        """List a folder by its path on a real machine; empty if it cannot be read."""
        try:
            return os.listdir(self.root / str(path).lstrip("/"))
        except OSError:
            return []

    def read_fields(self, path: str | PurePosixPath) -> dict[str, int]:
        """Parse a file with lines like "MemTotal: 16 kB" or "inactive_file 4096"; kB are converted to bytes."""
        fields = {}
        for line in (self.read(path) or "").splitlines():
            words = line.replace(":", " ").split()
            if len(words) >= 2 and words[1].isdigit():
                fields[words[0]] = int(words[1]) * (1024 if words[2:3] == ["kB"] else 1)
        return fields

    def cgroup_folders(self, controller: str) -> Iterator[tuple[int, PurePosixPath]]:
        """Yield the cgroup folders of this process for a controller, from its own to the visible root.

        Yields:
            The version of the hierarchy (1 or 2) and the folder; limits in all folders apply.
        """
        mounts = list(self._cgroup_mounts())
        for line in (self.read("/proc/self/cgroup") or "").splitlines():
            number, _, rest = line.partition(":")
            controllers, _, path = rest.partition(":")
            version = 2 if number == "0" and not controllers else 1
            if version == 1 and controller not in controllers.split(","):
                continue
            for mount_version, options, mount_root, mount_point in mounts:
                if mount_version == version and (version == 2 or controller in options):
                    for folder in _upwards(mount_point, _below(mount_root, path)):
                        yield version, folder
                    break

    def _cgroup_mounts(self) -> Iterator[tuple[int, list[str], PurePosixPath, PurePosixPath]]:
        # man 5 proc_pid_mountinfo: id parent major:minor root mount-point options [tags] - type source super-options
        for line in (self.read("/proc/self/mountinfo") or "").splitlines():
            left, _, right = line.partition(" - ")
            places, kind = left.split(), right.split()
            if len(places) >= 5 and len(kind) >= 3 and kind[0] in ("cgroup", "cgroup2"):
                version = 2 if kind[0] == "cgroup2" else 1
                yield version, kind[2].split(","), _unescaped(places[3]), _unescaped(places[4])


def _unescaped(path: str) -> PurePosixPath:
    if "\\" not in path:
        return PurePosixPath(path)
    return PurePosixPath(re.sub(r"\\([0-7]{3})", lambda match: chr(int(match[1], 8)), path))


def _below(mount_root: PurePosixPath, path: str) -> PurePosixPath:
    """The path of the cgroup relative to its mount point.

    In a container without a cgroup namespace, /proc/self/cgroup has the host's path, and only the container's own
    subtree is mounted. Then the mount point itself is the (nearest visible) cgroup.
    """
    try:
        below = PurePosixPath(path).relative_to(mount_root)
    except ValueError:
        return PurePosixPath()
    return PurePosixPath() if ".." in below.parts else below


def _upwards(mount_point: PurePosixPath, below: PurePosixPath) -> Iterator[PurePosixPath]:
    yield mount_point / below
    for parent in below.parents:
        if parent != below:
            yield mount_point / parent
