"""Inspecting logs with columns of any type and name, types that change from file to file, and very small row groups."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from arrow_types import NUM_ROWS, every_column
from rich.console import Console
from typer import Typer
from typer.testing import CliRunner

from headrace.cli.inspect import inspect
from headrace.errors import ConfigError, DataError
from headrace.logs.files import list_files
from headrace.logs.footers import read_footer
from headrace.logs.inspection import blocks, inspect_log, print_inspection, schema_to_yaml
from headrace.logs.inspection.id_counter import slots_for
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.schema import Schema

START_S = 1_704_067_200


def clicks(num_rows: int, **more: pa.Array) -> pa.Table:
    rows = np.arange(num_rows)
    columns = {
        "click": pa.array((rows % 4 == 0).astype(np.int8)),
        "item": pa.array(rows % 30),
        "session": pa.array(rows // 5),
        "history": pa.array([[row % 7, row % 3] for row in rows.tolist()], pa.list_(pa.int64())),
    }
    return pa.table(columns | more)


def write(path: Path, table: pa.Table, **options: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, path, **options)
    return path.parent


def guessed(log: Path) -> dict[str, str]:
    return {guess.name: guess.part for guess in inspect_log(log, num_threads=1).guesses}


def printed(log: Path) -> str:
    console = Console(file=io.StringIO(), width=160, force_terminal=False)
    print_inspection(inspect_log(log, num_threads=1), console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def command(*arguments: str) -> tuple[int, str, str]:
    app = Typer()
    app.command()(inspect)
    done = CliRunner().invoke(app, arguments)
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.exit_code, done.stdout, done.stderr


def test_a_column_of_any_type_is_shown(tmp_path: Path) -> None:
    log = write(tmp_path / "log/a.parquet", clicks(NUM_ROWS, **every_column()))
    found = inspect_log(log, num_threads=1)
    assert len(found.profiles) == 4 + len(every_column())
    assert found.num_bad == 0
    assert json.loads(json.dumps(found.to_dict(), default=str))["rows"] == NUM_ROWS
    assert "extension<arrow.uuid>" in printed(log)


def test_parts_are_guessed_from_the_types_of_all_files(tmp_path: Path) -> None:
    first = clicks(300)
    for name in ("item", "history"):
        values = pa.nulls(300) if name == "item" else pa.array([[]] * 300, pa.list_(pa.null()))
        first = first.set_column(first.schema.get_field_index(name), name, values)
    first = first.set_column(0, "click", first["click"].cast(pa.bool_()))
    write(tmp_path / "log/a.parquet", first)
    log = write(tmp_path / "log/b.parquet", clicks(300))
    assert guessed(log) == {"click": "label", "item": "id", "session": "session_id", "history": "id_list"}
    found = inspect_log(log)
    assert found.num_bad == 0
    assert {p.name: p.to_dict()["type"] for p in found.profiles}["click"] == "bool / int8"


@pytest.mark.parametrize("kind", [pa.float64(), pa.decimal128(38, 0), pa.uint8(), pa.bool_()])
def test_a_label_stored_as_any_number_is_found(tmp_path: Path, kind: pa.DataType) -> None:
    table = clicks(300)
    log = write(tmp_path / "log/a.parquet", table.set_column(0, "click", table["click"].cast(kind)))
    assert guessed(log)["click"] == "label"
    assert inspect_log(log).profiles[0].mean == 0.25


def test_decimals_without_fractions_are_whole_numbers(tmp_path: Path) -> None:
    table = clicks(300)
    table = table.set_column(1, "item", table["item"].cast(pa.decimal128(38, 0)))
    table = table.append_column("price", pa.array(np.arange(300) / 8).cast(pa.decimal128(20, 3)))
    assert guessed(write(tmp_path / "log/a.parquet", table)) == {
        "click": "label", "item": "id", "session": "session_id", "history": "id_list", "price": "dense"}  # fmt: skip


def test_sessions_are_the_same_whatever_type_a_file_stores_them_as(tmp_path: Path) -> None:
    table = clicks(200)
    write(tmp_path / "log/a.parquet", table)
    log = write(tmp_path / "log/b.parquet", table.set_column(2, "session", table["session"].cast(pa.float64())))
    sessions = inspect_log(log).sessions
    assert sessions is not None
    assert round(sessions.num_sessions) == 40


def test_bad_rows_of_a_file_of_another_type_are_shown_as_they_are(tmp_path: Path) -> None:
    table = clicks(200)
    write(tmp_path / "log/a.parquet", table)
    words = pa.array(["1"] * 150 + ["x"] + ["2"] * 49)
    log = write(tmp_path / "log/b.parquet", table.set_column(1, "item", words), row_group_size=20)
    schema = Schema.from_dict({"labels": ["click"], "ids": ["item"]}, where="test")
    (bad,) = inspect_log(log, schema=schema).bad_rows
    assert (bad.count, bad.row_group, bad.row, bad.given) == (1, 7, 150, '"x"')


def test_columns_of_one_name_are_left_out_unless_the_schema_names_them(tmp_path: Path) -> None:
    table = clicks(60).append_column("twin", pa.array([1] * 60)).append_column("twin", pa.array([2] * 60))
    log = write(tmp_path / "log/a.parquet", table)
    assert "twin" not in guessed(log)
    assert "left out: " in printed(log)
    schema = Schema.from_dict({"labels": ["click"], "ids": ["twin"]}, where="test")
    with pytest.raises(DataError, match="more than one column is named twin"):
        inspect_log(log, schema=schema)


@pytest.mark.parametrize("name", ["__index_level_0__", "Unnamed: 0", "Unnamed: 0.1", "index", "level_0", ""])
def test_the_index_of_a_data_frame_is_nothing_to_learn_from(tmp_path: Path, name: str) -> None:
    log = write(tmp_path / "log/a.parquet", clicks(3000, **{name: pa.array(range(3000))}))
    assert guessed(log)[name] == "ignored"


@pytest.mark.parametrize("name", ["__row_id", "__group_0"])
def test_names_that_headrace_uses_itself_are_not_proposed_and_not_accepted(tmp_path: Path, name: str) -> None:
    log = write(tmp_path / "log/a.parquet", clicks(3000, **{name: pa.array(range(3000))}))
    assert guessed(log)[name] == "ignored"
    for part in ({"ids": [name]}, {"row_id": name}, {"session_id": name}):
        schema = Schema.from_dict({"labels": ["click"], **part}, where="test")
        with pytest.raises(ConfigError, match=f"{name} is reserved by headrace"):
            ParquetSource(select_files(list_files(log)), schema, columns=["click"])


ODD_NAMES = [
    "new\nline: x", 'quo"te', "it's", "yes", "null", "1", "1.5", "2024-01-01", "a: b", "# no", "- x", "[red]x[/red]",
    "[/x]", "{a}", "*star", "&and", "!tag", "%", "@", "tab\there", " space ", "ünï", "😀", "\u2028", "=", "~", "\x7f",
    "a,b", "user.id", "x" * 300,
]  # fmt: skip


def test_a_written_schema_names_any_column_and_reads_back_the_same(tmp_path: Path) -> None:
    ids = {name: pa.array([f"v{row % 9}" for row in range(60)]) for name in ODD_NAMES}
    log = write(tmp_path / "log/a.parquet", clicks(60, **ids))
    found = inspect_log(log, num_threads=1)
    assert found.schema is not None
    text = schema_to_yaml(found.schema, found.guesses)
    assert Schema.from_dict(yaml.safe_load(text), where="test") == found.schema
    assert {*ODD_NAMES} <= {*found.schema.columns}
    table = printed(log)
    assert "[red]x[/red]" in table
    assert '"new\\nline: x"' in table


def test_small_row_groups_are_read_together_and_damage_in_one_costs_none_of_the_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(tmp_path / "log/a.parquet", clicks(500), row_group_size=1)
    calls: list[int] = []
    iter_groups = blocks.iter_groups

    def count(footer: object, parquet: object, groups: list[int], *rest: object) -> object:
        calls.append(len(groups))
        return iter_groups(footer, parquet, groups, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(blocks, "iter_groups", count)
    found = inspect_log(log, num_threads=1)
    assert found.num_rows == 500
    assert set(calls) == {500}

    file = log / "a.parquet"
    chunk = pq.ParquetFile(file).metadata.row_group(7).column(1)
    data = bytearray(file.read_bytes())
    middle = (chunk.dictionary_page_offset or chunk.data_page_offset) + chunk.total_compressed_size // 2
    data[middle - 12 : middle + 12] = bytes(24)
    file.write_bytes(data)
    broken = inspect_log(log, num_threads=1)
    assert broken.num_rows == 499
    assert len(broken.damaged) == 1
    assert "row group 7" in broken.damaged[0]


def test_wide_logs_have_smaller_counters_and_wide_rows_smaller_batches(tmp_path: Path) -> None:
    (file,) = list_files(write(tmp_path / "log/a.parquet", clicks(60)))
    assert blocks._batch_rows(read_footer(file), 4) == blocks.BATCH_ROWS
    wide = clicks(60, tags=pa.array([list(range(900))] * 60))
    (file,) = list_files(write(tmp_path / "wide/a.parquet", wide, use_dictionary=False))
    assert blocks._batch_rows(read_footer(file), 5) < 10_000
    assert slots_for(40) == 1 << 18
    assert slots_for(3000) * 3000 * 16 <= 160 << 20


def test_a_log_that_is_read_in_blocks_of_columns_is_found_to_be_what_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(5)
    sessions = np.repeat(np.arange(200), 3)
    values = {f"v{n}": rng.integers(0, 9, 200)[sessions] if n % 2 else rng.random(600) for n in range(7)}
    lists = {"tags": pa.array([[row, 1] for row in range(600)]), "scores": pa.array([[0.5]] * 9 + [[1.0, 2.0]] * 591)}
    rows = pa.table({"click": np.arange(600) % 4 % 3, "session": sessions, **values, **lists})
    rows = rows.set_column(3, "v1", pa.array([None, "x", *map(str, values["v1"][2:].tolist())]))
    log = write(tmp_path / "log/a.parquet", rows, row_group_size=250)
    schema = Schema.from_dict(
        {
            "labels": ["click"],
            "dense": [f"v{n}" for n in range(7)],
            "id_lists": [{"name": "tags", "weights": "scores"}],
            "session_id": "session",
        },
        where="test",
    )
    whole = [(given, inspect_log(log, schema=given, num_threads=1).to_dict()) for given in (None, schema)]
    assert whole[1][1]["bad_rows"]["rows"] > 100
    assert whole[1][1]["groups"]
    asked: list[int] = []
    iter_groups = blocks.iter_groups

    def watched(footer: Any, parquet: Any, groups: Any, names: list[str], batch_rows: int) -> Any:
        asked.append(len(names))
        return iter_groups(footer, parquet, groups, names, batch_rows)

    monkeypatch.setattr(blocks, "iter_groups", watched)
    for columns in (2, 3, 5):
        monkeypatch.setattr(blocks, "BLOCK_COLUMNS", columns)
        for given, expected in whole:
            assert inspect_log(log, schema=given, num_threads=1).to_dict() == expected
        assert max(asked) <= columns + 1  # with the session, by which others are compared
        asked.clear()


def test_a_schema_beside_the_log_is_used_unless_one_is_to_be_written(tmp_path: Path) -> None:
    log = write(tmp_path / "log/a.parquet", clicks(60))
    (log / "schema.yaml").write_text("labels: [click]\n")
    _, text, said = command(str(log))
    assert f"checked against {log}/schema.yaml" in said
    assert "not in the schema" in text
    command(str(log), "--write-schema", str(tmp_path / "new.yaml"))
    assert "item" in (tmp_path / "new.yaml").read_text()


def test_json_has_no_number_that_json_lacks(tmp_path: Path) -> None:
    odd = pa.array([float("nan"), float("inf")] * 30)
    log = write(tmp_path / "log/a.parquet", clicks(60, odd=odd, far=pa.array([1e308] * 60)))

    def refuse(name: str) -> None:
        raise AssertionError(name)

    assert json.loads(command(str(log), "--json")[1], parse_constant=refuse)["rows"] == 60


@pytest.mark.parametrize(("unit", "ticks"), [("s", 1), ("ms", 1_000), ("us", 1_000_000), ("ns", 10**9)])
def test_times_are_shown_as_dates_in_any_unit(tmp_path: Path, unit: str, ticks: int) -> None:
    times = START_S * ticks + np.arange(60) * ticks
    for number, values in enumerate((pa.array(times), pa.array(times).cast(pa.timestamp(unit)))):
        log = write(tmp_path / f"{number}/a.parquet", clicks(60, time=values))
        assert "2024-01-01 00:00:00 to 2024-01-01 00:00:59 UTC" in printed(log)


def test_parts_of_odd_numbers(tmp_path: Path) -> None:
    rows = np.arange(60)
    log = write(
        tmp_path / "log/a.parquet",
        clicks(
            60,
            last_item=pa.array(rows * 977 % 41),
            clicks_last_hour=pa.array(rows % 11),
            timestamp=pa.array(20_240_101_000_000 + rows),
        ),
    )
    parts = guessed(log)
    assert (parts["last_item"], parts["clicks_last_hour"], parts["timestamp"]) == ("id", "dense", "ignored")
