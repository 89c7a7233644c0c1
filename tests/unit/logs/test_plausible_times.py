"""Which times of a log are plausible: one wrong clock decides nothing, a long pause or a long history is no mistake."""

from collections import Counter
from collections.abc import Sequence

import pytest

from headrace.logs.cursor import FileInfo, TimeSlot
from headrace.logs.files import LogFile
from headrace.logs.plausible_times import leave_out_far, plausible_times, time_text

HOUR, DAY = 3600, 86_400
US = 1_000_000
START = 1_704_067_200  # 2024-01-01
IN_2100, IN_1970 = 4_102_444_800, 0


def timed(name: str, times_s: Sequence[int]) -> FileInfo:
    counts = Counter(time // HOUR for time in times_s)
    slots = tuple(TimeSlot(slot * HOUR * US, slot * HOUR * US, rows, (0,)) for slot, rows in sorted(counts.items()))
    return FileInfo(LogFile(f"/logs/{name}", 1, name=name), len(times_s), name, slots)


def plausible(files: Sequence[FileInfo], used_s: tuple[int, int] | None = None) -> tuple[int, int]:
    used = None if used_s is None else (used_s[0] * US, used_s[1] * US)
    found = plausible_times(files, used, every_us=HOUR * US, max_distance_us=90 * DAY * US)
    assert found is not None
    return found[0] // US, found[1] // US


def holds(span: tuple[int, int], *times_s: int) -> list[bool]:
    return [span[0] <= time < span[1] for time in times_s]


@pytest.mark.parametrize("num_rows", [3, 10, 1000])
@pytest.mark.parametrize("outlier", [IN_2100, IN_1970, START + 400 * DAY])
def test_one_outlier_is_far_in_small_and_large_files(num_rows: int, outlier: int) -> None:
    times = [START + place * 60 for place in range(num_rows - 1)]
    span = plausible([timed("a", [*times, outlier])])
    assert holds(span, *times) == [True] * len(times)
    assert holds(span, outlier) == [False]


def test_outliers_on_both_sides_of_ten_rows_are_far() -> None:
    times = [START + place for place in range(6)]
    assert holds(plausible([timed("a", [*times, IN_2100, IN_2100, IN_1970, 1])]), IN_1970, START, IN_2100) == [
        False,
        True,
        False,
    ]


def test_plausible_times_reach_ninety_days_beyond_the_middle_half_in_whole_slots() -> None:
    day = [START + place * 60 for place in range(24 * 60)]  # its middle half: the hours 6 to 17
    start, stop = plausible([timed("a", day)])
    assert (start, stop) == (START + 6 * HOUR - 90 * DAY, START + 18 * HOUR + 90 * DAY)


def test_clocks_that_run_days_late_or_ahead_are_plausible() -> None:
    day = [START + place * 60 for place in range(24 * 60)]
    drifted = [START - 40 * DAY, START - 3 * DAY, START + 2 * DAY, START + 30 * DAY]
    assert holds(plausible([timed("a", [*day, *drifted])]), *drifted) == [True] * 4


@pytest.mark.parametrize("num_days", [31, 180, 700])
def test_new_files_after_a_long_pause_are_plausible(num_days: int) -> None:
    used = (START, START + DAY)
    later = [START + num_days * DAY + place for place in range(20)]
    span = plausible([timed("b", [*later, IN_2100])], used)
    assert holds(span, START, *later, IN_2100) == [True] * 21 + [False]
    # So are both at once, and both in one file.
    before = [START + place for place in range(500)]
    assert holds(plausible([timed("a", before), timed("b", later)]), START, *later) == [True] * 21


def test_a_pause_of_a_month_within_a_file_is_plausible() -> None:
    times = [*(START + place for place in range(500)), *(START + 31 * DAY + place for place in range(20))]
    assert holds(plausible([timed("a", times)]), *times) == [True] * len(times)


@pytest.mark.parametrize("num_rows", [1, 5, 40])
def test_a_file_of_nothing_but_outliers_has_no_say(num_rows: int) -> None:
    good = timed("a", [START + place for place in range(500)])
    wrong = timed("b", [IN_2100 + place for place in range(num_rows)])
    assert holds(plausible([good, wrong]), START, IN_2100) == [True, False]
    assert holds(plausible([wrong], (START, START + HOUR)), START, IN_2100) == [True, False]


def test_files_of_a_row_each_are_judged_together() -> None:
    files = [timed(f"{place}", [START + place * HOUR]) for place in range(30)]
    span = plausible([*files, timed("x", [IN_2100]), timed("y", [IN_1970])])
    assert holds(span, IN_1970, START, START + 29 * HOUR, IN_2100) == [False, True, True, False]


def test_a_file_of_many_years_is_plausible_as_a_whole() -> None:
    years = [START - place * place * DAY for place in range(90)]  # ever more rows, over 22 years
    assert holds(plausible([timed("a", years)]), *years) == [True] * 90


def test_daily_files_of_many_years_are_plausible_and_an_outlier_among_them_is_not() -> None:
    files = [timed(f"{year}", [START - year * 365 * DAY + place for place in range(20)]) for year in range(8)]
    span = plausible([*files, timed("x", [START, IN_2100])])
    assert holds(span, START - 7 * 365 * DAY, START, IN_2100) == [True, True, False]


def test_far_rows_count_as_rows_without_a_time() -> None:
    info = timed("a", [*(START + place for place in range(9)), IN_2100])
    span = (START * US, START * US + DAY * US)
    kept = leave_out_far(info, span)
    assert (sum(slot.num_rows for slot in kept.time_slots), kept.num_rows, kept.untimed_groups) == (9, 10, (0,))
    assert leave_out_far(kept, span) is kept


def test_times_that_no_calendar_has_are_written_as_seconds() -> None:
    assert time_text(START * US + 500_000) == "2024-01-01T00:00:00.500000Z"
    assert time_text(10**18) == "1000000000000 s since 1970"
