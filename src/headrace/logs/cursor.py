"""`Cursor`: which rows of a log have been used, as plain data in the checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from headrace.errors import CheckpointError, DataError, VersionMismatch
from headrace.logs.files import LogFile
from headrace.logs.footers import Footer

__all__ = ["Cursor", "FileInfo", "FileUse", "Selection", "TimeRange", "TimeSlot", "TimeSpan", "Window"]

VERSION = 3

TimeRange = tuple[int | None, int | None]
"""Start (inclusive) and stop (exclusive) in microseconds since 1970-01-01 UTC; None means unbounded. A range without a
start also includes rows whose time is unreadable or implausible, because each row must belong to a window, even bad
ones."""

TimeSpan = tuple[int, int]
"""First and last time in microseconds since 1970-01-01 UTC."""


class TimeSlot(NamedTuple):
    """The rows of a file in one time slot, which has the length of a window.

    Attributes:
        start_us: Start of the slot, in microseconds since 1970-01-01 UTC.
        last_us: Latest time of the rows.
        num_rows: Number of rows.
        row_groups: Row groups that contain the rows.
    """

    start_us: int
    last_us: int
    num_rows: int
    row_groups: tuple[int, ...]


@dataclass(frozen=True)
class FileInfo:
    """A log file and the contents of its footer.

    Attributes:
        file: The file as listed.
        num_rows: Number of rows.
        fingerprint: Digest of its Parquet footer and of samples of its data, which identifies the content.
        time_slots: For windows by time, the time slots of unused rows, in order; empty otherwise.
        untimed_groups: For windows by time, row groups with rows whose time is unreadable or implausible.
    """

    file: LogFile
    num_rows: int
    fingerprint: str
    time_slots: tuple[TimeSlot, ...] = ()
    untimed_groups: tuple[int, ...] = ()


@dataclass(frozen=True)
class FileUse:
    """The cursor's record of a file with used rows.

    Attributes:
        number: The file's number in derived row ids, assigned at first use.
        size_bytes: Size when it was used.
        version: Time of its last change, or etag, when it was used.
        fingerprint: Its fingerprint when it was used.
        num_rows: Number of rows.
        rows_used: Number of used rows: the first ones, or with windows by time those before `used_until_us`.
        used_until_us: Windows by time: rows before this time, and rows without a time, are used.
        plausible_us: Windows by time: range of plausible times when the file was first used; rows outside of it counted
            as bad rows. None for all times.
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
        """Whether all rows are used."""
        return self.rows_used >= self.num_rows


@dataclass(frozen=True)
class Cursor:
    """The rows of a log that have been used; a new cursor has used none.

    Attributes:
        files: Use of each file, by the file's name in the log.
        windows: Names of the used windows, in order.
        by_time: Whether windows are by time; then files are used up to a time, otherwise up to a row.
        used_until_us: Windows by time: start of the next window.
        times_us: Windows by time: first and last plausible time of the used rows.
    """

    files: Mapping[str, FileUse] = field(default_factory=dict)
    windows: tuple[str, ...] = ()
    by_time: bool = False
    used_until_us: int | None = None
    times_us: TimeSpan | None = None

    @property
    def num_rows_used(self) -> int:
        """Number of rows used so far, good and bad."""
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
        """Load the result of `to_dict`.

        Raises:
            VersionMismatch: It was written by a different version.
            CheckpointError: It is not a cursor.
        """
        version = values.get("version")
        if version != VERSION:
            raise VersionMismatch(f"window cursor: saved with version {version}, expected {VERSION}")
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
        """Check that files with used rows have not changed.

        Raises:
            DataError: A file changed; the message describes it before and now.
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
                    f"{_describe(*was)}, now it is {_describe(*now)}; put new rows into new files"
                )

    def is_done(self, name: str) -> bool:
        """Whether all rows of a file are used."""
        return name in self.files and self.files[name].is_done


@dataclass(frozen=True)
class Selection:
    """Rows of one file, selected by row range and time range.

    Attributes:
        file: The file.
        file_number: Number of the file in derived row ids.
        start_row: First row.
        stop_row: End of the row range (exclusive).
        time_range_us: See `TimeRange`; None for all times.
        num_rows: Number of selected rows, good and bad; `stop_row - start_row` without a time range.
        row_groups: Row groups that contain the rows; None for all in the row range.
        plausible_us: Range of plausible times; rows outside of it are bad, and belong to the selection without a start.
            None for all times.
        footer: The file's footer if it was read already; then it is not read again.
    """

    file: LogFile
    file_number: int
    start_row: int
    stop_row: int
    time_range_us: TimeRange | None
    num_rows: int
    row_groups: tuple[int, ...] | None = None
    plausible_us: TimeSpan | None = None
    footer: Footer | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, eq=False)
class Window:
    """A slice of a log, used in one increment of training.

    Attributes:
        name: Name, unique within a cursor, for instance "hour=12".
        selections: The rows, in order.
        before: The cursor that this window was planned from, or the previously planned window. Cursors are computed on
            demand, because a plan of thousands of windows would otherwise hold thousands of copies.
        uses: Use of the selected files after the window.
        by_time: Whether it is a window by time.
        used_until_us: Start of the next window by time.
        times_us: First and last time of used rows after the window; see `Cursor`.
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
        """Number of rows, good and bad."""
        return sum(selection.num_rows for selection in self.selections)

    @property
    def cursor_before(self) -> Cursor:
        """The cursor at the start of the window."""
        return self.before if isinstance(self.before, Cursor) else self.before.cursor_after

    @property
    def cursor_after(self) -> Cursor:
        """The cursor at the end of the window."""
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
        """The window as JSON-able values, for a checkpoint inside the window."""
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
        """Load the result of `to_dict`, possibly stored as JSON.

        Raises:
            CheckpointError: It is not a window, or was written by a different version.
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
