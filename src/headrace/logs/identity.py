"""Identifies files by content: used files with new names, duplicates and merged files."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from headrace.errors import DataError
from headrace.logs.cursor import Cursor, FileInfo, FileUse, Window
from headrace.logs.files import natural_key, printable

__all__ = ["Recognized", "note_names", "recognize", "relocate"]

MAX_NAMED = 5

MAX_RUNS_OF = 64
"""Maximum missing files per folder among which sums of rows are matched; with more, sums match by chance."""


@dataclass(frozen=True)
class Recognized:
    """A log matched with a cursor.

    Attributes:
        infos: The files, without duplicates.
        cursor: The cursor with the current names of used files.
        notes: Lines for the user about renamed files and duplicates.
    """

    infos: tuple[FileInfo, ...]
    cursor: Cursor
    notes: tuple[str, ...]


def recognize(infos: Iterable[FileInfo], cursor: Cursor, merged: Literal["refuse", "used", "new"]) -> Recognized:
    """Match the files of a log with a cursor.

    Files are identified by size and fingerprint, not by name, so a log may be renamed, moved, or read from a parent or
    child folder. Of files with the same content only one is used.

    Args:
        infos: The current files.
        cursor: The cursor.
        merged: How to handle a new file with as many rows as several used files that are gone: refuse it, count its
            rows as used, or use it as new.

    Raises:
        DataError: A file seems to consist of several merged used files, and `merged` is "refuse".
    """
    files = sorted(infos, key=lambda info: natural_key(info.file.name))
    present = {info.file.name: info for info in files}
    kept = {name for name, use in cursor.files.items() if name in present and _content(use) == _content(present[name])}
    strangers: dict[tuple[str, int, int], list[FileInfo]] = {}
    for info in files:
        if info.file.name not in kept:
            strangers.setdefault(_content(info), []).append(info)
    moves: dict[str, str] = {}
    for name, use in cursor.files.items():
        if name not in kept and (found := strangers.get(_content(use))):
            moves[name] = found.pop(0).file.name
    uses = {moves.get(name, name): use for name, use in cursor.files.items()}
    cursor = replace(cursor, files=uses)
    infos, copies = _without_copies(files, uses)
    new = [info for info in infos if info.file.name not in uses and info.num_rows]
    gone = {name: use for name, use in uses.items() if name not in present and use.rows_used and use.num_rows}
    notes = note_names("files used before under other names", moves.items(), "was")
    notes += note_names("duplicates of other files, not used again", copies, "as")
    if merged != "new" and (union := _merged(new, gone)) is not None:
        if merged == "refuse":
            raise _merged_error(*union)
        cursor = _count_as_used(cursor, union[0])
        names = ", ".join(printable(info.file.name) for info in union[0][:MAX_NAMED])
        notes.append(f"counted as used, because they contain the rows of files that are gone: {names}")
    return Recognized(tuple(infos), cursor, tuple(notes))


def relocate(window: Window, infos: Iterable[FileInfo]) -> Window:
    """Update a previously planned window to the current locations of its files."""
    places = {_content(info): info.file for info in infos}
    paths = {file.path for file in places.values()}
    selections = []
    for selection in window.selections:
        use = window.uses.get(selection.file.name)
        now = None if use is None or selection.file.path in paths else places.get(_content(use))
        file = selection.file if now is None else replace(selection.file, path=now.path, version=now.version)
        selections.append(replace(selection, file=file))
    return replace(window, selections=tuple(selections))


def _content(file: FileInfo | FileUse) -> tuple[str, int, int]:
    size_bytes = file.file.size_bytes if isinstance(file, FileInfo) else file.size_bytes
    return file.fingerprint, size_bytes, file.num_rows


def _without_copies(
    files: Sequence[FileInfo], uses: Mapping[str, FileUse]
) -> tuple[list[FileInfo], list[tuple[str, str]]]:
    """The files without duplicates, and pairs (name of the used file, name of the duplicate)."""
    first: dict[tuple[str, int, int], str] = {_content(use): name for name, use in uses.items()}
    kept, copies = [], []
    for info in files:
        name = first.setdefault(_content(info), info.file.name)
        if info.file.name in uses or name == info.file.name or not info.num_rows:
            kept.append(info)
        else:
            copies.append((name, info.file.name))
    return kept, copies


def _merged(new: Sequence[FileInfo], gone: Mapping[str, FileUse]) -> tuple[list[FileInfo], list[str]] | None:
    """New files with exactly as many rows as several used files that are gone, and the names of those."""
    if len(gone) < 2 or not new:
        return None
    of_folder: dict[str, list[str]] = {}
    for name in sorted(gone, key=natural_key):
        of_folder.setdefault(name.rpartition("/")[0], []).append(name)
    candidates: list[tuple[str | None, list[str]]] = [(None, list(gone)), *of_folder.items()]
    for folder, names in candidates:
        num_rows = sum(gone[name].num_rows for name in names)
        here = [info for info in new if folder is None or info.file.folder == folder]
        if len(names) > 1 and here and sum(info.num_rows for info in here) == num_rows:
            return here, names
        for info in new if len(names) > 1 else ():
            if info.num_rows == num_rows:
                return [info], names
    for info in new:
        for names in _runs(of_folder.get(info.file.folder, [])):
            if sum(gone[name].num_rows for name in names) == info.num_rows:
                return [info], names
    return None


def _runs(names: Sequence[str]) -> Iterator[list[str]]:
    """Yield runs of two or more consecutive files."""
    if len(names) <= MAX_RUNS_OF:
        for start in range(len(names)):
            for stop in range(start + 2, len(names) + 1):
                yield list(names[start:stop])


def _count_as_used(cursor: Cursor, infos: Sequence[FileInfo]) -> Cursor:
    uses = dict(cursor.files)
    for info in infos:
        file = info.file
        uses[file.name] = FileUse(
            len(uses), file.size_bytes, file.version, info.fingerprint, info.num_rows, info.num_rows
        )
    return replace(cursor, files=uses)


def _merged_error(infos: Sequence[FileInfo], names: Sequence[str]) -> DataError:
    there = ", ".join(printable(info.file.path) for info in infos[:MAX_NAMED])
    more = f" and {len(names) - MAX_NAMED:,} more" if len(names) > MAX_NAMED else ""
    return DataError(
        f"{there}: has exactly the {sum(info.num_rows for info in infos):,} rows of {len(names):,} used files that are "
        f"gone ({', '.join(map(printable, names[:MAX_NAMED]))}{more}), as if they had been merged; set window.merged "
        f"to used if its rows were used, or to new if they were not"
    )


def note_names(what: str, pairs: Iterable[tuple[str, str]], word: str) -> list[str]:
    """A note about files given as pairs (old name, new name); empty if there are none."""
    named = [f"{printable(now)} ({word} {printable(before)})" for before, now in pairs]
    if not named:
        return []
    more = f", and {len(named) - MAX_NAMED:,} more" if len(named) > MAX_NAMED else ""
    return [f"{what}: {', '.join(named[:MAX_NAMED])}{more}"]
