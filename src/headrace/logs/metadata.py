"""Reads file metadata for window planning, from footers and if needed from the timestamp column."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from headrace.errors import ConfigError, DataError, expect
from headrace.logs.casting import cast_times, to_time_us
from headrace.logs.cursor import Cursor, FileInfo, FileUse, TimeSlot, Window
from headrace.logs.files import LogFile, list_log
from headrace.logs.footers import Footer, iter_plain, open_parquet, read_footer, time_bounds
from headrace.logs.identity import Recognized, recognize
from headrace.logs.schema import Schema, TimestampColumn
from headrace.logs.time_units import check_log_unit
from headrace.logs.windows import US_PER_S, WindowConfig, describe_rest, plan_windows
from headrace.messages import shorten_list

__all__ = ["NewWindows", "find_windows", "read_infos"]

NUM_CONNECTIONS = 16
"""Remote footers read concurrently; each takes two or three round trips and hardly any CPU."""


BATCH_ROWS = 65_536
"""Timestamps per batch."""


@dataclass(frozen=True)
class NewWindows:
    """The next windows, and a summary of the remaining data.

    Attributes:
        windows: Windows, in the order of use.
        rest: One line about rows that no window uses ("nothing new: ...").
        notes: Lines for the user about the log, such as entries that are not read.
        infos: The files of the log.
    """

    windows: tuple[Window, ...]
    rest: str
    notes: tuple[str, ...] = ()
    infos: tuple[FileInfo, ...] = ()


def find_windows(
    location: str | Path,
    schema: Schema,
    cursor: Cursor,
    config: WindowConfig,
    *,
    until: str | None = None,
    limit: int | None = None,
) -> NewWindows:
    """List a log, find new data, and plan the next windows; see `plan_windows`.

    Raises:
        ConfigError: The log does not exist, or the schema, the config and the cursor do not fit together.
        DataError: A file is damaged, or changed after rows of it were used.
    """
    expect(schema, Schema, where="find_windows: schema", expected="a Schema")
    expect(cursor, Cursor, where="find_windows: cursor", expected="a Cursor")
    expect(config, WindowConfig, where="find_windows: config", expected="a WindowConfig")
    listing = list_log(location)
    log = _read_log(listing.files, schema, cursor, config)
    windows = plan_windows(log.infos, log.cursor, config, until=until, limit=limit)
    rest = describe_rest(log.infos, windows[-1].cursor_after if windows else log.cursor, config)
    return NewWindows(tuple(windows), rest, (*listing.notes, *log.notes), log.infos)


def read_infos(files: Iterable[LogFile], schema: Schema, cursor: Cursor, config: WindowConfig) -> list[FileInfo]:
    """Read the metadata that `plan_windows` needs of each file, without duplicate files.

    Used files that are unchanged according to size and modification time are not opened. For new files the footer is
    read; with windows by time also the timestamp column, but only in row groups that may span several windows according
    to the footer.

    Raises:
        ConfigError: Windows are by time, and the schema has no timestamp, or a different unit than the log.
        DataError: A file is damaged, or lacks the timestamp.
    """
    return list(_read_log(files, schema, cursor, config).infos)


def _read_log(files: Iterable[LogFile], schema: Schema, cursor: Cursor, config: WindowConfig) -> Recognized:
    every_us = None if config.every_s is None else config.every_s * US_PER_S
    if every_us is not None and schema.timestamp is None:
        raise ConfigError("window.kind: given time, but the schema has no timestamp column")
    files = list(files)
    with ThreadPoolExecutor(NUM_CONNECTIONS if any("://" in file.path for file in files) else 1) as pool:
        read = dict(zip(files, pool.map(partial(_read_info, cursor=cursor), files), strict=True))
        log = recognize((info for info, _ in read.values()), cursor, config.merged)
        if every_us is None or schema.timestamp is None:
            return log
        footers = [read[info.file][1] for info in log.infos]
        count = partial(_with_times, clock=schema.timestamp, cursor=log.cursor, every_us=every_us)
        infos = tuple(pool.map(count, log.infos, footers))
        if not log.cursor.files:
            check_log_unit([footer for footer in footers if footer is not None], schema.timestamp)
        return replace(log, infos=infos)


def _read_info(file: LogFile, *, cursor: Cursor) -> tuple[FileInfo, Footer | None]:
    """A file's metadata, and its footer unless the file is used and unchanged."""
    use = cursor.files.get(file.name)
    if use is not None and use.is_done and _is_untouched(file, use):
        return FileInfo(file, use.num_rows, use.fingerprint), None
    footer = read_footer(file)
    return FileInfo(file, footer.num_rows, footer.fingerprint), footer


