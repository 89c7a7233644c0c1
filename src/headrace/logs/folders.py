"""What a folder of a log holds: each entry is a log file, hidden by its name, or left out with a reason."""

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
"""Endings of the files taken from a folder, in any case; a file or glob named outright may end as it likes."""

OWN_NAMES = frozenset({"schema.yaml", "teacher.json"})
"""Files that headrace itself puts beside logs."""

COMPRESSED = (".gz", ".bz2", ".xz", ".zst", ".lz4", ".snappy", ".zip")

TABLES = {
    "_delta_log": ("a Delta table", "deltalake.DeltaTable(PATH).to_pyarrow_dataset()"),
    ".hoodie": ("a Hudi table", "spark.read.format('hudi').load(PATH)"),
    "metadata": ("an Iceberg table", "pyiceberg's table.scan().to_arrow_batch_reader()"),
}
"""Folders in which table formats note which of the files beside them count, with a reader of that format."""


@dataclass(frozen=True)
class Stat:
    """What is known of an entry without opening it.

    Attributes:
        size_bytes: Its size.
        version: What the file system says about its last change, or "" where it says nothing.
        identity: Device and inode of a local file, the same under each of its names; None where unknown.
    """

    size_bytes: int
    version: str = ""
    identity: tuple[int, int] | None = None


@dataclass
class Found:
    """What a search found.

    Attributes:
        files: Log files by their paths.
        left_out: Entries that are neither taken nor hidden, by their paths, with the reason in parentheses or "".
    """

    files: dict[str, Stat] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)

    def add(self, path: str, name: str, found: Stat, suffixes: tuple[str, ...]) -> None:
        """Take a file if its name ends like a log file's."""
        lower = name.lower()
        if lower.endswith(suffixes):
            self.files[path] = found
        elif name not in OWN_NAMES:
            whole, ending = os.path.splitext(lower)
            is_compressed = ending in COMPRESSED and whole.endswith(suffixes)
            self.left_out[path] = " (compressed as a whole; decompress it)" if is_compressed else ""

    def keep_one_name_each(self, root: str) -> None:
        """Leave out all names but one of a file that links give several; the one with the fewest links in it stays."""
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
    """Search a local folder and its subfolders, through links too.

    Raises:
        ConfigError: It is part of a table that is not to be read file by file.
        DataError: A folder may not be read.
    """
    found = Found()
    _search(folder, (), found, suffixes)
    return found


def local_stat(path: str) -> Stat:
    """What is known of a local file, behind links."""
    return _stat_of(os.stat(path))


def search_remote(filesystem: Any, folder: str, suffixes: tuple[str, ...]) -> Found:
    """Search a folder of an fsspec file system and its subfolders.

    Raises:
        ConfigError: It is part of a table that is not to be read file by file.
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
    """What an fsspec file system tells of a file."""
    return Stat(int(info.get("size") or 0), next(_versions(info), ""))


def is_hidden(path: str, root: str) -> bool:
    """Whether a name below the root starts with a dot or an underscore: such names belong to the log's writer."""
    return any(part.startswith((".", "_")) for part in path.removeprefix(root).split("/"))


def refuse_tables(folder: str, list_names: Callable[[str], Iterable[str]]) -> None:
    """Refuse a folder that lies in a table whose metadata decides which files count.

    Args:
        folder: The folder; those above it are looked at too.
        list_names: Gives the names in a folder, none if there is no such folder.

    Raises:
        ConfigError: Names the table and a way to read it.
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
    """The names in a local folder; none if there is no such folder, or it may not be read."""
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
            continue  # or it was removed in this moment
        if stat.S_ISDIR(what.st_mode):
            if (what.st_dev, what.st_ino) in above:
                found.left_out[entry.path] = " (a link to a folder that it lies in)"
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
    # The time of the last change of the inode cannot be set back, as that of the content can (cp -p, rsync -t).
    return Stat(what.st_size, f"{what.st_mtime_ns}-{what.st_ctime_ns}", (what.st_dev, what.st_ino))


def _marks_table(name: str, inside: Iterable[str]) -> bool:
    """Whether a folder of this name, with these names in it, is where a table format keeps its log."""
    names = list(inside)
    if name == "metadata":  # a name others use too
        return any(n.endswith(".metadata.json") or n == "version-hint.text" for n in names)
    return bool(names)


def _table_error(folder: str, name: str) -> ConfigError:
    what, reader = TABLES[name]
    return ConfigError(
        f"{folder}: is {what}, whose {name} decides which files and rows count; headrace reads plain Parquet only: "
        f"write the rows to a folder first, for instance with {reader.replace('PATH', repr(folder))}"
    )


def _versions(info: Mapping[str, Any]) -> Iterator[str]:
    for key in ("ETag", "etag", "mtime", "LastModified", "last_modified", "updated"):
        if info.get(key):
            yield str(info[key])
