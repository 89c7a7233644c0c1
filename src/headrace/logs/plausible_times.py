"""Which times of a log are plausible: those near what most rows say, so that one wrong clock decides nothing."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import accumulate

from headrace.logs.cursor import FileInfo, TimeSlot, TimeSpan

__all__ = ["US_PER_S", "leave_out_far", "plausible_times", "time_text"]

MIN_ROWS = 10
"""Rows of a file that can speak for themselves; files with fewer are taken together."""

REACH = 10
"""How many times the length of the middle half the tails may be long: public logs that grew over decades have 6."""

BELIEF = 10
"""A file most rows of which are this many times farther away than a single row may be is one with a wrong clock."""

US_PER_S = 1_000_000


def plausible_times(
    files: Iterable[FileInfo], used: TimeSpan | None, *, every_us: int, max_distance_us: int
) -> TimeSpan | None:
    """The times that rows of new files may have: from the first up to, but without, the second.

    Most rows of a file are right, so its middle half (from the first to the third quartile) tells where the file lies.
    Times may be `max_distance_us` before or after it, or ten times its length for logs of years. What is plausible for
    one file, or near the rows used before, is plausible for all. A file whose middle half lies ten times that far from
    the rest of the log has no say.

    Args:
        files: Files of which no row has been used.
        used: First and last time of the rows used before; None for none.
        every_us: Length of a time slot.
        max_distance_us: See above.

    Returns:
        Multiples of `every_us`; None if no row of the files has a time.
    """
    counts = [slots for info in files if (slots := info.time_slots)]
    if not counts:
        return None
    everything = [slot for slots in counts for slot in slots]
    log = _middle(everything) if used is None else used
    reach = REACH * (log[1] - log[0]) if used is None else 0  # what was used has its tails already
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
    """A file of which only the rows with plausible times have a time; the others count as rows without one."""
    kept = tuple(slot for slot in info.time_slots if plausible[0] <= slot.start_us < plausible[1])
    if len(kept) == len(info.time_slots):
        return info
    far = {group for slot in info.time_slots if slot not in kept for group in slot.row_groups}
    return replace(info, time_slots=kept, untimed_groups=tuple(sorted(far.union(info.untimed_groups))))


def time_text(time_us: int) -> str:
    """A time as ISO 8601 text in UTC, without microseconds where there are none."""
    try:
        return f"{(datetime(1970, 1, 1) + timedelta(microseconds=time_us)).isoformat()}Z"
    except OverflowError:  # a time that no calendar has
        return f"{time_us // US_PER_S} s since 1970"


def _middle(slots: Sequence[TimeSlot]) -> TimeSpan:
    """Starts of the slots that hold the first and the third quartile of the rows; the outer ones of one or two rows."""
    ordered = sorted(slots)
    until = list(accumulate(slot.num_rows for slot in ordered))
    last = until[-1] - 1
    first_row, last_row = (-(-last // 4), 3 * last // 4) if last > 1 else (0, last)
    return ordered[bisect_right(until, first_row)].start_us, ordered[bisect_right(until, last_row)].start_us


def _around(times: TimeSpan, distance_us: int, every_us: int) -> TimeSpan:
    """Times up to a distance away, in whole slots."""
    return (times[0] - distance_us) // every_us * every_us, -(-(times[1] + distance_us + 1) // every_us) * every_us


def _num_rows(slots: Iterable[TimeSlot]) -> int:
    return sum(slot.num_rows for slot in slots)
