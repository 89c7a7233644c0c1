"""Lists the files of a log from local paths, URLs, folders, hive partitions and globs, in a fixed order."""

from __future__ import annotations

import glob
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from headrace.errors import ConfigError, DataError
from headrace.logs.folders import (
    SUFFIXES,
    Found,
    is_hidden,
    local_names,
    local_stat,
    refuse_tables,
    remote_stat,
    search_local,
    search_remote,
)
from headrace.paths import local_logs

__all__ = [
    "Listing",
    "LogFile",
    "list_files",
    "list_log",
    "natural_key",
    "open_log_file",
    "partition_of",
    "printable",
    "schema_beside",
]

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The folder name value that hive uses for null."""

MAX_NAMED = 10
"""Maximum skipped entries named in a note; further ones are counted."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class LogFile:
    """One file of a log.

    Attributes:
        path: Absolute local path or URL.
        size_bytes: Size when listed.
        partition: (key, value) of each folder named `key=value`, outermost first.
        name: Path relative to the listed folder. Cursors identify files by this name, so a log can be moved as a whole.
        version: Time of the last change, or etag, from the file system; "" if unknown.
    """

    path: str
    size_bytes: int
    partition: tuple[tuple[str, str], ...] = ()
    name: str = ""
    version: str = ""

    def __post_init__(self) -> None:
        if not self.name:
            object.__setattr__(self, "name", self.path)

    @property
    def shown_path(self) -> str:
        """The path as printable text, see `printable`."""
        return printable(self.path)

    @property
    def folder(self) -> str:
        """The part of `name` before the last slash; "" for a file at the root of the log."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Listing:
    """The files of a log, and notes on other entries.

    Attributes:
        files: Files in natural order of their names (`hour=2` before `hour=10`).
        notes: Lines for the user about entries that are not read.
    """

    files: tuple[LogFile, ...]
    notes: tuple[str, ...] = ()


def list_log(location: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> Listing:
    """List the files of a log in natural order of their names, with notes on entries that are not read.

    Links are followed; a file with several names is listed once.

    Args:
        location: A file, a folder (searched recursively), a glob, or the URL of one of these on any fsspec file system
            (`s3://bucket/logs`, `memory://logs/*.parquet`). An existing path is never interpreted as a glob.
        suffixes: Lower-case suffixes of the files to list in folders. Files and folders whose names start with a dot or
            an underscore are hidden, because they belong to the log's writer.

    Raises:
        ConfigError: The path does not exist or contains no log files, it is a Delta, Iceberg or Hudi table, which
            cannot be read file by file, or a package for its protocol is not installed.
        DataError: A folder is not readable.
    """
    filesystem, path = _resolve(location)
    text = os.fspath(location)
    is_local = _is_local(filesystem)
    root = path
    if not _exists(filesystem, path) and _MAGIC.search(path):
        pattern, root = _escape_what_exists(filesystem, path)
        found = _expand_glob(filesystem, pattern, root, suffixes)
    elif filesystem.isfile(path) or (is_local and os.path.isfile(path)):
        root = path.rpartition("/")[0]
        found = Found({path: local_stat(path) if is_local else remote_stat(filesystem.info(path))})
    elif filesystem.isdir(path) or (is_local and os.path.isdir(path)):
        found = search_local(path, suffixes) if is_local else search_remote(filesystem, path, suffixes)
    else:
        raise ConfigError(f"{printable(text)}: no such file or folder")
    refuse_tables(root, local_names if is_local else lambda folder: _remote_names(filesystem, folder))
    if is_local:
        found.keep_one_name_each(root)
    notes = _notes(text, found, root, suffixes)
    if not found.files:
        rest = f"; {notes[0].partition(': ')[2]}" if notes else ""
        raise ConfigError(
            f"{printable(text)}: no log files found, expected files ending in {', '.join(suffixes)}{rest}"
        )
    files = []
    for path, known in found.files.items():
        shown = path if is_local else str(filesystem.unstrip_protocol(path))
        files.append(LogFile(shown, known.size_bytes, partition_of(path), _below(path, root), known.version))
    return Listing(tuple(sorted(files, key=lambda file: natural_key(file.name))), notes)


def list_files(location: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> list[LogFile]:
    """List the files of a log without notes; see `list_log`."""
    return list(list_log(location, suffixes=suffixes).files)


def schema_beside(location: str) -> Path | None:
    """The path where importers and `headrace inspect --write-schema` write the schema of a local log; None for URLs."""
    folder = local_logs(location)
    if folder is None:
        return None
    while not folder.is_dir() and folder.parent != folder and (folder.is_file() or _MAGIC.search(folder.name)):
        folder = folder.parent
    return folder / "schema.yaml"


def printable(text: str) -> str:
    """A path as printable text, with bytes that are not UTF-8 escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_log_file(path: str) -> pa.NativeFile:
    """Open a listed file for random access; close it after use.

    Raises:
        DataError: The file no longer exists or is not readable.
    """
    try:
        if "://" not in path:
            return pa.OSFile(os.fsencode(path), "rb")  # as bytes, for names that are not UTF-8
        filesystem, inner = _resolve(path)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)).open_input_file(inner)
    except FileNotFoundError as error:
        raise DataError(f"{printable(path)}: the file no longer exists") from error
    except OSError as error:
        raise DataError(f"{printable(path)}: cannot be opened: {error}") from error


