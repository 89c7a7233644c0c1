"""A file is known by its content, whatever it is called; copies count once, merged files are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs import Cursor, ParquetSource, Schema, WindowConfig, find_windows
from headrace.logs.cursor import FileInfo, FileUse
from headrace.logs.files import LogFile
from headrace.logs.identity import recognize, relocate

SCHEMA = Schema.from_dict({"labels": ["click"], "ids": ["user"], "timestamp": {"name": "time", "unit": "s"}}, where="t")


def write(path: Path, first: int, stop: int, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = range(first, stop)
    pq.write_table(pa.table({"click": [row % 2 for row in rows], "user": rows, "time": rows}), path, **options)


def use(folder: Path, cursor: Cursor, **config: Any) -> tuple[list[int], Cursor, tuple[str, ...]]:
    """The users in the next windows, the cursor behind them, and the notes."""
    new = find_windows(folder, SCHEMA, cursor, WindowConfig(**config))
    users: list[int] = []
    for window in new.windows:
        source = ParquetSource(window.selections, SCHEMA)
        for split in range(len(source)):
            for batch in source.read(split):
                users += batch.rows.column("user").to_pylist()
        cursor = window.cursor_after
    return users, cursor, new.notes


@pytest.fixture
def logs(tmp_path: Path) -> Path:
    write(tmp_path / "logs/day=1/a.parquet", 0, 40)
    write(tmp_path / "logs/day=2/a.parquet", 40, 70)
    return tmp_path / "logs"


def test_a_log_read_from_a_folder_above_is_not_used_again(logs: Path) -> None:
    users, cursor, _ = use(logs / "day=1", Cursor())
    assert users == list(range(40))
    users, cursor, notes = use(logs, cursor)
    assert users == list(range(40, 70))
    assert notes == ("files used before under other names: day=1/a.parquet (was a.parquet)",)
    assert {name: known.number for name, known in cursor.files.items()} == {"day=1/a.parquet": 0, "day=2/a.parquet": 1}
    assert use(logs / "day=2", cursor)[0] == []


@pytest.mark.parametrize("config", [{}, {"kind": "file"}, {"kind": "rows", "num_rows": 7, "include_incomplete": True}])
def test_files_and_folders_may_be_renamed(logs: Path, config: dict[str, Any]) -> None:
    _, cursor, _ = use(logs, Cursor(), **config)
    (logs / "day=2").rename(logs / "day=02")
    (logs / "day=1/a.parquet").rename(logs / "day=1/b.parquet")
    users, cursor, notes = use(logs, cursor, **config)
    assert users == []
    assert "files used before under other names: " in notes[0]
    assert cursor.num_rows_used == 70


def test_a_file_of_which_a_part_is_used_goes_on_there_after_it_was_renamed(logs: Path) -> None:
    (logs / "day=2/a.parquet").unlink()
    for config in ({"kind": "rows", "num_rows": 25}, {"kind": "time", "every_s": 25}):
        users, cursor, _ = use(logs, Cursor(), **config)
        assert users == list(range(25))
        file = next(logs.rglob("*.parquet"))
        file.rename(file.with_name(f"{config['kind']}.parquet"))
        users, cursor, _ = use(logs, cursor, include_incomplete=True, **config)
        assert users == list(range(25, 40))


def test_names_may_be_exchanged(logs: Path) -> None:
    _, cursor, _ = use(logs, Cursor())
    (logs / "day=1/a.parquet").rename(logs / "x")
    (logs / "day=2/a.parquet").rename(logs / "day=1/a.parquet")
    (logs / "x").rename(logs / "day=2/a.parquet")
    users, cursor, _ = use(logs, cursor)
    assert users == []
    assert cursor.num_rows_used == 70


@pytest.mark.parametrize("when", ["at first", "later"])
def test_a_copy_counts_once_and_is_named(logs: Path, when: str) -> None:
    copy = logs / "day=3/b.parquet"
    copy.parent.mkdir()
    cursor = Cursor()
    if when == "later":
        _, cursor, _ = use(logs, cursor)
    copy.write_bytes((logs / "day=1/a.parquet").read_bytes())
    users, cursor, notes = use(logs, cursor)
    assert users == ([] if when == "later" else list(range(70)))
    assert notes == ("duplicates of other files, not used again: day=3/b.parquet (as day=1/a.parquet)",)
    assert cursor.num_rows_used == 70


def test_files_with_equal_footers_and_other_rows_are_not_taken_for_copies(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    for number in range(3):
        write(tmp_path / f"{number}.parquet", number * 20, number * 20 + 20, **options)
    assert use(tmp_path, Cursor())[0] == list(range(60))


@pytest.mark.parametrize(("size_bytes", "num_rows"), [(101, 20), (100, 21)])
def test_files_of_another_size_or_with_other_rows_are_not_the_same_whatever_their_samples_say(
    size_bytes: int, num_rows: int
) -> None:
    one = FileInfo(LogFile("/logs/b", 100, name="b"), 20, "f" * 24)
    other = FileInfo(LogFile("/logs/c", size_bytes, name="c"), num_rows, "f" * 24)
    assert recognize([one, other], Cursor(), "refuse").notes == ()
    used = Cursor({"a": FileUse(0, 100, "", "f" * 24, 20, 20)})
    assert set(recognize([other], used, "refuse").cursor.files) == {"a"}
    assert set(recognize([one], used, "refuse").cursor.files) == {"b"}


def test_a_rewrite_under_the_same_name_is_refused(tmp_path: Path) -> None:
    options = {"use_dictionary": False, "compression": "none", "write_statistics": False}
    write(tmp_path / "a.parquet", 0, 20, **options)
    _, cursor, _ = use(tmp_path, Cursor())
    write(tmp_path / "a.parquet", 20, 40, **options)
    with pytest.raises(DataError, match=r"a\.parquet: changed since 20 of its rows were used"):
        use(tmp_path, cursor)


def merge(logs: Path, *names: str, into: str) -> None:
    tables = [pq.read_table(logs / name, partitioning=None) for name in names]
    for name in names:
        (logs / name).unlink()
    pq.write_table(pa.concat_tables(tables), logs / into)


@pytest.mark.parametrize("into", ["day=1/merged.parquet", "all.parquet"])
def test_used_files_that_were_merged_are_refused_with_the_ways_on(logs: Path, into: str) -> None:
    write(logs / "day=1/b.parquet", 100, 125)
    _, cursor, _ = use(logs, Cursor())
    names = ["day=1/a.parquet", "day=1/b.parquet"] + ["day=2/a.parquet"] * (into == "all.parquet")
    merge(logs, *names, into=into)
    with pytest.raises(DataError, match=r"rows of . used files that are gone .*window\.merged to used .* or to new"):
        use(logs, cursor)
    users, _, notes = use(logs, cursor, merged="used")
    assert users == []
    assert "counted as used, because they contain the rows of files that are gone" in notes[0]
    assert len(use(logs, cursor, merged="new")[0]) == (95 if into == "all.parquet" else 65)


def test_a_new_file_with_as_many_rows_as_used_ones_that_are_still_there_is_new(logs: Path) -> None:
    _, cursor, _ = use(logs, Cursor())
    write(logs / "day=1/new.parquet", 100, 170)
    write(logs / "day=2/new.parquet", 200, 240)
    (logs / "day=1/a.parquet").unlink()
    assert len(use(logs, cursor)[0]) == 110


def test_a_run_of_small_files_that_were_merged_is_refused(tmp_path: Path) -> None:
    for number in range(6):
        write(tmp_path / f"{number}.parquet", number * 10, number * 10 + 10 - number)
    _, cursor, _ = use(tmp_path, Cursor())
    merge(tmp_path, "2.parquet", "3.parquet", "4.parquet", into="9.parquet")
    with pytest.raises(DataError, match=r"2\.parquet, 3\.parquet, 4\.parquet"):
        use(tmp_path, cursor)


def test_used_files_may_be_deleted_while_new_ones_arrive(logs: Path) -> None:
    _, cursor, _ = use(logs, Cursor())
    (logs / "day=1/a.parquet").unlink()
    write(logs / "day=3/a.parquet", 200, 240)
    assert use(logs, cursor)[0] == list(range(200, 240))


def test_a_window_in_progress_finds_its_files_where_they_lie_now(logs: Path, tmp_path: Path) -> None:
    (window,) = find_windows(logs, SCHEMA, Cursor(), WindowConfig(), limit=1).windows
    logs.rename(tmp_path / "moved")
    new = find_windows(tmp_path / "moved", SCHEMA, window.cursor_after, WindowConfig())
    now = relocate(window, new.infos)
    assert [selection.file.path for selection in now.selections] == [str(tmp_path / "moved/day=1/a.parquet")]
    assert now.cursor_after == window.cursor_after
