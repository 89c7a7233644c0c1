"""Folders of compiled kernels: next to their source, or in a folder of the user.

Code is loaded from these folders. So a folder outside of the installation is used only if it belongs to this user and
no one else can write to it.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path

__all__ = ["CACHE_VARIABLE", "KernelFolders", "is_writable", "kernel_folders"]

CACHE_VARIABLE = "HEADRACE_CACHE"
"""Environment variable with the folder of headrace's caches, which overrides the default."""


class KernelFolders:
    """Kernel folders of one source folder.

    Attributes:
        kept: Folder for new code, searched first; None if no folder is writable.
        shipped: Read-only folder with code from the installation; None if that is `kept`.
    """

    def __init__(self, kept: Path | None, shipped: Path | None) -> None:
        self.kept = kept
        self.shipped = shipped


@cache
def kernel_folders(source: Path) -> KernelFolders:
    """The kernel folders for source files in a folder."""
    beside = source / "__pycache__"
    chosen = os.environ.get(CACHE_VARIABLE) or os.environ.get("NUMBA_CACHE_DIR")
    if not chosen and is_writable(beside):
        return KernelFolders(beside, None)
    name = f"{source.name}_{hashlib.sha256(os.fsencode(source)).hexdigest()[:16]}"  # unique per installation
    for folder in [Path(chosen).expanduser()] if chosen else _of_user():
        kept = folder / "kernels" / name
        if _is_own(folder, kept):
            return KernelFolders(kept, beside)
    return KernelFolders(None, beside)


def _of_user() -> Iterator[Path]:
    if os.environ.get("XDG_CACHE_HOME"):
        yield Path(os.environ["XDG_CACHE_HOME"]) / "headrace"
    with suppress(RuntimeError):  # the home folder is unknown
        yield Path("~/.cache/headrace").expanduser()
    with suppress(FileNotFoundError):  # no temporary folder is writable
        yield Path(tempfile.gettempdir()) / f"headrace-{os.getuid()}"


def is_writable(folder: Path) -> bool:
    """Whether files can be created in a folder, which is created if missing."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError:
        return False
    return True


def _is_own(folder: Path, kept: Path) -> bool:
    """Whether only this user can write to a folder and its parent, which are created if missing."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        for each in (folder, kept.parent, kept):
            each.mkdir(mode=0o700, exist_ok=True)
            found = each.lstat()
            others_write = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
            if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or others_write:
                return False
    except OSError:
        return False
    return is_writable(kept)
