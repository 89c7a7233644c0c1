"""Plans the next windows from the log's files and the cursor, as pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from itertools import chain, count, islice, takewhile
from typing import Literal, NamedTuple, Self

from pydantic import Field, model_validator

from headrace.config import Config
from headrace.errors import ConfigError
from headrace.logs.cursor import Cursor, FileInfo, FileUse, Selection, TimeRange, TimeSpan, Window
from headrace.logs.files import natural_key
from headrace.logs.plausible_times import leave_out_far, plausible_times, time_text
from headrace.messages import count_of

__all__ = ["WindowConfig", "describe_rest", "parse_time_us", "plan_windows"]

US_PER_S = 1_000_000

TOP_FOLDER = "top-folder"
"""Name of the window of files in the log's root folder."""

WATERMARK_RATIO = 0.01
"""A window by time is complete once this share of its number of rows is past its end. So a single row with a wrong
clock does not end an incomplete window, and with steady traffic a window is complete after 1 % of its length."""

WATERMARK_ROWS = 3
"""Minimum rows past the end of a window. Windows of fewer than 100 rows would otherwise be ended by a single wrong
clock. Of 50 rows that each have a wrong clock with a probability of 1 %, three or more have one in 1 % of cases."""


class WindowConfig(Config):
    """How a log is divided into windows.

    Attributes:
        kind: "folder": each folder that holds files is a window; "file": each file; "rows": every `num_rows` rows in
            file order; "time": every `every_s` seconds of the timestamp column.
        num_rows: Rows per window (kind rows).
        every_s: Seconds per window (kind time); windows start at multiples of it since 1970-01-01 UTC.
        max_distance_s: Rows whose time is farther than this from the middle half of the times of every file are bad
            (kind time); None for no limit [90 days: late rows are days late, broken clocks are years off].
        include_incomplete: Use the last window of kind rows or time even if it may still grow. Off by default: a
            window cannot be extended, so rows that arrive later would become a separate window.
        merged: How to handle a new file with exactly the rows of several used files that are gone, as after
            compaction: "refuse" it, count its rows as "used", or use them as "new".
    """

    kind: Literal["folder", "file", "rows", "time"] = "folder"
    num_rows: int | None = Field(default=None, ge=1)
    every_s: int | None = Field(default=None, ge=1)
    max_distance_s: int | None = Field(default=90 * 86_400, ge=1)
    include_incomplete: bool = False
    merged: Literal["refuse", "used", "new"] = "refuse"

    @model_validator(mode="after")
    def _has_its_size(self) -> Self:
        for kind, key, value in (("rows", "num_rows", self.num_rows), ("time", "every_s", self.every_s)):
            if self.kind == kind and value is None:
                raise ValueError(f"windows of kind {kind} need {key}")
            if self.kind != kind and value is not None:
                raise ValueError(f"{key} is only for windows of kind {kind}, given kind {self.kind}")
        for key, kinds in (("include_incomplete", ("rows", "time")), ("max_distance_s", ("time",))):
            if key in self.changed() and self.kind not in kinds:
                raise ValueError(f"{key} is only for windows of kind {' or '.join(kinds)}, given kind {self.kind}")
        return self


def plan_windows(
    infos: Iterable[FileInfo],
    cursor: Cursor,
    config: WindowConfig,
    *,
    until: str | None = None,
    limit: int | None = None,
) -> list[Window]:
    """Plan the next windows, in order of use; empty if there is no new data.

    A file that arrives in a used folder becomes a separate late window (`hour=12+late1`). With windows by time, late
    rows belong to the next window.

    Args:
        infos: The current files; see `headrace.logs.metadata.read_infos`.
        cursor: The cursor.
        config: Window settings.
        until: The last window to use: a folder or file name, a total number of rows, or a time (ISO 8601, UTC by
            default) at which the last window may end.
        limit: Maximum number of windows.

    Raises:
        DataError: A file changed after rows of it were used.
        ConfigError: `until` is invalid, or the cursor has windows of another kind (by time or by position).
    """
    files = sorted(infos, key=lambda info: natural_key(info.file.name))
    by_time = config.kind == "time"
    if cursor.files and by_time != cursor.by_time:
        was, now = ("by time", "by position") if cursor.by_time else ("by position", "by time")
        raise ConfigError(
            f"window.kind: given {config.kind} ({now}), but the windows used so far are {was}; "
            f"keep the kind, or start a new run"
        )
    cursor.check_unchanged(files)
    keep = _until_test(config, until, cursor.num_rows_used)
    windows = _CUTTERS[config.kind](files, _Progress(cursor, by_time), config)
    return list(islice(takewhile(keep, windows), limit))


