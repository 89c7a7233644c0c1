"""`Cursor`: exactly which rows of a log have been used, as plain data that lies in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from headrace.errors import CheckpointError, DataError, VersionMismatch
from headrace.logs.files import LogFile

__all__ = ["Cursor", "FileInfo", "FileUse", "Selection", "TimeRange", "TimeSlot", "TimeSpan", "Window"]

VERSION = 3

TimeRange = tuple[int | None, int | None]
"""Start (included) and stop (excluded) in microseconds since 1970-01-01 UTC; None is open. A range without a start also
takes the rows that have no readable time, or one that is not plausible: each row must belong to some window, the bad
ones too."""

TimeSpan = tuple[int, int]
"""Two times in microseconds since 1970-01-01 UTC, the first not after the second."""


class TimeSlot(NamedTuple):
    """The rows of a file in one slot of time, as long as a window.

    Attributes:
        start_us: Where the slot starts, in microseconds since 1970-01-01 UTC.
        last_us: Latest time of the rows.
        num_rows: How many there are.
        row_groups: Row groups that they lie in.
    """

    start_us: int
    last_us: int
    num_rows: int
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class FileInfo:
    """A log file and what its footer says.

    Attributes:
        file: The file as it was listed.
        num_rows: Its rows.
        fingerprint: Digest of its Parquet footer and of samples of its data: another content has another fingerprint.
        time_slots: For windows by time, the slots of the rows not used yet, in order of time; empty otherwise.
        untimed_groups: For windows by time, row groups with rows whose time cannot be read (or is not plausible).
    """

    file: LogFile
    num_rows: int
    fingerprint: str
    time_slots: tuple[TimeSlot, ...] = ()
    untimed_groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class FileUse:
    """What the cursor remembers of a file of which rows have been used.

    Attributes:
        number: The file's number in derived row ids; given once, in the order of first use.
        size_bytes: Size when it was used.
        version: The file system's word for its last change then.
        fingerprint: Its fingerprint then.
        num_rows: Rows in it.
        rows_used: How many of them are used: the first so many, or with windows by time those before `used_until_us`.
        used_until_us: Windows by time: rows before this time (and those without one) are used.
        plausible_us: Windows by time: start and stop of the times that counted as plausible when it was first used; its
            rows outside of them were used as bad ones then. None for all times.
    """

    number: int
    size_bytes: int
    version: str
    fingerprint: str
    num_rows: int
    rows_used: int
    used_until_us: int | None = None
    plausible_us: TimeSpan | None = None

    @property
    def is_done(self) -> bool:
        """Whether every row is used."""
        return self.rows_used >= self.num_rows


@dataclass(frozen=True)
class Cursor:
    """What has been used so far; a new one has used nothing.

    Attributes:
        files: What was used of each file, by the file's name in the log.
        windows: Names of the windows used, in order.
        by_time: Whether windows were cut by time (then files may be used up to a time, else up to a row).
        used_until_us: Windows by time: where the next window starts.
        times_us: Windows by time: first and last time of the rows used, without times that are not plausible.
    """

    files: Mapping[str, FileUse] = field(default_factory=dict)
    windows: tuple[str, ...] = ()
    by_time: bool = False
    used_until_us: int | None = None
    times_us: TimeSpan | None = None

    @property
    def num_rows_used(self) -> int:
        """Rows of the log used so far, good and bad."""
        return sum(use.rows_used for use in self.files.values())

    def to_dict(self) -> dict[str, Any]:
        """The cursor as JSON-able values."""
        return {
            "version": VERSION,
            "by_time": self.by_time,
            "used_until_us": self.used_until_us,
            "times_us": self.times_us,
            "windows": list(self.windows),
            "files": {name: asdict(use) for name, use in self.files.items()},
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cursor:
        """Undo `to_dict`.

        Raises:
            VersionMismatch: Another version wrote it.
            CheckpointError: It is not a cursor.
        """
        version = values.get("version")
        if version != VERSION:
            raise VersionMismatch(f"window cursor: saved with version {version}, this code reads version {VERSION}")
        try:
            return cls(
                files={name: _use_from(use) for name, use in values["files"].items()},
                windows=tuple(values["windows"]),
                by_time=bool(values["by_time"]),
                used_until_us=values["used_until_us"],
                times_us=_span_from(values["times_us"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"window cursor: saved values are invalid: {error!r}") from error

    def check_unchanged(self, infos: Iterable[FileInfo]) -> None:
        """Check that files of which rows were used are still what they were.

        Raises:
            DataError: A file changed; prints what it was and what it is.
        """
        for info in infos:
            use = self.files.get(info.file.name)
            if use is None:
                continue
            was = (use.size_bytes, use.num_rows, use.fingerprint)
            now = (info.file.size_bytes, info.num_rows, info.fingerprint)
            if was != now:
                raise DataError(
                    f"{info.file.path}: changed since {use.rows_used:,} of its rows were used: it was "
                    f"{_describe(*was)}, it is {_describe(*now)}; put new rows into new files"
                )

    def is_done(self, name: str) -> bool:
        """Whether every row of a file is used."""
        return name in self.files and self.files[name].is_done


@dataclass(frozen=True)
class Selection:
    """Rows of one file: those of a row range that also lie in a time range.

    Attributes:
        file: The file.
        file_number: Its number in derived row ids.
        start_row: First row in the file.
        stop_row: Row after the last.
        time_range_us: See `TimeRange`; None for all times.
        num_rows: Rows selected, good and bad; `stop_row - start_row` when there is no time range.
        row_groups: The row groups that hold them, as the plan found; None for all in the row range.
        plausible_us: Start and stop of the plausible times; rows outside of them are bad, and belong to the selection
            without a start. None for all times.
    """

    file: LogFile
    file_number: int
    start_row: int
    stop_row: int
    time_range_us: TimeRange | None
    num_rows: int
    row_groups: tuple[int, ...] | None = None
    plausible_us: TimeSpan | None = None


@dataclass(frozen=True, eq=False)
class Window:
    """The slice of a log that one increment of training uses.

    Attributes:
        name: Unique in a cursor, for instance "hour=12".
        selections: The rows, in order.
        before: The cursor this window was planned after, or the window planned before this one. Cursors are put
            together when they are asked for: a plan of thousands of windows would otherwise hold thousands of copies.
        uses: What is used of the files selected, once the window has been.
        by_time: Whether it was cut by time.
        used_until_us: Where the next window by time starts.
        times_us: First and last time of the rows used once the window has been; see `Cursor`.
    """

    name: str
    selections: tuple[Selection, ...]
    before: Cursor | Window
    uses: Mapping[str, FileUse]
    by_time: bool = False
    used_until_us: int | None = None
    times_us: TimeSpan | None = None

    @property
    def num_rows(self) -> int:
        """Rows of the window, good and bad."""
        return sum(selection.num_rows for selection in self.selections)

    @property
    def cursor_before(self) -> Cursor:
        """What has been used when the window starts."""
        return self.before if isinstance(self.before, Cursor) else self.before.cursor_after

    @property
    def cursor_after(self) -> Cursor:
        """What has been used once all rows of the window have been."""
        windows = [self]
        while isinstance(windows[-1].before, Window):
            windows.append(windows[-1].before)
        base = windows[-1].cursor_before
        files = dict(base.files)
        for window in reversed(windows):
            files.update(window.uses)
        names = tuple(window.name for window in reversed(windows))
        return Cursor(files, base.windows + names, self.by_time, self.used_until_us, self.times_us)

    def to_dict(self) -> dict[str, Any]:
        """The window as JSON-able values, for a checkpoint in the middle of it."""
        return {
            "name": self.name,
            "selections": [asdict(selection) for selection in self.selections],
            "cursor_before": self.cursor_before.to_dict(),
            "uses": {name: asdict(use) for name, use in self.uses.items()},
            "by_time": self.by_time,
            "used_until_us": self.used_until_us,
            "times_us": self.times_us,
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Window:
        """Undo `to_dict`, also after a trip through JSON.

        Raises:
            CheckpointError: It is not a window, or another version wrote it.
        """
        try:
            return cls(
                name=str(values["name"]),
                selections=tuple(_selection_from(saved) for saved in values["selections"]),
                before=Cursor.from_dict(values["cursor_before"]),
                uses={name: _use_from(use) for name, use in values["uses"].items()},
                by_time=bool(values["by_time"]),
                used_until_us=values["used_until_us"],
                times_us=_span_from(values["times_us"]),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise CheckpointError(f"window: saved values are invalid: {error!r}") from error


def _selection_from(saved: Mapping[str, Any]) -> Selection:
    partition = tuple((key, value) for key, value in saved["file"]["partition"])
    times, row_groups = saved["time_range_us"], saved["row_groups"]
    return Selection(
        **{
            **saved,
            "file": LogFile(**{**saved["file"], "partition": partition}),
            "time_range_us": None if times is None else (times[0], times[1]),
            "row_groups": None if row_groups is None else tuple(row_groups),
            "plausible_us": _span_from(saved["plausible_us"]),
        }
    )


def _use_from(saved: Mapping[str, Any]) -> FileUse:
    return FileUse(**{**saved, "plausible_us": _span_from(saved["plausible_us"])})


def _span_from(saved: Any) -> TimeSpan | None:
    return None if saved is None else (saved[0], saved[1])


def _describe(size_bytes: int, num_rows: int, fingerprint: str) -> str:
    return f"{size_bytes:,} bytes with {num_rows:,} rows (fingerprint {fingerprint})"