def _with_times(
    info: FileInfo, footer: Footer | None, *, clock: TimestampColumn, cursor: Cursor, every_us: int
) -> FileInfo:
    """Add the times of unused rows to a file's metadata."""
    file, use = info.file, cursor.files.get(info.file.name)
    if footer is None or (use is not None and use.is_done):
        return info
    if clock.name not in footer.schema.names:
        there = shorten_list(footer.schema.names)
        raise DataError(f"{file.path}: no column {clock.name}, which windows by time need; the file has {there}")
    slots, untimed = _find_slots(footer, clock, every_us, use)
    return replace(info, time_slots=slots, untimed_groups=untimed)


def _is_untouched(file: LogFile, use: FileUse) -> bool:
    return bool(file.version) and (file.size_bytes, file.version) == (use.size_bytes, use.version)


def _find_slots(
    footer: Footer, clock: TimestampColumn, every_us: int, use: FileUse | None
) -> tuple[tuple[TimeSlot, ...], tuple[int, ...]]:
    """Time slots of unused rows, in order, and row groups with rows whose time is unreadable."""
    found: dict[int, TimeSlot] = {}
    untimed = []
    for row_group in range(footer.metadata.num_row_groups):
        bounds = time_bounds(footer, row_group, clock)
        if bounds is not None and bounds[0] // every_us == bounds[1] // every_us and _are_unused(bounds, use):
            slots, counts = np.array([bounds[0] // every_us]), np.array([footer.group_rows(row_group)])
            latest = np.array([bounds[1]])
        else:
            times = _read_times(footer, row_group, clock)
            if len(times) < footer.group_rows(row_group):
                untimed.append(row_group)
            times = np.sort(times[_unused(times, use)])
            if not len(times):
                continue
            slots, starts, counts = np.unique(times // every_us, return_index=True, return_counts=True)
            latest = times[starts + counts - 1]
        for slot, last_us, num_rows in zip(slots.tolist(), latest.tolist(), counts.tolist(), strict=True):
            before = found.get(slot, TimeSlot(slot * every_us, last_us, 0, ()))
            found[slot] = TimeSlot(
                slot * every_us,
                max(before.last_us, last_us),
                before.num_rows + num_rows,
                (*before.row_groups, row_group),
            )
    return tuple(found[slot] for slot in sorted(found)), tuple(untimed)


def _unused(times: npt.NDArray[np.int64], use: FileUse | None) -> npt.NDArray[np.bool_]:
    """Mask of unused times of a file."""
    unused = np.ones(len(times), dtype=np.bool_)
    if use is not None and use.used_until_us is not None:
        unused &= times >= use.used_until_us
    if use is not None and use.plausible_us is not None:
        unused &= (times >= use.plausible_us[0]) & (times < use.plausible_us[1])
    return unused


def _are_unused(bounds: tuple[int, int], use: FileUse | None) -> bool:
    return bool(_unused(np.array(bounds, dtype=np.int64), use).all())


def _read_times(footer: Footer, row_group: int, clock: TimestampColumn) -> npt.NDArray[np.int64]:
    """Read the valid times of a row group, in microseconds."""
    found = [np.zeros(0, dtype=np.int64)]
    with open_parquet(footer) as parquet:
        for batch in iter_plain(footer, parquet, row_group, [clock.name], BATCH_ROWS):
            ticks, _ = cast_times(batch.column(0), clock.unit)
            found.append(to_time_us(ticks.drop_null(), clock.unit))
    return np.concatenate(found)