def describe_rest(infos: Iterable[FileInfo], cursor: Cursor, config: WindowConfig) -> str:
    """A line about unused rows, for a run that finds no (further) window."""
    progress = _Progress(cursor, cursor.by_time)
    unused = {info.file.name: info.num_rows - progress.rows_used(info) for info in infos}
    num_rows, num_files = sum(unused.values()), sum(1 for rows in unused.values() if rows)
    if not num_rows:
        return f"nothing new: all rows of {count_of(len(unused), 'file')} are used"
    is_are = "is" if num_rows == 1 else "are"
    rest = f"{count_of(num_rows, 'row')} in {count_of(num_files, 'file')} {is_are} not used"
    if config.include_incomplete or config.kind in ("folder", "file"):
        return f"{rest}: beyond the requested limit"
    until = f"there are {config.num_rows:,}" if config.kind == "rows" else "later rows show that it is complete"
    return f"{rest}: a window waits until {until} (include_incomplete uses it now), or is beyond the requested limit"


def parse_time_us(text: str) -> int:
    """Parse an ISO 8601 time, UTC by default, to microseconds since 1970-01-01 UTC.

    Raises:
        ConfigError: The text is not a time.
    """
    try:
        time = datetime.fromisoformat(text)
    except ValueError as error:
        raise ConfigError(f"given {text!r}, expected a time such as 2024-01-31T12:00:00") from error
    time = time.replace(tzinfo=UTC) if time.tzinfo is None else time
    since = time - datetime(1970, 1, 1, tzinfo=UTC)
    return (since.days * 86_400 + since.seconds) * US_PER_S + since.microseconds


class _Part(NamedTuple):
    """A window's part of a file."""

    info: FileInfo
    start_row: int
    stop_row: int
    times: TimeRange | None
    num_rows: int
    row_groups: tuple[int, ...] | None = None
    times_us: TimeSpan | None = None  # first and last time of the rows


class _Progress:
    """The cursor during planning: rows used before, and rows of the windows planned so far."""

    def __init__(self, cursor: Cursor, by_time: bool) -> None:
        self.uses = dict(cursor.files)
        self.used_until_us = cursor.used_until_us
        self.times_us = cursor.times_us
        self.plausible_us: TimeSpan | None = None  # of files without used rows
        self.num_rows_used = cursor.num_rows_used
        self._names = set(cursor.windows)
        self._last: Cursor | Window = cursor
        self._by_time = by_time

    def rows_used(self, info: FileInfo) -> int:
        use = self.uses.get(info.file.name)
        return 0 if use is None else use.rows_used

    def is_fresh(self, info: FileInfo) -> bool:
        return info.file.name not in self.uses

    def unused(self, files: Iterable[FileInfo]) -> list[FileInfo]:
        return [info for info in files if self.rows_used(info) < info.num_rows]

    def add(self, title: str, parts: Iterable[_Part]) -> Window:
        """Create a window from parts of files, and mark their rows as used."""
        own: dict[str, FileUse] = {}
        selections = []
        for part in parts:
            info, times = part.info, part.times
            file, use = info.file, self.uses.get(info.file.name)
            number = len(self.uses) if use is None else use.number
            rows_used = part.num_rows + (0 if use is None else use.rows_used)
            until_us = None if times is None else times[1]
            plausible_us = self.plausible_us if use is None else use.plausible_us
            selections.append(
                Selection(
                    file, number, part.start_row, part.stop_row, times, part.num_rows, part.row_groups, plausible_us
                )
            )
            own[file.name] = self.uses[file.name] = FileUse(
                number,
                file.size_bytes,
                file.version,
                info.fingerprint,
                info.num_rows,
                rows_used,
                until_us,
                plausible_us,
            )
            self.num_rows_used += part.num_rows
            self.times_us = _hull(self.times_us, part.times_us)
        names = chain([title], (f"{title}+late{n}" for n in count(1)))
        name = next(name for name in names if name not in self._names)
        self._names.add(name)
        self._last = Window(name, tuple(selections), self._last, own, self._by_time, self.used_until_us, self.times_us)
        return self._last

    def rest_of(self, info: FileInfo, stop_row: int | None = None) -> _Part:
        """A file's unused rows, up to a given row."""
        start_row, stop_row = self.rows_used(info), info.num_rows if stop_row is None else stop_row
        return _Part(info, start_row, stop_row, None, stop_row - start_row)


