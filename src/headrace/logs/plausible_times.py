"""Determines the plausible times of a log from the majority of rows, so that wrong clocks have no effect."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import accumulate

from headrace.logs.cursor import FileInfo, TimeSlot, TimeSpan

__all__ = ["US_PER_S", "leave_out_far", "plausible_times", "time_text"]

MIN_ROWS = 10
"""Minimum rows of a file to be evaluated by itself; smaller files are combined."""

REACH = 10
"""Maximum length of the tails, as a multiple of the middle half; public logs that grew over decades have 6."""

BELIEF = 10
"""A file has a wrong clock if most of its rows are farther away than this multiple of the distance allowed for a
row."""

US_PER_S = 1_000_000


def plausible_times(
    files: Iterable[FileInfo], used: TimeSpan | None, *, every_us: int, max_distance_us: int
) -> TimeSpan | None:
    """The range of plausible times for rows of new files: start (inclusive) and stop (exclusive).

    Most rows of a file have correct times, so its middle half (from the first to the third quartile) locates the file.
    Times may be `max_distance_us` before or after it, or ten times its length for logs of years. Times that are
    plausible for one file, or near previously used rows, are plausible for all. A file whose middle half is ten times
    that far from the rest of the log is ignored.

    Args:
        files: Files without used rows.
        used: First and last time of previously used rows, or None.
        every_us: Length of a time slot.
        max_distance_us: See above.

    Returns:
        Multiples of `every_us`; None if no row has a time.
    """
    counts = [slots for info in files if (slots := info.time_slots)]
    if not counts:
        return None
    everything = [slot for slots in counts for slot in slots]
    log = _middle(everything) if used is None else used
    reach = REACH * (log[1] - log[0]) if used is None else 0  # used rows include the tails already
    believed = _around(log, max(BELIEF * max_distance_us, reach), every_us)
    many = [slots for slots in counts if _num_rows(slots) >= MIN_ROWS]
    few = [slot for slots in counts if _num_rows(slots) < MIN_ROWS for slot in slots]
    speakers = [*many, *([few] if _num_rows(few) >= MIN_ROWS else [])]
    middles = [middle for middle in map(_middle, speakers) if believed[0] <= middle[0] and middle[1] < believed[1]]
    spans = [_around(m, max(max_distance_us, REACH * (m[1] - m[0])), every_us) for m in middles]
    if used is not None:
        spans.append(_around(used, max_distance_us, every_us))
    if not spans:
        spans.append(_around(log, max(max_distance_us, reach), every_us))
    return min(start for start, _ in spans), max(stop for _, stop in spans)


def leave_out_far(info: FileInfo, plausible: TimeSpan) -> FileInfo:
    """Remove implausible times from a file's metadata; their rows count as rows without a time."""
    kept = tuple(slot for slot in info.time_slots if plausible[0] <= slot.start_us < plausible[1])
    if len(kept) == len(info.time_slots):
        return info
    far = {group for slot in info.time_slots if slot not in kept for group in slot.row_groups}
    return replace(info, time_slots=kept, untimed_groups=tuple(sorted(far.union(info.untimed_groups))))


def time_text(time_us: int) -> str:
    """Format a time as ISO 8601 in UTC, without zero microseconds."""
    try:
        return f"{(datetime(1970, 1, 1) + timedelta(microseconds=time_us)).isoformat()}Z"
    except OverflowError:  # outside the calendar's range
        return f"{time_us // US_PER_S} s since 1970"


def _middle(slots: Sequence[TimeSlot]) -> TimeSpan:
    """Starts of the slots with the first and third quartiles of the rows; the outermost slots for one or two rows."""
    ordered = sorted(slots)
    until = list(accumulate(slot.num_rows for slot in ordered))
    last = until[-1] - 1
    first_row, last_row = (-(-last // 4), 3 * last // 4) if last > 1 else (0, last)
    return ordered[bisect_right(until, first_row)].start_us, ordered[bisect_right(until, last_row)].start_us


def _around(times: TimeSpan, distance_us: int, every_us: int) -> TimeSpan:
    """Extend a time range by a distance, to whole slots."""
    return (times[0] - distance_us) // every_us * every_us, -(-(times[1] + distance_us + 1) // every_us) * every_us


def _num_rows(slots: Iterable[TimeSlot]) -> int:
    return sum(slot.num_rows for slot in slots)