def partition_of(path: str) -> tuple[tuple[str, str], ...]:
    """The (key, value) pairs of a path's `key=value` folders, outermost first."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return tuple((unquote(key), unquote(value)) for key, equals, value in pairs if equals and key)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A natural sort key: compares runs of digits as numbers, folders level by level, and ties by the text."""
    parts: list[tuple[int, int, str]] = []
    for level in name.split("/"):
        runs = re.findall(r"[0-9]+|[^0-9]+", level)
        parts += [(1, int(run), "") if run[0] in "0123456789" else (2, 0, run) for run in runs]
        parts.append((0, 0, ""))  # a folder's own files and shorter names sort first
    return tuple(parts), name


def _resolve(location: str | Path) -> tuple[Any, str]:
    place = local_logs(location)
    if place is not None:
        return fsspec.filesystem("file"), os.path.abspath(place)
    text = os.fspath(location)
    try:
        filesystem, path = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{printable(text)}: {error}") from error
    return filesystem, path.rstrip("/") or "/"


def _exists(filesystem: Any, path: str) -> bool:
    return os.path.lexists(path) if _is_local(filesystem) else bool(filesystem.exists(path))


def _escape_what_exists(filesystem: Any, pattern: str) -> tuple[str, str]:
    """The pattern with its existing folders escaped (`a[1]/*.parquet`), and its root folder."""
    levels = pattern.split("/")
    first = next(place for place, level in enumerate(levels) if _MAGIC.search(level))
    literal = range(first + 1, len(levels))
    num = max((n for n in literal if _exists(filesystem, "/".join(levels[:n]))), default=first)
    root = "/".join(levels[:num])
    return "/".join([glob.escape(root), *levels[num:]]), root


def _expand_glob(filesystem: Any, pattern: str, root: str, suffixes: tuple[str, ...]) -> Found:
    found = Found()
    if _is_local(filesystem):
        for path in glob.iglob(pattern, recursive=True):
            if is_hidden(path, root):
                continue
            if os.path.isdir(path):
                _merge(found, search_local(path, suffixes))
            elif os.path.isfile(path):
                found.files[path] = local_stat(path)
            else:
                found.left_out[path] = " (not a regular file)"
        return found
    for path, info in filesystem.glob(pattern, detail=True).items():
        if is_hidden(path, root):
            continue
        if info["type"] == "directory":
            _merge(found, search_remote(filesystem, path, suffixes))
        else:
            found.files[path] = remote_stat(info)
    return found


def _merge(found: Found, more: Found) -> None:
    found.files.update(more.files)
    found.left_out.update(more.left_out)


def _remote_names(filesystem: Any, folder: str) -> list[str]:
    try:
        return [path.rstrip("/").rpartition("/")[2] for path in filesystem.ls(folder, detail=False)]
    except (OSError, ValueError):
        return []


def _notes(location: str, found: Found, root: str, suffixes: tuple[str, ...]) -> tuple[str, ...]:
    if not found.left_out:
        return ()
    entries = [(printable(_below(path, root)), reason) for path, reason in found.left_out.items()]
    entries.sort(key=lambda entry: natural_key(entry[0]))
    named = ", ".join(name + printable(reason) for name, reason in entries[:MAX_NAMED])
    more = f", and {len(entries) - MAX_NAMED:,} more" if len(entries) > MAX_NAMED else ""
    count = "1 entry is" if len(entries) == 1 else f"{len(entries):,} entries are"
    return (f"{printable(location)}: {count} not read: {named}{more}; log files end in {', '.join(suffixes)}",)


def _below(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")


def _is_local(filesystem: Any) -> bool:
    protocol = filesystem.protocol
    return "file" in ((protocol,) if isinstance(protocol, str) else protocol)