def _cut_by_folder(files: Sequence[FileInfo], progress: _Progress, config: WindowConfig) -> Iterator[Window]:
    folders: dict[str, list[FileInfo]] = {}
    for info in progress.unused(files):
        folders.setdefault(info.file.folder, []).append(info)
    for folder in sorted(folders, key=natural_key):
        yield progress.add(folder or TOP_FOLDER, map(progress.rest_of, folders[folder]))


def _cut_by_file(files: Sequence[FileInfo], progress: _Progress, config: WindowConfig) -> Iterator[Window]:
    for info in progress.unused(files):
        yield progress.add(info.file.name, [progress.rest_of(info)])


def _cut_by_rows(files: Sequence[FileInfo], progress: _Progress, config: WindowConfig) -> Iterator[Window]:
    assert config.num_rows is not None
    # Partially used files come first, so that at most one file is partially used, whatever arrives before it.
    order = sorted(progress.unused(files), key=progress.is_fresh)
    taken: list[_Part] = []
    missing = config.num_rows
    for info in order:
        position = progress.rows_used(info)
        while position < info.num_rows:
            step = min(missing, info.num_rows - position)
            position, missing = position + step, missing - step
            taken.append(progress.rest_of(info, position))
            if missing == 0:
                yield progress.add(_rows_name(progress, config.num_rows), taken)
                taken, missing = [], config.num_rows
    if taken and config.include_incomplete:
        yield progress.add(_rows_name(progress, config.num_rows - missing), taken)


def _cut_by_time(files: Sequence[FileInfo], progress: _Progress, config: WindowConfig) -> Iterator[Window]:
    assert config.every_s is not None
    every_us = config.every_s * US_PER_S
    pending = _with_plausible_times(progress.unused(files), progress, config)
    last_us = max((slot.last_us for info in pending for slot in info.time_slots), default=None)
    while pending:
        start_us = _earliest_us(pending, progress.used_until_us)
        stop_us = None if start_us is None else start_us // every_us * every_us + every_us
        if stop_us is None or not _is_over(pending, progress.used_until_us, stop_us, every_us):
            if not config.include_incomplete:
                return
            if last_us is None or stop_us is None or last_us < stop_us:
                # The time advances only to the last row, so that later rows of this slot are not late.
                stops = (progress.used_until_us, None if last_us is None else last_us + 1)
                stop_us = max((time for time in stops if time is not None), default=None)
        parts = [part for info in pending if (part := _up_to_time(info, stop_us, progress)) is not None]
        assert parts, f"no rows before {stop_us} although the earliest are at {start_us}"
        progress.used_until_us = stop_us
        yield progress.add("untimed" if start_us is None else time_text(start_us), parts)
        pending = [_without(info, stop_us) for info in progress.unused(pending)]


def _with_plausible_times(pending: Sequence[FileInfo], progress: _Progress, config: WindowConfig) -> list[FileInfo]:
    """Remove implausible times from new files, so that they do not affect any window.

    A row with an implausible time belongs to its file's first window, like a row without a time, and is bad there. The
    decision is stored in the cursor, so that all rows of a file are treated alike, whatever arrives between its
    windows.
    """
    if config.max_distance_s is None or config.every_s is None:
        return list(pending)
    progress.plausible_us = plausible_times(
        filter(progress.is_fresh, pending),
        progress.times_us,
        every_us=config.every_s * US_PER_S,
        max_distance_us=config.max_distance_s * US_PER_S,
    )
    if progress.plausible_us is None:
        return list(pending)
    return [leave_out_far(info, progress.plausible_us) if progress.is_fresh(info) else info for info in pending]


