"""Which files a log consists of: local paths and URLs, folders, hive partitions and globs, always in the same order."""

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
"""The value hive writes into a folder's name for a null."""

MAX_NAMED = 10
"""Entries left out that a note names; the others are counted."""

_MAGIC = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class LogFile:
    """One file of a log.

    Attributes:
        path: Where it lies: an absolute local path or a URL.
        size_bytes: Its size when it was listed.
        partition: (key, value) of each folder named `key=value`, outermost first.
        name: The path below the folder that was listed; what a window cursor knows the file by, so that a log that
            is moved as a whole stays the same log.
        version: What the file system says about the file's last change (time or etag), or "" where it says nothing.
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
        """The path as valid text, see `printable`."""
        return printable(self.path)

    @property
    def folder(self) -> str:
        """The part of `name` before the last slash; "" for a file at the root of the log."""
        return self.name.rpartition("/")[0]


@dataclass(frozen=True)
class Listing:
    """The files of a log, and what lies between them.

    Attributes:
        files: In natural order of their names (`hour=2` before `hour=10`).
        notes: Lines for the user on entries that are not read.
    """

    files: tuple[LogFile, ...]
    notes: tuple[str, ...] = ()


def list_log(location: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> Listing:
    """The files of a log, in natural order of their names, and notes on entries that are not read.

    Links are followed; a file that several names lead to is taken once.

    Args:
        location: A file, a folder (searched with all its subfolders), a glob, or the URL of one of these for any file
            system fsspec knows (`s3://bucket/logs`, `memory://logs/*.parquet`). A path that exists is never a glob.
        suffixes: Endings, in small letters, of the files taken from folders. Files and folders whose name starts with
            a dot or an underscore are hidden: they belong to the program that writes the log.

    Raises:
        ConfigError: There is no such path, no file in it, it is a table of a format that cannot be read file by file
            (Delta, Iceberg, Hudi), or the package its protocol needs is not installed.
        DataError: A folder may not be read.
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
    """The files of a log without the notes; see `list_log`."""
    return list(list_log(location, suffixes=suffixes).files)


def schema_beside(location: str) -> Path | None:
    """Where importers and `headrace inspect --write-schema` put the schema of local logs; None for others."""
    folder = local_logs(location)
    if folder is None:
        return None
    while not folder.is_dir() and folder.parent != folder and (folder.is_file() or _MAGIC.search(folder.name)):
        folder = folder.parent
    return folder / "schema.yaml"


def printable(text: str) -> str:
    """A path as text that any terminal and file takes: bytes of it that are not UTF-8 are escaped."""
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def open_log_file(path: str) -> pa.NativeFile:
    """Open a file that `list_files` found, for random access; close it after use.

    Raises:
        DataError: The file is gone or may not be read.
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
    """The (key, value) pairs of the folders of a path that are named `key=value`, outermost first."""
    pairs = (folder.partition("=") for folder in path.split("/")[:-1])
    return tuple((unquote(key), unquote(value)) for key, equals, value in pairs if equals and key)


def natural_key(name: str) -> tuple[tuple[tuple[int, int, str], ...], str]:
    """A sort key that compares runs of digits as numbers and folders level by level; ties are broken by the text."""
    parts: list[tuple[int, int, str]] = []
    for level in name.split("/"):
        runs = re.findall(r"[0-9]+|[^0-9]+", level)
        parts += [(1, int(run), "") if run[0] in "0123456789" else (2, 0, run) for run in runs]
        parts.append((0, 0, ""))  # a folder's own files and shorter names come first
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
    """The pattern, its existing folders taken literally (`a[1]/*.parquet`), and the folder that it starts from."""
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
