"""Planning windows: whatever arrives in whatever order, every row is used exactly once, and never a row too early."""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import CheckpointError, ConfigError, DataError, VersionMismatch
from headrace.logs.cursor import Cursor, FileInfo, FileUse, Selection, TimeSlot, Window
from headrace.logs.files import LogFile
from headrace.logs.windows import WindowConfig, describe_rest, parse_time_us, plan_windows

US = 1_000_000
GROUP_ROWS = 4
FOLDERS, FILES = WindowConfig(), WindowConfig(kind="file")
ROWS = WindowConfig(kind="rows", num_rows=10)
TIME = WindowConfig(kind="time", every_s=100)


def info(name: str, num_rows: int) -> FileInfo:
    return FileInfo(LogFile(f"/logs/{name}", num_rows * 8, name=name), num_rows, f"print-{num_rows}")


def timed(name: str, times_s: Sequence[int | None], cursor: Cursor, every_s: int = 100) -> FileInfo:
    """What reading the footer and the times of a file would give."""
    use = cursor.files.get(name)
    slots: dict[int, list[tuple[int, int]]] = {}
    for row, time_s in enumerate(times_s):
        if time_s is not None and is_unused(time_s * US, use):
            slots.setdefault(time_s // every_s, []).append((time_s * US, row // GROUP_ROWS))
    found = [
        TimeSlot(
            slot * every_s * US, max(time for time, _ in rows), len(rows), tuple(sorted({group for _, group in rows}))
        )
        for slot, rows in sorted(slots.items())
    ]
    untimed = {row // GROUP_ROWS for row, time_s in enumerate(times_s) if time_s is None}
    return replace(info(name, len(times_s)), time_slots=tuple(found), untimed_groups=tuple(sorted(untimed)))


def is_unused(time_us: int, use: FileUse | None) -> bool:
    if use is None:
        return True
    start, stop = use.plausible_us or (time_us, time_us + 1)
    return start <= time_us < stop and (use.used_until_us is None or time_us >= use.used_until_us)


def shape(windows: Iterable[Window]) -> dict[str, list[tuple[str, int, int]]]:
    return {w.name: [(s.file.name, s.start_row, s.stop_row) for s in w.selections] for w in windows}


def after(windows: Sequence[Window]) -> Cursor:
    return Cursor.from_dict(json.loads(json.dumps(windows[-1].cursor_after.to_dict())))


def test_each_folder_is_a_window_in_natural_order() -> None:
    infos = [info("hour=10/a", 3), info("hour=9/b", 2), info("hour=9/a", 1), info("root", 1)]
    windows = plan_windows(infos, Cursor(), FOLDERS)
    assert shape(windows) == {
        "top-folder": [("root", 0, 1)],
        "hour=9": [("hour=9/a", 0, 1), ("hour=9/b", 0, 2)],
        "hour=10": [("hour=10/a", 0, 3)],
    }
    assert [s.file_number for w in windows for s in w.selections] == [0, 1, 2, 3]
    assert plan_windows(infos, after(windows), FOLDERS) == []
    assert describe_rest(infos, after(windows), FOLDERS) == "nothing new: all rows of 4 files are used"


def test_a_file_that_arrives_in_a_used_folder_is_a_late_window_of_its_own() -> None:
    infos = [info("hour=1/a", 3), info("hour=2/a", 3)]
    cursor = after(plan_windows(infos, Cursor(), FOLDERS))
    infos.append(info("hour=1/b", 2))
    windows = plan_windows(infos, cursor, FOLDERS)
    assert shape(windows) == {"hour=1+late1": [("hour=1/b", 0, 2)]}
    assert windows[0].selections[0].file_number == 2
    infos.append(info("hour=1/c", 2))
    assert list(shape(plan_windows(infos, after(windows), FOLDERS))) == ["hour=1+late2"]


def test_each_file_is_a_window_and_empty_files_are_none() -> None:
    windows = plan_windows([info("b", 1), info("a", 2), info("empty", 0)], Cursor(), FILES)
    assert shape(windows) == {"a": [("a", 0, 2)], "b": [("b", 0, 1)]}


def test_windows_of_rows_cross_files_and_the_last_waits_until_it_is_full() -> None:
    infos = [info("a", 7), info("b", 25)]
    windows = plan_windows(infos, Cursor(), ROWS)
    assert shape(windows) == {
        "rows-0-10": [("a", 0, 7), ("b", 0, 3)],
        "rows-10-20": [("b", 3, 13)],
        "rows-20-30": [("b", 13, 23)],
    }
    cursor = after(windows)
    assert plan_windows(infos, cursor, ROWS) == []
    assert describe_rest(infos, cursor, ROWS).startswith(
        "2 rows in 1 file are not used: a window waits until there are 10"
    )
    # A file that sorts earlier does not overtake one already begun.
    infos.append(info("0", 8))
    assert shape(plan_windows(infos, cursor, ROWS)) == {"rows-30-40": [("b", 23, 25), ("0", 0, 8)]}


def test_an_incomplete_window_is_used_only_when_asked_for() -> None:
    config = ROWS.model_copy(update={"include_incomplete": True})
    assert shape(plan_windows([info("a", 12)], Cursor(), config)) == {
        "rows-0-10": [("a", 0, 10)],
        "rows-10-12": [("a", 10, 12)],
    }


@pytest.mark.parametrize("ahead", [[700], [700, 700], [700, 800], [900, 5_000]])
def test_one_or_two_clocks_that_are_ahead_end_no_small_window_and_get_none(ahead: list[int]) -> None:
    times: dict[str, list[int | None]] = {"a": [*range(100, 150, 10), *ahead]}
    cursor = Cursor()
    assert plan_windows([timed(n, t, cursor) for n, t in times.items()], cursor, TIME) == []
    times["b"] = [*range(150, 200, 10), 210]  # the other half of the slot, and a row after it
    windows = plan_windows([timed(n, t, cursor) for n, t in times.items()], cursor, TIME)
    assert [(w.name, w.num_rows) for w in windows] == [("1970-01-01T00:01:40Z", 10)]
    cursor = after(windows)
    assert cursor.used_until_us == 200 * US
    times["c"] = [220, 310]
    windows = plan_windows([timed(n, t, cursor) for n, t in times.items()], cursor, TIME)
    assert [(w.name, w.num_rows) for w in windows] == [("1970-01-01T00:03:20Z", 2)]


def test_three_rows_after_a_pause_show_that_time_has_passed() -> None:
    times: list[int | None] = [*range(100, 200, 10), 700, 710, 720]
    windows = plan_windows([timed("a", times, Cursor())], Cursor(), TIME)
    assert [(w.name, w.num_rows) for w in windows] == [("1970-01-01T00:01:40Z", 10)]
    cursor = after(windows)
    infos = [timed("a", times, cursor), timed("b", [730, 801], cursor)]
    assert [w.num_rows for w in plan_windows(infos, cursor, TIME)] == [4]


def test_windows_of_time_wait_for_a_later_row() -> None:
    times: dict[str, list[int | None]] = {"a": [100, 150, None, 210], "b": [199, 299]}
    cursor = Cursor()
    windows = plan_windows([timed(n, t, cursor) for n, t in times.items()], cursor, TIME)
    assert [(w.name, w.num_rows) for w in windows] == [("1970-01-01T00:01:40Z", 4)]  # the row without a time too
    assert [s.time_range_us for s in windows[0].selections] == [(None, 200 * US), (None, 200 * US)]
    assert [s.file_number for s in windows[0].selections] == [0, 1]
    cursor = after(windows)
    times["c"] = [120, 300]  # 120 is late: it belongs to the next window
    windows = plan_windows([timed(n, t, cursor) for n, t in times.items()], cursor, TIME)
    assert [(w.name, w.num_rows) for w in windows] == [("1970-01-01T00:03:20Z", 3)]
    assert [s.time_range_us for s in windows[0].selections] == [
        (200 * US, 300 * US),
        (200 * US, 300 * US),
        (None, 300 * US),
    ]
    infos = [timed(n, t, after(windows)) for n, t in times.items()]
    assert "until later rows show that it is complete" in describe_rest(infos, after(windows), TIME)


def test_one_row_from_the_future_does_not_end_a_window_that_is_half_there() -> None:
    times: dict[str, list[int | None]] = {"a": [*range(100, 150)] * 4, "b": [199, 4_102_444_800]}
    eager = TIME.model_copy(update={"include_incomplete": True})
    assert plan_windows([timed(n, t, Cursor()) for n, t in times.items()], Cursor(), TIME) == []
    first, *_ = plan_windows([timed(n, t, Cursor()) for n, t in times.items()], Cursor(), eager)
    assert (first.num_rows, first.used_until_us) == (202, 199 * US + 1)  # with the bad row
    times["c"] = [150, 199, 200, 210, 220]
    windows = plan_windows([timed(n, t, Cursor()) for n, t in times.items()], Cursor(), TIME)
    assert (windows[0].name, windows[0].num_rows) == ("1970-01-01T00:01:40Z", 204)


def test_the_second_half_of_an_incomplete_slot_is_not_late() -> None:
    eager = TIME.model_copy(update={"include_incomplete": True})
    cursor = Cursor()
    first = plan_windows([timed("a", [110, 140], cursor)], cursor, eager)
    assert [(w.name, w.used_until_us) for w in first] == [("1970-01-01T00:01:40Z", 140 * US + 1)]
    cursor = after(first)
    late_only = [timed("a", [110, 140], cursor), timed("b", [120], cursor)]
    (late,) = plan_windows(late_only, cursor, eager)
    assert late.used_until_us == cursor.used_until_us
    second = plan_windows([timed("a", [110, 140], cursor), timed("c", [130, 180, 200], cursor)], cursor, TIME)
    assert [(w.num_rows, w.used_until_us) for w in second] == [(2, 200 * US)]


def test_a_file_without_any_readable_time_goes_with_the_next_window() -> None:
    cursor = Cursor()
    infos = [timed("a", [None, None], cursor)]
    assert plan_windows(infos, cursor, TIME) == []
    (window,) = plan_windows([*infos, timed("b", [50, 150], cursor)], cursor, TIME)
    assert [(s.file.name, s.num_rows) for s in window.selections] == [("a", 2), ("b", 1)]
    (alone,) = plan_windows(infos, cursor, TIME.model_copy(update={"include_incomplete": True}))
    assert (alone.name, alone.num_rows, alone.cursor_after.is_done("a")) == ("untimed", 2, True)


def test_a_file_that_changed_after_use_is_refused_with_both_sides() -> None:
    cursor = after(plan_windows([info("a", 7)], Cursor(), FILES))
    with pytest.raises(DataError) as caught:
        plan_windows([info("a", 6)], cursor, FILES)
    assert str(caught.value) == (
        "/logs/a: changed since 7 of its rows were used: it was 56 bytes with 7 rows (fingerprint print-7), "
        "now it is 48 bytes with 6 rows (fingerprint print-6); put new rows into new files"
    )
    same_size = replace(info("a", 7), fingerprint="other")
    with pytest.raises(DataError, match="fingerprint other"):
        plan_windows([same_size], cursor, FILES)


def test_a_used_file_that_is_gone_is_no_error_and_its_number_is_not_given_again() -> None:
    cursor = after(plan_windows([info("a", 7)], Cursor(), FILES))
    (window,) = plan_windows([info("b", 7)], cursor, FILES)
    assert window.selections[0].file_number == 1


def test_limit_and_until() -> None:
    infos = [info(f"hour={h}/a", 10) for h in range(12)]
    assert [w.name for w in plan_windows(infos, Cursor(), FOLDERS, limit=2)] == ["hour=0", "hour=1"]
    assert len(plan_windows(infos, Cursor(), FOLDERS, until="hour=10")) == 11
    assert len(plan_windows(infos, Cursor(), FILES, until="hour=1/a")) == 2
    assert len(plan_windows(infos, Cursor(), ROWS, until="49")) == 4
    cursor = after(plan_windows(infos, Cursor(), ROWS, limit=2))
    assert len(plan_windows(infos, cursor, ROWS, until="49")) == 2
    infos = [timed("a", [0, 100, 200, 300], Cursor())]
    assert len(plan_windows(infos, Cursor(), TIME, until="1970-01-01T00:03:20")) == 2
    with pytest.raises(ConfigError, match="given 'soon', expected a time such as"):
        plan_windows(infos, Cursor(), TIME, until="soon")
    with pytest.raises(ConfigError, match="given 'soon', expected a number of rows"):
        plan_windows(infos, Cursor(), ROWS, until="soon")


def test_windows_by_time_and_by_position_do_not_mix() -> None:
    cursor = after(plan_windows([info("a", 7)], Cursor(), FILES))
    with pytest.raises(ConfigError, match=r"given time \(by time\), but the windows used so far are by position"):
        plan_windows([info("a", 7)], cursor, TIME)
    assert plan_windows([info("a", 7)], cursor, ROWS) == []


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "rows"}, "windows of kind rows need num_rows"),
        ({"kind": "time", "num_rows": 3}, "num_rows is only for windows of kind rows"),
        (
            {"include_incomplete": True},
            "include_incomplete is only for windows of kind rows or time, given kind",
        ),
        (
            {"kind": "rows", "num_rows": 3, "max_distance_s": None},
            "max_distance_s is only for .* kind time, given kind",
        ),
        ({"kind": "day"}, "windows.yaml: kind: given 'day', expected"),
    ],
)
def test_a_wrong_config_is_one_clear_line(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        WindowConfig.from_dict(values, where="windows.yaml")


def test_cursor_and_window_survive_json_and_other_versions_are_refused() -> None:
    infos = [info("x=1/a", 4), timed("b", [1, None, 250], Cursor())]
    infos[0] = replace(infos[0], file=replace(infos[0].file, partition=(("x", "1"),)))
    windows = plan_windows(infos, Cursor(), WindowConfig(kind="time", every_s=7, include_incomplete=True))
    for window in windows:
        again = Window.from_dict(json.loads(json.dumps(window.to_dict())))
        assert (again.name, again.selections, again.num_rows) == (window.name, window.selections, window.num_rows)
        assert (again.cursor_before, again.cursor_after) == (window.cursor_before, window.cursor_after)
        assert Cursor.from_dict(again.cursor_after.to_dict()) == window.cursor_after
    values = windows[0].cursor_after.to_dict()
    with pytest.raises(VersionMismatch, match="saved with version 4, expected 3"):
        Cursor.from_dict({**values, "version": 4})
    with pytest.raises(CheckpointError, match="window cursor: saved values are invalid"):
        Cursor.from_dict({"version": 3})
    with pytest.raises(CheckpointError, match="window: saved values are invalid"):
        Window.from_dict({"name": "x"})


def test_times_of_several_offsets() -> None:
    assert parse_time_us("1970-01-01T02:00:01+02:00") == parse_time_us("1970-01-01T00:00:01") == US


@dataclass
class Log:
    """A log that grows while windows of it are used; counts how often each row was."""

    rows: dict[str, list[int | None]]
    used: Counter[tuple[str, int]]

    def infos(self, cursor: Cursor, config: WindowConfig) -> list[FileInfo]:
        if config.kind == "time":
            assert config.every_s is not None
            return [timed(name, times, cursor, config.every_s) for name, times in self.rows.items()]
        return [info(name, len(times)) for name, times in self.rows.items()]

    def use(self, window: Window) -> None:
        for selection in window.selections:
            rows = selected(selection, self.rows[selection.file.name])
            assert len(rows) == selection.num_rows
            self.used.update((selection.file.name, row) for row in rows)


def selected(selection: Selection, times: Sequence[int | None]) -> list[int]:
    """The rows a reader would give for a selection: the definition that plans must fit."""
    rows = list(range(selection.start_row, selection.stop_row))
    if selection.row_groups is not None:
        rows = [row for row in rows if row // GROUP_ROWS in selection.row_groups]
    if selection.time_range_us is None:
        return rows
    start, stop = selection.time_range_us

    first, last = selection.plausible_us or (None, None)

    def in_range(time: int | None) -> bool:
        if time is None or (first is not None and last is not None and not first <= time * US < last):
            return start is None
        return (start is None or time * US >= start) and (stop is None or time * US < stop)

    return [row for row in rows if in_range(times[row])]


CONFIGS = st.one_of(
    st.just(FOLDERS),
    st.just(FILES),
    st.builds(lambda n: WindowConfig(kind="rows", num_rows=n), st.integers(1, 12)),
    st.builds(lambda n: WindowConfig(kind="time", every_s=n), st.integers(1, 40)),
)
NAMES = st.builds("{}/{}".format, st.integers(0, 3), st.integers(0, 12))
FAR = st.sampled_from([-(10**9), 10**9, 4 * 10**9])
TIMES = st.lists(st.one_of(st.integers(0, 100), st.none(), FAR), max_size=12)
ARRIVALS = st.dictionaries(NAMES, TIMES, max_size=4)
STEPS = st.lists(st.tuples(ARRIVALS, st.integers(0, 4), st.booleans()), max_size=6)


@settings(max_examples=300, deadline=None)
@given(CONFIGS, STEPS, st.booleans())
def test_every_row_is_used_exactly_once_whatever_arrives_when(
    config: WindowConfig, steps: list[tuple[Mapping[str, list[int | None]], int, bool]], resized: bool
) -> None:
    log, cursor, names = Log({}, Counter()), Cursor(), []
    for arrivals, limit, eager in steps:
        for name, times in arrivals.items():
            if name not in cursor.files:  # a file no row of which was used may still be written anew
                log.rows[name] = times
        now = config.model_copy(update={"include_incomplete": eager})
        if resized and config.every_s is not None:
            now = now.model_copy(update={"every_s": config.every_s + limit})
        for window in plan_windows(log.infos(cursor, now), cursor, now, limit=limit):
            log.use(window)
            names.append(window.name)
            assert window.num_rows > 0
            cursor = after([window])
            assert cursor.num_rows_used == sum(log.used.values())
    last = config.model_copy(update={"include_incomplete": True})
    for window in plan_windows(log.infos(cursor, last), cursor, last):
        log.use(window)
        names.append(window.name)
        cursor = window.cursor_after
    everything = {(name, row) for name, times in log.rows.items() for row in range(len(times))}
    assert set(log.used) == everything
    assert set(log.used.values()) <= {1}
    assert len(set(names)) == len(names) == len(cursor.windows)
    numbers = [use.number for use in cursor.files.values()]
    assert len(set(numbers)) == len(numbers)
    assert plan_windows(log.infos(cursor, last), cursor, last) == []
