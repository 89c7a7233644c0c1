"""What is to be clustered: windows of the log, less the files that an earlier run has done."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

from headrace.errors import ConfigError, DataError
from headrace.logs.files import LogFile, list_files
from headrace.logs.folders import SUFFIXES, is_hidden
from headrace.logs.footers import Footer, read_footer
from headrace.logs.nested.layout import SOURCES_KEY, Layout
from headrace.logs.stored_columns import StoredColumns
from headrace.logs.windows import TOP_FOLDER

__all__ = ["Done", "Unit", "find_done", "plan_units"]


@dataclass(frozen=True)
class Origin:
    """A file of the log that has been clustered.

    Attributes:
        name: Below the folder of the log.
        fingerprint: Digest of its footer.
        num_rows: Rows in it.
        number: In the ids of its rows.
    """

    name: str
    fingerprint: str
    num_rows: int
    number: int


@dataclass(frozen=True)
class Done:
    """What earlier runs have done.

    Attributes:
        origins: Files whose rows are there, by name.
        layout: Of the files there; None if there are none.
        settings: What must not change between runs.
        paths: Of the files there.
        columns: Of the files there.
    """

    origins: Mapping[str, Origin]
    layout: Layout | None
    settings: Mapping[str, Any]
    paths: frozenset[Path]
    columns: StoredColumns

    @property
    def next_number(self) -> int:
        """Number of the next file."""
        return 1 + max((origin.number for origin in self.origins.values()), default=-1)


@dataclass(frozen=True)
class Unit:
    """Rows that are sorted together.

    Attributes:
        name: Of the window, for people.
        footers: Files with their numbers, in order.
        path: File to write.
    """

    name: str
    footers: tuple[tuple[int, Footer], ...]
    path: Path

    @property
    def num_rows(self) -> int:
        """Rows of the files."""
        return sum(footer.num_rows for _, footer in self.footers)

    def origins(self) -> list[dict[str, Any]]:
        """The files as JSON-able values."""
        return [
            asdict(Origin(footer.file.name, footer.fingerprint, footer.num_rows, number))
            for number, footer in self.footers
        ]


def find_done(folder: Path) -> Done:
    """Look at what lies in the folder of a clustered log.

    Raises:
        ConfigError: A file there was not written by `cluster_log`.
    """
    origins: dict[str, Origin] = {}
    layout: Layout | None = None
    settings: dict[str, Any] = {}
    paths = set()
    columns = StoredColumns({}, {})
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: is a file, expected an output folder")
    visible = [path for path in folder.rglob("*") if path.is_file() and not is_hidden(str(path), str(folder))]
    if any(path.suffix.lower() in SUFFIXES for path in visible):
        for file in list_files(folder):
            footer = read_footer(file)
            text = (footer.metadata.metadata or {}).get(SOURCES_KEY)
            if text is None or footer.layout is None:
                raise ConfigError(
                    f"{file.path}: not written by cluster; choose a new folder, or one that cluster wrote"
                )
            sources = json.loads(text)
            origins |= {values["name"]: Origin(**values) for values in sources["files"]}
            layout, settings = footer.layout, sources["settings"]
            paths.add(Path(file.path))
            columns = StoredColumns.of([footer]).also(columns) if columns.columns else StoredColumns.of([footer])
    elif visible:
        raise ConfigError(f"{folder}: holds {visible[0].name}, not written by cluster; choose a new or empty folder")
    return Done(origins, layout, settings, frozenset(paths), columns)


def plan_units(
    files: Sequence[LogFile], done: Done, folder: Path, *, by_file: bool
) -> tuple[list[Unit], list[tuple[str, str]]]:
    """The windows to cluster, in order; files that are done are left out, and so are copies of files.

    A file that arrives in a window already done becomes a file of its own beside the window's, as for the reader it is
    a late window.

    Args:
        files: Of the log.
        done: From earlier runs.
        folder: To write to.
        by_file: Whether each file is a window; else each folder.

    Returns:
        The windows, and of copies of files the names (of the file that counts, of the copy).

    Raises:
        DataError: A file changed after it was clustered.
    """
    number = done.next_number
    windows: dict[str, list[tuple[int, Footer]]] = {}
    known = {(origin.fingerprint, origin.num_rows): name for name, origin in done.origins.items()}
    present = {file.name for file in files}
    copies: list[tuple[str, str]] = []
    for file in files:
        footer = read_footer(file)
        content = (footer.fingerprint, footer.num_rows)
        if (name := known.get(content)) is not None:  # done, under this name or another
            if name != file.name and name in present:
                copies.append((name, file.name))
            continue
        before = done.origins.get(file.name)
        if before is not None:
            raise DataError(
                f"{file.path}: changed since it was clustered: it had {before.num_rows} rows (fingerprint "
                f"{before.fingerprint}), it has {content[1]} ({content[0]}); put new rows into new files"
            )
        if footer.num_rows:
            known[content] = file.name
        windows.setdefault(file.name if by_file else file.folder, []).append((number, footer))
        number += 1
    taken = set(done.paths)
    units = []
    for name, footers in windows.items():
        path = _free_path(folder / name, taken) if not by_file else _path_of_file(folder / name, taken)
        taken.add(path)
        units.append(Unit(name or TOP_FOLDER, tuple(footers), path))
    return units, copies


def _free_path(folder: Path, taken: Collection[Path]) -> Path:
    return next(path for n in count() if not _is_taken(path := folder / f"part-{n:05d}.parquet", taken))


def _path_of_file(source: Path, taken: Collection[Path]) -> Path:
    """Where the copy of a file goes: under its name, and one that no other file of the log has."""
    stem = source.stem if source.suffix.lower() in SUFFIXES else source.name
    stem = stem.lstrip("._") or "part"  # a file named outright may have a name that readers of folders skip
    names = chain([f"{stem}.parquet"], (f"{stem}-{n}.parquet" for n in count(1)))
    return next(path for name in names if not _is_taken(path := source.with_name(name), taken))


def _is_taken(path: Path, taken: Collection[Path]) -> bool:
    return path in taken or path.exists()
