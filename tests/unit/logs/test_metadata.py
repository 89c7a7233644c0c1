"""From a folder of files to windows: what is new is found, used files are not opened, every row is read once."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs import metadata
from headrace.logs.checks import BadRowPolicy
from headrace.logs.cursor import Cursor
from headrace.logs.files import list_files
from headrace.logs.footer_checks import seal_footer
from headrace.logs.metadata import find_windows, read_infos
from headrace.logs.parquet_source import ParquetSource
from headrace.logs.plausible_times import time_text
from headrace.logs.schema import Schema
from headrace.logs.source import REJECT_SCHEMA, ROW_ID
from headrace.logs.windows import WindowConfig

SCHEMA = Schema.from_dict({"labels": ["click"], "timestamp": {"name": "time", "unit": "s"}}, where="schema")
HOURS = WindowConfig(kind="time", every_s=100)


def write(path: Path, times: list[Any], kind: pa.DataType | None = None, group: int = 3, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    table = pa.table({"click": pa.array([0] * len(times)), "time": pa.array(times, kind or pa.int64())})
    pq.write_table(table, path, row_group_size=group, **options)


def use(folder: Path, cursor: Cursor, config: WindowConfig, used: Counter[int], **options: Any) -> Cursor:
    """Read the next windows as a trainer would, and count the rows."""
    for window in find_windows(folder, SCHEMA, cursor, config, **options).windows:
        source = ParquetSource(window.selections, SCHEMA, policy=BadRowPolicy(policy="quarantine"))
        num_read = 0
        for split in range(len(source)):
            for batch in source.read(split):
                num_read += batch.num_read
                used.update(batch.rows.column(ROW_ID).to_pylist())
                if batch.rejects is not None:
                    used.update(json.loads(raw)[ROW_ID] for raw in batch.rejects.column("raw").to_pylist())
        assert num_read == window.num_rows
        cursor = Cursor.from_dict(json.loads(json.dumps(window.cursor_after.to_dict())))
    return cursor


@pytest.mark.parametrize(
    "config",
    [
        WindowConfig(),
        WindowConfig(kind="file"),
        WindowConfig(kind="rows", num_rows=4, include_incomplete=True),
        WindowConfig(kind="time", every_s=100, include_incomplete=True),
    ],
    ids=lambda config: config.kind,
)
def test_every_row_of_a_growing_log_is_read_once_by_any_kind_of_window(tmp_path: Path, config: WindowConfig) -> None:
    used: Counter[int] = Counter()
    write(tmp_path / "hour=1/a.parquet", [5, 110, 120, None, 250, 99, 205])
    cursor = use(tmp_path, Cursor(), config, used, limit=1)
    write(tmp_path / "hour=2/a.parquet", [260, 10, 350])
    cursor = use(tmp_path, cursor, config, used)
    write(tmp_path / "hour=1/b.parquet", ["1970-01-01T00:00:07", "tomorrow", "1970-01-01 00:09:00Z", ""], pa.string())
    cursor = use(tmp_path, cursor, config, used)
    assert len(used) == 14
    assert set(used.values()) == {1}
    again = find_windows(tmp_path, SCHEMA, cursor, config)
    assert (again.windows, again.rest) == ((), "nothing new: all rows of 3 files are used")


@pytest.mark.parametrize(
    "kind", [pa.int32(), pa.timestamp("s"), pa.timestamp("ms", "UTC"), pa.timestamp("ns"), pa.float64(), pa.string()]
)
def test_times_are_understood_however_they_are_stored(tmp_path: Path, kind: pa.DataType) -> None:
    factor = {"timestamp[ms, tz=UTC]": 1000, "timestamp[ns]": 10**9}.get(str(kind), 1)
    times = [str(t) if kind == pa.string() else t * factor for t in (120, 130, 199, 210, 399, 400)]
    write(tmp_path / "a.parquet", times, kind)
    (info,) = read_infos(list_files(tmp_path), SCHEMA, Cursor(), HOURS)
    second = 1_000_000
    assert info.time_slots == (
        (100 * second, 199 * second, 3, (0,)),
        (200 * second, 210 * second, 1, (1,)),
        (300 * second, 399 * second, 1, (1,)),
        (400 * second, 400 * second, 1, (1,)),
    )


def test_times_are_not_read_where_the_footer_tells_the_window(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3, 98, 99, 101, 150, 160, 170])
    seal_footer(tmp_path / "a.parquet")  # only a footer with a digest is believed
    read: list[int] = []
    read_times = metadata._read_times

    def spy(footer: Any, row_group: int, clock: Any) -> Any:
        read.append(row_group)
        return read_times(footer, row_group, clock)

    monkeypatch.setattr(metadata, "_read_times", spy)
    (info,) = read_infos(list_files(tmp_path), SCHEMA, Cursor(), HOURS)
    assert info.time_slots == ((0, 99_000_000, 5, (0, 1)), (100_000_000, 170_000_000, 4, (1, 2)))
    assert read == [1]


def test_only_unused_rows_are_counted_after_windows_change_their_size(tmp_path: Path) -> None:
    used: Counter[int] = Counter()
    write(tmp_path / "a.parquet", [50, 99, 150, 301, 599])
    cursor = use(tmp_path, Cursor(), HOURS, used, limit=1)
    assert sum(used.values()) == 2
    cursor = use(tmp_path, cursor, WindowConfig(kind="time", every_s=300, include_incomplete=True), used)
    assert sorted(used.values()) == [1] * 5


@pytest.mark.parametrize("options", [{"coerce_timestamps": "ms"}, {"use_deprecated_int96_timestamps": True}])
def test_times_are_right_however_parquet_keeps_them(tmp_path: Path, options: dict[str, Any]) -> None:
    write(tmp_path / "a.parquet", [120 * 10**9, 399 * 10**9], pa.timestamp("ns"), **options)
    (info,) = read_infos(list_files(tmp_path), SCHEMA, Cursor(), HOURS)
    assert info.time_slots == ((100_000_000, 120_000_000, 1, (0,)), (300_000_000, 399_000_000, 1, (0,)))


def test_statistics_are_not_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3, 98, 99, 101], write_statistics=False)
    (info,) = read_infos(list_files(tmp_path), SCHEMA, Cursor(), HOURS)
    assert info.time_slots == ((0, 99_000_000, 5, (0, 1)), (100_000_000, 101_000_000, 1, (1,)))


START = 1_704_067_200  # 2024-01-01
IN_2100 = 4_102_444_800
HOURLY = WindowConfig(kind="time", every_s=3600)
FAR = "far outside the log's"


def train(folder: Path, cursor: Cursor, config: WindowConfig = HOURLY) -> tuple[Cursor, dict[str, list[int]], pa.Table]:
    """The good rows of each new window by their times, and the rejects, as a job that does not read the times sees."""
    good: dict[str, list[int]] = {}
    rejects = []
    for window in find_windows(folder, SCHEMA, cursor, config).windows:
        policy = BadRowPolicy(policy="quarantine")
        source = ParquetSource(window.selections, SCHEMA, columns=["click"], policy=policy)
        batches = [batch for split in range(len(source)) for batch in source.read(split)]
        assert sum(batch.num_read for batch in batches) == window.num_rows
        good[window.name] = [click for batch in batches for click in batch.rows.column("click").to_pylist()]
        rejects += [batch.rejects for batch in batches if batch.rejects is not None]
        cursor = Cursor.from_dict(json.loads(json.dumps(window.cursor_after.to_dict())))
    return cursor, good, pa.Table.from_batches(rejects, REJECT_SCHEMA)


@pytest.mark.parametrize("outlier", [IN_2100, 0, START - 400 * 86_400], ids=["2100", "1970", "last year"])
@pytest.mark.parametrize("place", [0, 4, 9])
def test_in_a_log_of_ten_rows_one_outlier_closes_no_window_and_is_bad(tmp_path: Path, outlier: int, place: int) -> None:
    half = [START + 60 * minute for minute in range(10)]
    half[place] = outlier
    write(tmp_path / "a.parquet", half)
    assert train(tmp_path, Cursor())[1] == {}  # half an hour waits for the other half
    write(tmp_path / "b.parquet", [START + 1800 + 60 * minute for minute in range(10)])
    write(tmp_path / "c.parquet", [START + 3600 + minute for minute in range(5)])
    cursor, good, rejects = train(tmp_path, Cursor())
    assert {name: len(rows) for name, rows in good.items()} == {"2024-01-01T00:00:00Z": 19}
    (row,) = rejects.to_pylist()
    assert (Path(row["file"]).name, row["row_group"], row["row"], row["column"]) == (
        "a.parquet",
        place // 3,
        place,
        "time",
    )
    assert row["reason"].startswith(f"time {time_text(outlier * 1_000_000)} is {FAR} 2023-10-")
    assert row["reason"].endswith(" to 2024-03-31T01:00:00Z (window.max_distance_s)")
    write(tmp_path / "d.parquet", [START + 7200])
    cursor, good, rejects = train(tmp_path, cursor)
    assert ({name: len(rows) for name, rows in good.items()}, rejects.num_rows) == ({"2024-01-01T01:00:00Z": 5}, 0)
    write(tmp_path / "e.parquet", [START + 10_800])
    assert list(train(tmp_path, cursor)[1]) == ["2024-01-01T02:00:00Z"]  # and nothing waits for the year 2100


def test_the_last_window_ends_with_the_log_and_not_with_an_outlier(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [START, START + 60, START + 120, IN_2100])
    eager = HOURLY.model_copy(update={"include_incomplete": True})
    cursor, good, rejects = train(tmp_path, Cursor(), eager)
    assert (list(good), rejects.num_rows) == (["2024-01-01T00:00:00Z"], 1)
    assert cursor.used_until_us == (START + 120) * 1_000_000 + 1
    write(tmp_path / "b.parquet", [START + 180, START + 240])
    assert [len(rows) for rows in train(tmp_path, cursor, eager)[1].values()] == [2]


def test_a_file_with_only_an_outlier_is_used_up_with_the_next_window(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [START + 10 * place for place in range(12)])
    write(tmp_path / "b.parquet", [IN_2100])
    write(tmp_path / "c.parquet", [START + 3600])
    cursor, good, rejects = train(tmp_path, Cursor())
    assert ([len(rows) for rows in good.values()], rejects.num_rows) == ([12], 1)
    assert cursor.is_done("b.parquet")


def test_an_outlier_in_a_day_of_hours_is_bad_once_however_windows_are_used(tmp_path: Path) -> None:
    times = [START + 60 * minute for minute in range(24 * 60)]
    times[700] = IN_2100
    write(tmp_path / "a.parquet", times, group=100)
    _, at_once, rejects = train(tmp_path, Cursor())
    assert ([len(rows) for rows in at_once.values()], rejects.num_rows) == ([*[60] * 11, 59, *[60] * 11], 1)
    cursor, one_by_one, bad = Cursor(), [], 0
    for number in range(23):
        (window,) = find_windows(tmp_path, SCHEMA, cursor, HOURLY, limit=1).windows
        source = ParquetSource(window.selections, SCHEMA, policy=BadRowPolicy(policy="quarantine"))
        batches = [batch for split in range(len(source)) for batch in source.read(split)]
        one_by_one.append(sum(batch.rows.num_rows for batch in batches))
        bad += sum(batch.num_quarantined for batch in batches)
        cursor = Cursor.from_dict(json.loads(json.dumps(window.cursor_after.to_dict())))
        if number == 3:  # what arrives meanwhile, or another setting, changes nothing for a file in use
            write(tmp_path / "z.parquet", [IN_2100 + place for place in range(30)])
    assert (one_by_one, bad) == ([*[60] * 11, 59, *[60] * 11], 1 + 30)


def test_a_month_without_logs_is_no_mistake(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [START + place for place in range(1000)], group=500)
    write(tmp_path / "b.parquet", [START + 31 * 86_400 + place for place in range(20)])
    cursor, good, rejects = train(tmp_path, Cursor())
    assert ([len(rows) for rows in good.values()], rejects.num_rows) == ([1000], 0)
    write(tmp_path / "c.parquet", [START + 62 * 86_400 + place for place in range(3)])
    _, good, rejects = train(tmp_path, cursor)
    assert ({name: len(rows) for name, rows in good.items()}, rejects.num_rows) == ({"2024-02-01T00:00:00Z": 20}, 0)


def test_max_distance_may_be_changed_and_switched_off(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [START, START + 60, START + 120, START + 86_400 * 9, START + 86_400 * 9 + 60])
    narrow = HOURLY.model_copy(update={"max_distance_s": 7200, "include_incomplete": True})
    assert train(tmp_path, Cursor(), HOURLY.model_copy(update={"include_incomplete": True}))[2].num_rows == 0
    write(tmp_path / "a.parquet", [START, START + 60, START + 120, START + 180, START + 86_400 * 9])
    assert train(tmp_path, Cursor(), narrow)[2].num_rows == 1
    off = narrow.model_copy(update={"max_distance_s": None})
    assert train(tmp_path, Cursor(), off)[2].num_rows == 0


def test_an_outlier_fails_a_job_that_wants_no_bad_rows_and_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [START, START + 60, START + 120, START + 3600, IN_2100])
    (window,) = find_windows(tmp_path, SCHEMA, Cursor(), HOURLY).windows
    source = ParquetSource(window.selections, SCHEMA, columns=["click"])
    with pytest.raises(
        DataError, match=r"a\.parquet, row group 1, row 4, column time: time 2100-01-01T00:00:00Z is far"
    ):
        [list(source.read(split)) for split in range(len(source))]


def test_times_that_cannot_be_read_are_bad_also_where_the_column_is_not_read(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", ["2024-01-01", "soon", None, "2024-01-01T01:00:00"], pa.string())
    _, good, rejects = train(tmp_path, Cursor())
    assert ([len(rows) for rows in good.values()], rejects.column("reason").to_pylist()) == ([1], ["not a time"] * 2)


def test_row_groups_outside_a_window_are_skipped_without_statistics(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3, 110, None, 130, 7, 8, 9, 210, 220, 230], write_statistics=False)
    windows = find_windows(tmp_path, SCHEMA, Cursor(), HOURS).windows
    assert [window.selections[0].row_groups for window in windows] == [(0, 1, 2), (1,)]
    source = ParquetSource(windows[1].selections, SCHEMA, policy=BadRowPolicy(policy="drop"))
    assert [source.describe(split)[-1] for split in range(len(source))] == ["1"]


@pytest.mark.parametrize(("unit", "given", "expected"), [("ms", "1970-01-20", "s"), ("us", "1970-01-01", "s")])
def test_a_log_in_another_unit_than_the_schema_says_is_refused(
    tmp_path: Path, unit: str, given: str, expected: str
) -> None:
    wrong = Schema.from_dict({"labels": ["click"], "timestamp": {"name": "time", "unit": unit}}, where="schema")
    write(tmp_path / "a.parquet", [START + place for place in range(20)] + [0, IN_2100])
    with pytest.raises(
        ConfigError, match=f"unit: given {unit}, .* would be {given}T.*; expected {expected}, with which"
    ):
        find_windows(tmp_path, wrong, Cursor(), HOURLY)


def test_timestamps_carry_their_unit_whatever_the_schema_says(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", list(range(20)), pa.timestamp("s"))
    assert len(find_windows(tmp_path, SCHEMA, Cursor(), HOURS).infos) == 1


def test_used_files_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [1])
    cursor = use(tmp_path, Cursor(), WindowConfig(), Counter())
    write(tmp_path / "b.parquet", [2])
    opened: list[str] = []
    read_footer = metadata.read_footer
    monkeypatch.setattr(metadata, "read_footer", lambda file: opened.append(file.name) or read_footer(file))
    assert [w.name for w in find_windows(tmp_path, SCHEMA, cursor, WindowConfig()).windows] == ["top-folder+late1"]
    assert opened == ["b.parquet"]
    # A copy of the whole log elsewhere is still the same log, though each file is newer.
    (tmp_path / "a.parquet").touch()
    assert len(find_windows(tmp_path, SCHEMA, cursor, WindowConfig()).windows) == 1
    assert opened == ["b.parquet", "a.parquet", "b.parquet"]


def test_a_used_file_with_other_rows_of_the_same_size_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [11, 12, 13], compression="none")
    size = (tmp_path / "a.parquet").stat().st_size
    cursor = use(tmp_path, Cursor(), WindowConfig(), Counter())
    write(tmp_path / "a.parquet", [11, 12, 14], compression="none")
    assert (tmp_path / "a.parquet").stat().st_size == size
    with pytest.raises(DataError, match=r"a\.parquet: changed since 3 of its rows were used"):
        find_windows(tmp_path, SCHEMA, cursor, WindowConfig())


def test_windows_by_time_need_a_timestamp(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1])
    timeless = Schema.from_dict({"labels": ["click"]}, where="schema")
    with pytest.raises(ConfigError, match="given time, but the schema has no timestamp column"):
        find_windows(tmp_path, timeless, Cursor(), HOURS)
    pq.write_table(pa.table({"click": [1]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"no column time, which windows by time need; the file has click"):
        find_windows(tmp_path, SCHEMA, Cursor(), HOURS)
