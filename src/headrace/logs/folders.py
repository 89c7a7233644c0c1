"""Searches the folders of a log: each entry is a log file, hidden by its name, or skipped with a reason."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from headrace.errors import ConfigError, DataError

__all__ = [
    "SUFFIXES",
    "Found",
    "Stat",
    "is_hidden",
    "local_names",
    "local_stat",
    "refuse_tables",
    "remote_stat",
    "search_local",
    "search_remote",
]

SUFFIXES = (".parquet", ".parq", ".pq")
"""Suffixes of log files in folders, case-insensitive; explicitly given files and globs may have any suffix."""

OWN_NAMES = frozenset({"schema.yaml", "teacher.json"})
"""Files that headrace itself writes next to logs."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".snappy", ".zip")

TABLES = {
    "_delta_log": ("a Delta table", "deltalake.DeltaTable(PATH).to_pyarrow_dataset()"),
    ".hoodie": ("a Hudi table", "spark.read.format('hudi').load(PATH)"),
    "metadata": ("an Iceberg table", "pyiceberg's table.scan().to_arrow_batch_reader()"),
}
"""Metadata folders of table formats, with the format and a way to read it."""


@dataclass(frozen=True)
class Stat:
    """File system metadata of an entry.

    Attributes:
        size_bytes: Size.
        version: Time of the last change, or etag; "" if unknown.
        identity: Device and inode of a local file, the same for all of its names; None if unknown.
    """

    size_bytes: int
    version: str = ""
    identity: tuple[int, int] | None = None


@dataclass
class Found:
    """The result of a search.

    Attributes:
        files: Log files by path.
        left_out: Skipped entries that are not hidden, by path, with the reason in parentheses or "".
    """

    files: dict[str, Stat] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, name: str, found: Stat, suffixes: tuple[str, ...]) -> None:
        """Add a file if it has a suffix of log files."""
        lower = name.lower()
        if lower.endswith(suffixes):
            self.files[path] = found
        elif name not in OWN_NAMES:
            whole, ending = os.path.splitext(lower)
            is_compressed = ending in COMPRESSED and whole.endswith(suffixes)
            self.left_out[path] = " (compressed; decompress it)" if is_compressed else ""

    def keep_one_name_each(self, root: str) -> None:
        """Keep one name of each file that links give several names: the one with the fewest links in its path."""
        names: dict[tuple[int, int], list[str]] = {}
        for path, known in sorted(self.files.items()):
            if known.identity is not None:
                names.setdefault(known.identity, []).append(path)
        for paths in names.values():
            kept = min(paths, key=_num_links) if len(paths) > 1 else paths[0]
            for path in paths:
                if path != kept:
                    del self.files[path]
                    self.left_out[path] = f" (the same file as {os.path.relpath(kept, root)})"


def search_local(folder: str, suffixes: tuple[str, ...]) -> Found:
    """Search a local folder recursively, following links.

    Raises:
        ConfigError: It is part of a table that cannot be read file by file.
        DataError: A folder is not readable.
    """
    found = Found()
    _search(folder, (), found, suffixes)
    return found


def local_stat(path: str) -> Stat:
    """Metadata of a local file, following links."""
    return _stat_of(os.stat(path))


def search_remote(filesystem: Any, folder: str, suffixes: tuple[str, ...]) -> Found:
    """Search a folder of an fsspec file system recursively.

    Raises:
        ConfigError: It is part of a table that cannot be read file by file.
    """
    found = Found()
    entries: Mapping[str, Mapping[str, Any]] = filesystem.find(folder, detail=True)
    for path in entries:
        below = path.removeprefix(folder).lstrip("/").split("/")
        for place, name in enumerate(below[:-1]):
            if name in TABLES and _marks_table(name, below[place + 1 :]):
                raise _table_error("/".join([folder, *below[:place]]), name)
    for path, info in entries.items():
        if info.get("type") == "file" and not is_hidden(path, folder):
            found.add(path, path.rpartition("/")[2], remote_stat(info), suffixes)
    return found


def remote_stat(info: Mapping[str, Any]) -> Stat:
    """Metadata of a file on an fsspec file system."""
    return Stat(int(info.get("size") or 0), next(_versions(info), ""))


def is_hidden(path: str, root: str) -> bool:
    """Whether a name below the root starts with a dot or an underscore, which belongs to the log's writer."""
    return any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))


def refuse_tables(folder: str, list_names: Callable[[str], Iterable[str]]) -> None:
    """Refuse a folder inside a table whose metadata determines which files are valid.

    Args:
        folder: The folder; its parents are checked too.
        list_names: Lists the names in a folder, empty if it does not exist.

    Raises:
        ConfigError: It is in a table; the message suggests a way to read it.
    """
    while True:
        for name in TABLES:
            inside = list_names(f"{folder.rstrip('/')}/{name}")
            if _marks_table(name, inside):
                raise _table_error(folder, name)
        above = folder.rpartition("/")[0]
        if not above or above == folder:
            return
        folder = above


def local_names(folder: str) -> list[str]:
    """The names in a local folder, empty if it does not exist or is not readable."""
    try:
        return os.listdir(folder)
    except OSError:
        return []


def _search(folder: str, above: tuple[tuple[int, int], ...], found: Found, suffixes: tuple[str, ...]) -> None:
    try:
        here = os.stat(folder)
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: cannot be searched: {error.strerror}") from error
    above = (*above, (here.st_dev, here.st_ino))
    for entry in entries:
        if entry.name in TABLES and entry.is_dir() and _marks_table(entry.name, local_names(entry.path)):
            raise _table_error(folder, entry.name)
    for entry in entries:
        if entry.name.startswith((".", "_")):
            continue
        try:
            what = entry.stat()
        except OSError as error:
            if entry.is_symlink():
                found.left_out[entry.path] = f" (broken link: {error.strerror})"
            continue  # or it was removed just now
        if stat.S_ISDIR(what.st_mode):
            if (what.st_dev, what.st_ino) in above:
                found.left_out[entry.path] = " (a link to one of its parent folders)"
            else:
                _search(entry.path, above, found, suffixes)
        elif stat.S_ISREG(what.st_mode):
            found.add(entry.path, entry.name, _stat_of(what), suffixes)
        else:
            found.left_out[entry.path] = " (not a regular file)"


def _num_links(path: str) -> int:
    levels = path.split("/")
    return sum(os.path.islink("/".join(levels[:end])) for end in range(2, len(levels) + 1))


def _stat_of(what: os.stat_result) -> Stat:
    # ctime, because mtime can be set back (cp -p, rsync -t).
    return Stat(what.st_size, f"{what.st_mtime_ns}-{what.st_ctime_ns}", (what.st_dev, what.st_ino))


def _marks_table(name: str, inside: Iterable[str]) -> bool:
    """Whether a folder with this name and contents is the metadata folder of a table format."""
    names = list(inside)
    if name == "metadata":  # a name that others use too
        return any(n.endswith(".metadata.json") or n == "version-hint.text" for n in names)
    return bool(names)


def _table_error(folder: str, name: str) -> ConfigError:
    what, reader = TABLES[name]
    return ConfigError(
        f"{folder}: is {what}, whose {name} decides which files and rows are valid; headrace reads plain Parquet only: "
        f"write the rows to a folder first, for instance with {reader.replace('PATH', repr(folder))}"
    )


def _versions(info: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            yield str(info[key])
