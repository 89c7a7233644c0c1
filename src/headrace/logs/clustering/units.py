"""Determines the windows to cluster, without files that an earlier run has clustered."""

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
        name: Path relative to the folder of the log.
        fingerprint: Digest of its footer.
        num_rows: Number of rows.
        number: File number in row ids.
    """

    name: str
    fingerprint: str
    num_rows: int
    number: int


@dataclass(frozen=True)
class Done:
    """The result of earlier runs.

    Attributes:
        origins: Clustered files of the log, by name.
        layout: Layout of the output files, or None if there are none.
        settings: Settings that must not change between runs.
        paths: Paths of the output files.
        columns: Columns of the output files.
    """

    origins: Mapping[str, Origin]
    layout: Layout | None
    settings: Mapping[str, Any]
    paths: frozenset[Path]
    columns: StoredColumns

    @property
    def next_number(self) -> int:
        """Number for the next file."""
        return 1 + max((origin.number for origin in self.origins.values()), default=-1)


@dataclass(frozen=True)
class Unit:
    """Rows that are sorted together.

    Attributes:
        name: Name of the window, for messages.
        footers: Files with their numbers, in order.
        path: Output file.
    """

    name: str
    footers: tuple[tuple[int, Footer], ...]
    path: Path

    @property
    def num_rows(self) -> int:
        """Total rows of the files."""
        return sum(footer.num_rows for _, footer in self.footers)

    def origins(self) -> list[dict[str, Any]]:
        """The files as JSON-able values."""
        return [
            asdict(Origin(footer.file.name, footer.fingerprint, footer.num_rows, number))
            for number, footer in self.footers
        ]


def find_done(folder: Path) -> Done:
    """Read the state of a clustered log's folder.

    Raises:
        ConfigError: It contains a file that `cluster_log` did not write.
    """
    origins: dict[str, Origin] = {}
    layout: Layout | None = None
    settings: dict[str, Any] = {}
    paths = set()
    columns = StoredColumns({}, {})
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder}: given a file, expected an output folder")
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
        raise ConfigError(f"{folder}: contains {visible[0].name}, not written by cluster; choose a new or empty folder")
    return Done(origins, layout, settings, frozenset(paths), columns)


def plan_units(
    files: Sequence[LogFile], done: Done, folder: Path, *, by_file: bool
) -> tuple[list[Unit], list[tuple[str, str]]]:
    """Plan the windows to cluster, in order, without finished files and duplicates.

    A file that arrives in a finished window is clustered to a separate file, because for the reader it is a late
    window.

    Args:
        files: Files of the log.
        done: Result of earlier runs.
        folder: Output folder.
        by_file: Whether each file is a window, instead of each folder.

    Returns:
        The windows, and the names of duplicates as pairs (file that is used, duplicate).

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
        if (name := known.get(content)) is not None:  # clustered already, under this or another name
            if name != file.name and name in present:
                copies.append((name, file.name))
            continue
        before = done.origins.get(file.name)
        if before is not None:
            raise DataError(
                f"{file.path}: changed since it was clustered: it had {before.num_rows} rows (fingerprint "
                f"{before.fingerprint}), now it has {content[1]} ({content[0]}); put new rows into new files"
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
    """Output path of a file: its own name, or a unique one."""
    stem = source.stem if source.suffix.lower() in SUFFIXES else source.name
    stem = stem.lstrip("._") or "part"  # an explicitly given file may have a name that readers of folders skip
    names = chain([f"{stem}.parquet"], (f"{stem}-{n}.parquet" for n in count(1)))
    return next(path for name in names if not _is_taken(path := source.with_name(name), taken))


def _is_taken(path: Path, taken: Collection[Path]) -> bool:
    return path in taken or path.exists()
