"""`check_output`: prevents commands from writing into or over the logs that they read."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from pathlib import Path

from fsspec.utils import glob_translate

from headrace.errors import ConfigError
from headrace.logs.files import printable
from headrace.logs.folders import is_hidden
from headrace.paths import local_logs, local_path

__all__ = ["check_output"]


def check_output(output: str | Path, location: str | Path, *, what: str) -> None:
    """Check that an output is not part of a log, and would not become part of it; links are followed.

    Hidden names (`logs/_predictions`) are allowed: readers of logs skip them.

    Args:
        output: The file or folder to write.
        location: Location of the log: file, folder, glob or URL. It need not exist.
        what: Name of the output in error messages.

    Raises:
        ConfigError: The output is part of the log, or not a local path; the message names both.
    """
    log = local_logs(location)
    if log is None:
        return
    target = os.path.realpath(local_path(output, where=what))
    if any(_takes(place, target) for place in _places(os.path.abspath(log))):
        raise ConfigError(
            f"{what}: {printable(os.fspath(output))} is part of the logs at {printable(os.fspath(location))}, which "
            f"would be read as logs or overwritten; choose a path outside of them"
        )


def _places(log: str) -> Iterator[str]:
    """Resolved paths of the log: itself, or its glob and matches, and everything linked into it."""
    if os.path.lexists(log) or re.search(r"[*?\[]", log) is None:
        yield os.path.realpath(log)
        yield from _linked(log)
        return
    yield log
    for path in glob.iglob(log, recursive=True):
        yield os.path.realpath(path)
        yield from _linked(path)


def _linked(folder: str) -> Iterator[str]:
    """Yield the targets of links in a folder and its subfolders, except hidden ones."""
    seen: set[str] = set()
    folders = [folder]
    while folders:
        folder = folders.pop()
        if (place := os.path.realpath(folder)) in seen or not os.path.isdir(place):
            continue
        seen.add(place)
        try:
            entries = list(os.scandir(folder))
        except OSError:  # reported when the log is read
            continue
        for entry in entries:
            if entry.name.startswith((".", "_")):
                continue
            if entry.is_symlink():
                yield os.path.realpath(entry.path)
            if entry.is_dir():
                folders.append(entry.path)


def _ends(folder: str) -> list[int]:
    return [place for place, letter in enumerate(folder) if letter == "/"]


def _takes(place: str, target: str) -> bool:
    """Whether a reader of a location (file, folder or glob) would read the target."""
    if target == place:
        return True
    match = None if os.path.lexists(place) else re.search(r"[*?\[]", place)
    if match is None:
        return target.startswith(place.rstrip("/") + "/") and not is_hidden(target, place)
    root = os.path.realpath(place[: match.start()].rpartition("/")[0])
    below = place[: match.start()].rpartition("/")[2] + place[match.start() :]
    if not target.startswith(root.rstrip("/") + "/") or is_hidden(target, root):
        return False
    pattern = re.compile(glob_translate(f"{root.rstrip('/')}/{below}"))
    return any(pattern.match(target[:end]) for end in [*_ends(target), len(target)])
