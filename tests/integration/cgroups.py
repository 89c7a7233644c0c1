"""Control groups with a memory limit, for tests of what a process does in one."""

import contextlib
import select
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest


@contextlib.contextmanager
def memory_cgroup(limit_bytes: int) -> Iterator[Path]:
    """A control group with a memory limit and without swap; skips the test where none can be made."""
    root = _memory_controller()
    if root is None:
        pytest.skip("no cgroup memory controller that could be given to a child")
    folder = root / f"headrace-{uuid.uuid4().hex[:8]}"
    try:
        folder.mkdir()
        limit = "memory.limit_in_bytes" if (folder / "memory.limit_in_bytes").exists() else "memory.max"
        (folder / limit).write_text(str(limit_bytes))
        with contextlib.suppress(OSError):
            (folder / "memory.swap.max").write_text("0")
    except OSError as error:
        with contextlib.suppress(OSError):
            folder.rmdir()
        pytest.skip(f"cgroups with a memory limit cannot be made here: {error}")
    yield folder
    processes = folder / "cgroup.procs"
    for _ in range(3000):  # the process that forks workers may end a moment after the one that started it
        if not processes.read_text():
            break
        select.poll().poll(10)
    folder.rmdir()


def _memory_controller() -> Path | None:
    """The folder below which cgroups with a memory limit can be made, in either version."""
    for root in (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup")):
        if (root / "memory.limit_in_bytes").exists() or "memory" in _words(root / "cgroup.subtree_control"):
            return root
    return None


def _words(path: Path) -> list[str]:
    try:
        return path.read_text().split()
    except OSError:
        return []
