"""Where a command may write: never into or over the logs that it reads."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

from fsspec.utils import glob_translate

from headrace.errors import ConfigError
from headrace.logs.files import LogFile, printable
from headrace.logs.folders import is_hidden
from headrace.paths import local_logs, local_path

__all__ = ["check_output"]


def check_output(output: str | Path, location: str | Path, *, what: str, files: Sequence[LogFile] = ()) -> None:
    """Check that an output is not part of a log, and would not become part of it; links are followed.

    Hidden names (`logs/_predictions`) are allowed: readers of logs skip them.

    Args:
        output: The file or folder to write.
        location: Of the log: file, folder, glob or URL. It need not exist.
        what: Names the output in the error.
        files: Of the log, if they are known: so folders that are linked into it are seen too.

    Raises:
        ConfigError: It is part of the log, or no local path; names both.
    """
    log = local_logs(location)
    if log is None:
        return
    target = os.path.realpath(local_path(output, where=what))
    if any(_takes(place, target) for place in _places(os.path.abspath(log), files)):
        raise ConfigError(
            f"{what}: {printable(os.fspath(output))} is part of the logs at {printable(os.fspath(location))}, which "
            f"would be read as logs or overwritten; choose a path outside of them"
        )


def _places(log: str, files: Sequence[LogFile]) -> Iterator[str]:
    """The log itself, its files, and each folder in it, all behind links; or the glob."""
    yield log if not os.path.lexists(log) and re.search(r"[*?\[]", log) else os.path.realpath(log)
    for file in files:
        yield os.path.realpath(file.path)
    if os.path.isdir(log):
        folders = {file.folder for file in files}
        folders |= {folder[:end] for folder in folders for end in _ends(folder)}
        yield from (os.path.realpath(os.path.join(log, folder)) for folder in folders)


def _ends(folder: str) -> list[int]:
    return [place for place, letter in enumerate(folder) if letter == "/"]


def _takes(place: str, target: str) -> bool:
    """Whether a reader of a place (a file, folder or glob) would read what is written to a target."""
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
