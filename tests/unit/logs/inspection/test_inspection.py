"""Inspecting whole logs: golden facts of a small one, bad rows with their place, damage, and what is printed."""

import io
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from headrace.cli.inspect import inspect
from headrace.errors import ConfigError, DataError
from headrace.logs.inspection import Inspection, blocks, inspect_log, print_inspection
from headrace.logs.inspection import inspection as inspection_module
from headrace.logs.schema import IdColumn, LabelColumn, Schema

NUM_ROWS = 1_200
START_MS = 1_700_000_000_000


def small_log() -> pa.Table:
    """Sessions of 4 rows, one after another; the user and a null country last a session, the item never repeats."""
    rows = np.arange(NUM_ROWS)
    session = rows // 4
    countries = np.array(["de", "fr", None], dtype=object)
    return pa.table(
        {
            "click": pa.array((rows % 4 == 0).astype(np.int8)),
            "time": pa.array(START_MS + 10 * rows),
            "session": pa.array(session),
            "user": pa.array(session % 100),
            "item_id": pa.array(rows % 300),
            "country": pa.array(countries[session % 3]),
            "price": pa.array(rows / 8),
            "history": pa.array([list(range(s % 5)) for s in session.tolist()], pa.list_(pa.int64())),
        }
    )


def write_log(folder: Path, table: pa.Table | None = None, *, num_files: int = 2, row_group_size: int = 250) -> Path:
    table = small_log() if table is None else table
    folder.mkdir(parents=True)
    size = -(-table.num_rows // num_files)
    for number in range(num_files):
        part = table.slice(number * size, size)
        pq.write_table(part, folder / f"part-{number}.parquet", row_group_size=row_group_size)
    return folder


def printed(found: Inspection, width: int = 100) -> str:
    console = Console(file=io.StringIO(), width=width, force_terminal=False)
    print_inspection(found, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Inspection:
    return inspect_log(write_log(tmp_path_factory.mktemp("logs") / "log"))


def test_parts_are_guessed(found: Inspection) -> None:
    parts = {guess.name: guess.part for guess in found.guesses}
    assert parts == {
        "click": "label",
        "time": "timestamp",
        "session": "session_id",
        "user": "id",
        "item_id": "id",
        "country": "id",
        "price": "dense",
        "history": "id_list",
    }


def test_columns_have_their_golden_facts(found: Inspection) -> None:
    columns = found.to_dict()["columns"]
    assert found.num_rows == NUM_ROWS
    assert {name: column["distinct"] for name, column in columns.items()} == {
        "click": 2,
        "time": NUM_ROWS,
        "session": 300,
        "user": 100,
        "item_id": 300,
        "country": 2,
        "price": NUM_ROWS,
        "history": 4,
    }
    assert all(column["distinct_is_exact"] for column in columns.values())
    assert {name: column["nulls"] for name, column in columns.items() if column["nulls"]} == {"country": 400}
    assert columns["country"]["null_ratio"] == pytest.approx(1 / 3)
    assert columns["click"]["label_rate"] == 0.25
    assert columns["user"]["top_1_percent_share"] == pytest.approx(0.01)
    assert (columns["price"]["min"], columns["price"]["max"]) == (0.0, (NUM_ROWS - 1) / 8)
    assert {key: columns["history"][key] for key in ("mean_length", "p50_length", "p99_length", "max_length")} == {
        "mean_length": 2.0,
        "p50_length": 2,
        "p99_length": 4,
        "max_length": 4,
    }
    assert columns["history"]["type"].startswith("list<")


def test_duplication_is_exact(found: Inspection) -> None:
    assert found.duplication == pytest.approx(
        {"click": 2 / 3, "time": 0.0, "user": 1.0, "item_id": 0.0, "country": 1.0, "price": 0.0, "history": 1.0}
    )
    sessions = found.to_dict()["sessions"]
    assert sessions == {
        "sessions": 300,
        "rows": NUM_ROWS,
        "mean_rows": 4.0,
        "p50_rows": 4,
        "p99_rows": 4,
        "max_rows": 4,
        "returns": 0,
        "split": 0,
    }


def test_row_groups_are_counted_and_large_ones_warned_of(found: Inspection, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [group.num_rows for group in found.row_groups] == [250, 250, 100] * 2
    assert found.large_row_groups == []
    assert "warning" not in printed(found)
    size = found.row_groups[0].num_bytes
    monkeypatch.setattr(inspection_module, "LARGE_ROW_GROUP_BYTES", size - 1)
    large = found.large_row_groups
    assert (large[0].file, large[0].number) == (found.row_groups[0].file, 0)
    assert "part-0.parquet, row group 0: " in printed(found, 200)


def test_a_clean_log_has_no_bad_rows(found: Inspection) -> None:
    assert found.bad_rows == ()
    assert f"bad rows: none of {NUM_ROWS:,}" in printed(found)


def test_bad_rows_are_counted_by_reason_and_the_first_is_located(tmp_path: Path) -> None:
    table = small_log()
    labels = table.column("click").to_pylist()
    labels[900] = labels[901] = 5
    times: list[int | None] = table.column("time").to_pylist()
    times[3] = times[901] = None  # row 901 is bad for two reasons and counts once
    table = table.set_column(0, "click", pa.array(labels, pa.int8())).set_column(1, "time", pa.array(times))
    found = inspect_log(write_log(tmp_path / "log", table))
    assert found.num_bad == 3
    facts = {(bad.column, bad.reason): bad for bad in found.bad_rows}
    label = facts["click", "label is not one of 0, 1"]
    assert (label.count, Path(label.file).name, label.row_group, label.row, label.given) == (
        2,
        "part-1.parquet",
        1,
        300,
        "5",
    )
    time = facts["time", "timestamp is missing"]
    assert (time.count, Path(time.file).name, time.row) == (1, "part-0.parquet", 3)
    assert "bad rows: 3 of 1,200" in printed(found)


def test_a_given_schema_is_checked_instead_of_guessed(tmp_path: Path) -> None:
    schema = Schema(labels=(LabelColumn(name="click"),), ids=(IdColumn(name="country", type="int"),))
    found = inspect_log(write_log(tmp_path / "log"), schema=schema)
    assert found.schema is schema
    assert found.sessions is None
    assert {guess.name for guess in found.guesses if guess.part != "ignored"} == {"click", "country"}
    assert [(bad.column, bad.count, bad.given) for bad in found.bad_rows] == [("country", 800, '"de"')]


def test_a_guess_that_more_rows_change_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blocks, "BATCH_ROWS", 100)
    monkeypatch.setattr(blocks, "SAMPLE_BATCHES", 1)
    table = small_log()
    rows = np.arange(NUM_ROWS)
    quality = np.where(rows < 600, rows % 2, rows)  # of zeros and ones at first: a label, were it not for the rest
    table = table.drop_columns(["click"])
    table = table.append_column("quality", pa.array(quality)).append_column("flag", pa.array(rows % 2))
    found = inspect_log(write_log(tmp_path / "log", table))
    assert found.schema is not None
    assert [label.name for label in found.schema.labels] == ["flag"]
    assert found.bad_rows == ()
    assert found.num_rows == NUM_ROWS


def test_a_log_without_label_is_profiled_without_a_schema(tmp_path: Path) -> None:
    found = inspect_log(write_log(tmp_path / "log", small_log().drop_columns(["click"])))
    assert found.schema is None
    assert found.num_rows == NUM_ROWS
    assert "no column looks like a label" in printed(found)


def test_columns_that_some_files_lack_are_null_there(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log")
    pq.write_table(small_log().slice(0, 100).drop_columns(["price"]), folder / "part-2.parquet")
    columns = inspect_log(folder).to_dict()["columns"]
    assert columns["price"]["nulls"] == 100


def test_a_damaged_row_group_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    folder = write_log(tmp_path / "log")
    path = folder / "part-0.parquet"
    offset = pq.ParquetFile(path).metadata.row_group(1).column(4).data_page_offset
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(b"\xff" * 64)
    found = inspect_log(folder)
    assert len(found.damaged) == 1
    assert "part-0.parquet, row group 1: cannot be decoded" in found.damaged[0]
    assert found.num_rows == NUM_ROWS - 250
    assert "row group 1" in printed(found, 200)


def test_what_is_no_log_is_refused_with_its_name(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file or folder"):
        inspect_log(tmp_path / "nowhere")
    (tmp_path / "broken.parquet").write_bytes(b"not parquet at all")
    with pytest.raises(DataError, match=r"broken\.parquet: (not a|incomplete) Parquet file"):
        inspect_log(tmp_path)
    write_log(tmp_path / "empty", small_log().slice(0, 0), num_files=1)
    with pytest.raises(ConfigError, match="1 file without rows, nothing to inspect"):
        inspect_log(tmp_path / "empty")
    schema = Schema(labels=(LabelColumn(name="missing"),))
    with pytest.raises(DataError, match="no column missing; the file has click"):
        inspect_log(write_log(tmp_path / "log"), schema=schema)


@pytest.mark.parametrize("width", [100, 120])
def test_the_tables_fit_the_terminal(found: Inspection, width: int) -> None:
    text = printed(found, width)
    assert max(len(line.rstrip()) for line in text.splitlines() if not line.startswith("/")) <= width
    for fact in (
        "session session: 300 sessions",
        "mean 4.00",
        "2023-11-14 22:13:20",
        "label click: rate 0.2500",
        "33.3 %",
    ):
        assert fact in text


@pytest.fixture
def command() -> Typer:
    app = Typer(pretty_exceptions_enable=False)
    app.command()(inspect)
    return app


def test_the_command_prints_json_and_writes_a_schema(tmp_path: Path, command: Typer) -> None:
    log, out = write_log(tmp_path / "log"), tmp_path / "schema.yaml"
    result = CliRunner().invoke(command, [str(log), "--json", "--write-schema", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["columns"]["user"]["duplication"] == 1.0
    assert report["bad_rows"] == {"rows": 0, "found": []}
    schema = Schema.from_yaml(out)
    assert schema.session_id == "session"
    again = CliRunner().invoke(command, [str(log), "--schema", str(out)])
    assert again.exit_code == 0
    assert "bad rows: none of 1,200" in again.stdout


def test_the_command_does_not_write_a_schema_without_a_label(tmp_path: Path, command: Typer) -> None:
    log = write_log(tmp_path / "log", small_log().drop_columns(["click"]))
    result = CliRunner().invoke(command, [str(log), "--write-schema", str(tmp_path / "schema.yaml")])
    assert isinstance(result.exception, ConfigError)
    assert not (tmp_path / "schema.yaml").exists()


def test_columns_of_the_same_ids_are_printed_and_others_counted(tmp_path: Path) -> None:
    rows = np.arange(NUM_ROWS)
    item = rows * 7_919 % 300 * 1_000_003 + rows % 2
    offsets = pa.array(np.arange(0, NUM_ROWS + 1, 1), pa.int32())
    table = pa.table(
        {
            "click": (rows % 4 == 0).astype(np.int8),
            "item_id": item,
            "history": pa.ListArray.from_arrays(offsets, pa.array(item[::-1].copy())),
            "user_id": rows % 200,
            "city_id": rows % 60,
        }
    )
    found = inspect_log(write_log(tmp_path / "log", table))
    assert found.shared_tables == [("item_id", "history")]
    assert found.to_dict()["shared_tables"] == [["item_id", "history"]]
    text = printed(found, 120)
    assert "columns of the same ids" in text
    assert "one embedding table for item_id, history (headrace init writes it to the job file)" in text
    assert "1 pair of columns overlaps by chance, as ids numbered from 0 do" in text
