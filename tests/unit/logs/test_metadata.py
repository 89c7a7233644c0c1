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
from headrace.logs.pieces import ROW_ID
from headrace.logs.schema import Schema
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
        for item in range(len(source)):
            for piece in source.read(item):
                num_read += piece.num_read
                used.update(piece.batch.column(ROW_ID).to_pylist())
                if piece.rejects is not None:
                    used.update(json.loads(raw)[ROW_ID] for raw in piece.rejects.column("raw").to_pylist())
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
    assert info.time_counts == ((100 * second, 3), (200 * second, 1), (300 * second, 1), (400 * second, 1))
    assert info.time_max_us == 400 * second


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
    assert info.time_counts == ((0, 5), (100_000_000, 4))
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
    assert (info.time_counts, info.time_max_us) == (((100_000_000, 1), (300_000_000, 1)), 399_000_000)


def test_statistics_are_not_needed(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", [1, 2, 3, 98, 99, 101], write_statistics=False)
    (info,) = read_infos(list_files(tmp_path), SCHEMA, Cursor(), HOURS)
    assert info.time_counts == ((0, 5), (100_000_000, 1))


def test_used_files_are_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", [1])
    cursor = use(tmp_path, Cursor(), WindowConfig(), Counter())
    write(tmp_path / "b.parquet", [2])
    opened: list[str] = []
    read_footer = metadata.read_footer
    monkeypatch.setattr(metadata, "read_footer", lambda file: opened.append(file.name) or read_footer(file))
    assert [w.name for w in find_windows(tmp_path, SCHEMA, cursor, WindowConfig()).windows] == [".+late1"]
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
    with pytest.raises(DataError, match=r"no column time to cut windows by time; the file has click"):
        find_windows(tmp_path, SCHEMA, Cursor(), HOURS)