def _is_over(pending: Sequence[FileInfo], used_until_us: int | None, stop_us: int, every_us: int) -> bool:
    """Whether enough rows are past the end of a window; see `WATERMARK_RATIO` and `WATERMARK_ROWS`."""
    slots = sorted((slot.start_us, slot.num_rows) for info in pending for slot in info.time_slots)
    left = sum(num_rows for _, num_rows in slots)
    before = after = 0
    next_us = slots[0][0] if used_until_us is None else used_until_us
    for start_us, num_rows in slots:
        if start_us > next_us and left < WATERMARK_ROWS:
            break
        if start_us < stop_us:
            before += num_rows
        else:
            after += num_rows
        left -= num_rows
        next_us = max(next_us, start_us + every_us)
    return after > 0 and after >= WATERMARK_RATIO * before


def _earliest_us(pending: Sequence[FileInfo], used_until_us: int | None) -> int | None:
    """Start of the next window: the earliest unused row, but not before the end of the last window."""
    times = [info.time_slots[0].start_us for info in pending if info.time_slots]
    if used_until_us is not None:
        return max(used_until_us, min(times, default=used_until_us))
    return min(times, default=None)


def _up_to_time(info: FileInfo, stop_us: int | None, progress: _Progress) -> _Part | None:
    """A file's unused rows before a time, or None if there are none."""
    slots = [slot for slot in info.time_slots if stop_us is None or slot.start_us < stop_us]
    num_rows = sum(slot.num_rows for slot in slots)
    row_groups = {group for slot in slots for group in slot.row_groups}
    use = progress.uses.get(info.file.name)
    if use is None:  # rows without a readable, plausible time belong to the file's first window
        num_rows += info.num_rows - sum(slot.num_rows for slot in info.time_slots)
        row_groups.update(info.untimed_groups)
    if num_rows == 0:
        return None
    times: TimeRange = (None if use is None else use.used_until_us, stop_us)
    span = (slots[0].start_us, max(slot.last_us for slot in slots)) if slots else None
    return _Part(info, 0, info.num_rows, times, num_rows, tuple(sorted(row_groups)), span)


def _without(info: FileInfo, stop_us: int | None) -> FileInfo:
    later = tuple(slot for slot in info.time_slots if stop_us is not None and slot.start_us >= stop_us)
    return replace(info, time_slots=later)


def _hull(span: TimeSpan | None, more: TimeSpan | None) -> TimeSpan | None:
    if span is None or more is None:
        return span or more
    return min(span[0], more[0]), max(span[1], more[1])


def _rows_name(progress: _Progress, num_rows: int) -> str:
    return f"rows-{progress.num_rows_used}-{progress.num_rows_used + num_rows}"


def _until_test(config: WindowConfig, until: str | None, rows_before: int) -> Callable[[Window], bool]:
    """Make a test for whether a window is among those requested."""
    if until is None:
        return lambda window: True
    if config.kind == "time":
        until_us = parse_time_us(until)
        return lambda window: window.used_until_us is None or window.used_until_us <= until_us
    if config.kind == "rows":
        if not until.isdigit():
            raise ConfigError(f"until: given {until!r}, expected a number of rows, because windows are of kind rows")
        rows_used, rows_wanted = rows_before, int(until)

        def ends_in_time(window: Window) -> bool:
            nonlocal rows_used
            rows_used += window.num_rows
            return rows_used <= rows_wanted

        return ends_in_time
    last = natural_key("" if until in (".", TOP_FOLDER) else until)
    if config.kind == "folder":
        return lambda window: natural_key(window.selections[0].file.folder) <= last
    return lambda window: natural_key(window.selections[0].file.name) <= last


_CUTTERS = {"folder": _cut_by_folder, "file": _cut_by_file, "rows": _cut_by_rows, "time": _cut_by_time}
