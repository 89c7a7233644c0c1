"""A column that counts another unit than the schema says, or no unit at all, is refused wherever its rows come in."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError
from headrace.logs import Cursor, ParquetSource, Schema, WindowConfig, find_windows, list_files, select_files
from headrace.logs import time_units as module
from headrace.logs.arrow_source import ArrowSource
from headrace.logs.clustering import cluster_log
from headrace.logs.inspection import inspect_log
from headrace.logs.time_units import check_unit, is_calendar

START, DAY = 1_704_067_200, 86_400  # 2024-01-01
COLUMNS = {"labels": ["click"], "session_id": "session"}


@pytest.mark.parametrize(
    ("unit", "factor", "likely"), [("s", 1000, "ms"), ("ms", 1, "s"), ("ns", 1000, "ms"), ("ms", 10**9, "ns")]
)
def test_a_unit_that_puts_the_log_in_other_centuries_is_refused_with_the_likely_one(
    unit: str, factor: int, likely: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        check_unit([START * factor, (START + DAY) * factor], "time", unit)
    assert str(caught.value).startswith(
        f"schema: timestamp time: unit: given {unit}, but then the log's times, such as "
    )
    assert str(caught.value).endswith(f"; expected {likely}, with which they are 2024-01-01T00:00:00Z")


@pytest.mark.parametrize(("times", "unit"), [((START, START + DAY), "s"), ((0, 10**9), "ms"), ((0, 400), "s")])
def test_times_of_known_years_and_those_that_count_from_zero_are_accepted(times: tuple[int, int], unit: str) -> None:
    check_unit(times, "time", unit)


@pytest.mark.parametrize("digits", ["%Y%m%d", "%Y%m%d%H", "%Y%m%d%H%M", "%Y%m%d%H%M%S", "%Y%m%d%H%M%S123"])
def test_digits_of_dates_count_no_unit(digits: str) -> None:
    numbers = [int((datetime(2024, 1, 30, tzinfo=UTC) + timedelta(hours=hour)).strftime(digits)) for hour in range(99)]
    assert is_calendar(numbers)
    for unit in ("s", "ms", "us", "ns"):
        with pytest.raises(ConfigError, match=rf"such as {numbers[0]}, are digits of dates without a unit; store"):
            check_unit(numbers, "time", unit)


@pytest.mark.parametrize("numbers", [[START], [20240101, 20241301], [20240100], [202401012460], [20240101, 2024010112]])
def test_other_numbers_are_no_digits_of_dates(numbers: list[int]) -> None:
    assert not is_calendar(numbers)


def log_of(folder: Path, times: list[Any], unit: str, **options: Any) -> tuple[Path, Schema]:
    rows = {"click": [row % 2 for row in range(len(times))], "session": [row // 2 for row in range(len(times))]}
    (folder / "log").mkdir()
    pq.write_table(pa.table(rows | {"time": times}), folder / "log/a.parquet", **options)
    return folder / "log", Schema.from_dict(COLUMNS | {"timestamp": {"name": "time", "unit": unit}}, where="test")


def read_files(log: Path, schema: Schema) -> object:
    return ParquetSource(select_files(list_files(log)), schema)


def read_table(log: Path, schema: Schema) -> object:
    return ArrowSource(pq.read_table(log), schema)


def plan_by_time(log: Path, schema: Schema) -> object:
    return find_windows(log, schema, Cursor(), WindowConfig(kind="time", every_s=3600))


def cluster(log: Path, schema: Schema) -> object:
    return cluster_log(str(log), log.parent / "out", schema)


def inspect(log: Path, schema: Schema) -> object:
    return inspect_log(log, schema=schema, num_threads=1)


Door = Callable[[Path, Schema], object]
DOORS: tuple[Door, ...] = (read_files, read_table, plan_by_time, cluster, inspect)


@pytest.mark.parametrize("door", DOORS)
@pytest.mark.parametrize(
    ("times", "unit", "reason"),
    [
        ([20240101000000 + row for row in range(40)], "us", "are digits of dates"),
        ([str(20240101000000 + row) for row in range(40)], "ms", "are digits of dates"),
        ([float(2024010100 + row % 24) for row in range(40)], "s", "are digits of dates"),
        ([*((START + row) * 1000 for row in range(40)), 0, 4_102_444_800], "s", "expected ms, with which"),
    ],
)
def test_one_rule_holds_at_all_doors(tmp_path: Path, door: Door, times: list[Any], unit: str, reason: str) -> None:
    log, schema = log_of(tmp_path, times, unit)
    with pytest.raises(ConfigError, match=f"^schema: timestamp time: .*{reason}"):
        door(log, schema)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("door", DOORS)
def test_times_in_their_unit_are_accepted_at_all_doors_and_read_only_where_statistics_leave_a_doubt(
    tmp_path: Path, door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    sample = module._read_ticks
    monkeypatch.setattr(module, "_read_ticks", lambda *a: read.append("data") or sample(*a))
    door(*log_of(tmp_path, [START + row for row in range(40)], "s"))
    assert read == []
    door(*log_of(tmp_path / "log", [START + row for row in range(39)] + [0], "s"))
    assert read == [] if door is read_table else read


def test_a_log_whose_times_are_not_read_may_hold_anything(tmp_path: Path) -> None:
    log, schema = log_of(tmp_path, [20240101 + row for row in range(20)], "s")
    ParquetSource(select_files(list_files(log)), schema, columns=["click"])
    find_windows(log, schema, Cursor(), WindowConfig())


def test_inspect_guesses_no_timestamp_that_training_would_refuse(tmp_path: Path) -> None:
    log, _ = log_of(tmp_path, [f"{20240101000000 + row}" for row in range(40)], "s")
    found = inspect_log(log, num_threads=1)
    assert found.schema is not None
    assert found.schema.timestamp is None
    (guess,) = [guess for guess in found.guesses if guess.name == "time"]
    assert (guess.part, guess.reason[:28]) == ("ignored", "the log's times, such as 202")
