"""Which files a log consists of: local paths and URLs, folders, hive partitions and globs, always in the same order."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import fsspec
import pyarrow as pa
import pyarrow.fs as pafs

from headrace.errors import ConfigError, DataError

__all__ = ["LogFile", "list_files", "natural_key", "open_log_file", "partition_of"]

SUFFIXES = (".parquet", ".parq", ".pq")
"""Endings of the files taken from a folder; a file or glob named outright may end as it likes."""

HIVE_NULL = "__HIVE_DEFAULT_PARTITION__"
"""The value hive writes into a folder's name for a null."""

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
    def folder(self) -> str:
        """The part of `name` before the last slash; "" for a file at the root of the log."""
        return self.name.rpartition("/")[0]


def list_files(location: str | Path, *, suffixes: tuple[str, ...] = SUFFIXES) -> list[LogFile]:
    """The files of a log, in natural order of their names (`hour=2` before `hour=10`).

    Args:
        location: A file, a folder (searched with all its subfolders), a glob, or the URL of one of these for any file
            system fsspec knows (`s3://bucket/logs`, `memory://logs/*.parquet`).
        suffixes: Endings of the files taken from folders. Files and folders whose name starts with a dot or an
            underscore are skipped: they belong to whoever writes the log.

    Raises:
        ConfigError: There is no such path, no file in it, or the package its protocol needs is not installed.
    """
    text = os.fspath(location)
    filesystem, path = _resolve(text)
    root = path
    found: Mapping[str, dict[str, Any]]
    if _MAGIC.search(path) and not filesystem.exists(path):
        root = path[: _MAGIC.search(path).start()].rpartition("/")[0]  # type: ignore[union-attr]
        found = _expand_glob(filesystem, path, root, suffixes)
    elif filesystem.isfile(path):
        root = path.rpartition("/")[0]
        found = {path: filesystem.info(path)}
    elif filesystem.isdir(path):
        found = _search_folder(filesystem, path, suffixes)
    else:
        raise ConfigError(f"{text}: no such file or folder")
    if not found:
        raise ConfigError(f"{text}: no log files there, expected files ending in {', '.join(suffixes)}")
    files = [_log_file(filesystem, path, info, root) for path, info in found.items()]
    return sorted(files, key=lambda file: natural_key(file.name))


def open_log_file(path: str) -> pa.NativeFile:
    """Open a file that `list_files` found, for random access; close it after use.

    Raises:
        DataError: The file is gone or may not be read.
    """
    try:
        if "://" not in path:
            return pa.OSFile(path, "rb")
        filesystem, inner = _resolve(path)
        return pafs.PyFileSystem(pafs.FSSpecHandler(filesystem)).open_input_file(inner)
    except FileNotFoundError as error:
        raise DataError(f"{path}: the file is gone") from error
    except OSError as error:
        raise DataError(f"{path}: cannot be opened: {error}") from error


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


def _resolve(text: str) -> tuple[Any, str]:
    try:
        filesystem, path = fsspec.core.url_to_fs(text)
    except (ValueError, ImportError) as error:
        raise ConfigError(f"{text}: {error}") from error
    return filesystem, path.rstrip("/") or "/"


def _expand_glob(filesystem: Any, pattern: str, root: str, suffixes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found: dict[str, dict[str, Any]] = {}
    for path, info in filesystem.glob(pattern, detail=True).items():
        if _is_hidden(path, root):
            continue
        if info["type"] == "directory":
            found.update(_search_folder(filesystem, path, suffixes))
        else:
            found[path] = info
    return found


def _search_folder(filesystem: Any, folder: str, suffixes: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    found = filesystem.find(folder, detail=True)
    return {path: i for path, i in found.items() if path.endswith(suffixes) and not _is_hidden(path, folder)}


def _is_hidden(path: str, root: str) -> bool:
    return any(part.startswith((".", "_")) for part in _below(path, root).split("/"))


def _below(path: str, root: str) -> str:
    return path.removeprefix(root).lstrip("/")


def _log_file(filesystem: Any, path: str, info: Mapping[str, Any], root: str) -> LogFile:
    is_local = "file" in _protocols(filesystem)
    return LogFile(
        path=path if is_local else str(filesystem.unstrip_protocol(path)),
        size_bytes=int(info["size"] or 0),
        partition=partition_of(path),
        name=_below(path, root),
        version=next(_versions(info), ""),
    )


def _protocols(filesystem: Any) -> tuple[str, ...]:
    protocol = filesystem.protocol
    return (protocol,) if isinstance(protocol, str) else tuple(protocol)


def _versions(info: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            yield str(info[key])
