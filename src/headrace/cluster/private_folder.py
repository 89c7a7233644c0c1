"""`private_folder`: a folder of a launched job that is removed even if its launcher is killed, by the next one."""

from __future__ import annotations

import fcntl
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["private_folder"]

PREFIX = "headrace-launch-"

LOCK = "launcher.lock"
"""File in the folder that its launcher keeps locked. The kernel releases the lock when the launcher ends in any way."""


@contextmanager
def private_folder() -> Iterator[Path]:
    """A new temporary folder that only this user can open, removed at the end.

    Folders that killed launchers of this user left behind are removed first.
    """
    _remove_leftovers(Path(tempfile.gettempdir()))
    with tempfile.TemporaryDirectory(prefix=PREFIX) as name, open(Path(name) / LOCK, "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield Path(name)


def _remove_leftovers(parent: Path) -> None:
    """Remove folders whose launcher holds no lock; one that has just been created has no lock file yet, and stays."""
    for folder in parent.glob(f"{PREFIX}*"):
        with suppress(OSError), open(folder / LOCK, "r+") as lock:  # those of other users cannot be opened
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            shutil.rmtree(folder, ignore_errors=True)
