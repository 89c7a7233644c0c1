"""Reading windows from Parquet: only what was asked for, in order, in batches, with ids that never change."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import ConfigError, DataError
from headrace.logs import parquet_source
from headrace.logs.checks import BadRowPolicy
from headrace.logs.cursor import Selection
from headrace.logs.files import LogFile, list_files
from headrace.logs.footers import Footer, iter_plain
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID, SourceBatch, make_row_id

SCHEMA = Schema.from_dict(
    {
        "labels": ["click"],
        "dense": ["price"],
        "ids": ["user", "item"],
        "id_lists": ["history"],
        "timestamp": {"name": "time", "unit": "s"},
    },
    where="schema",
)


def rows(first: int, count: int) -> pa.Table:
    index = list(range(first, first + count))
    return pa.table(
        {
            "click": pa.array([i % 2 for i in index], pa.int64()),
            "user": pa.array(index, pa.int32()),
            "item": pa.array([i * 10 for i in index], pa.uint32()),
            "price": pa.array([i / 2 for i in index], pa.float32()),
            "history": pa.array([[i] * (i % 3) for i in index], pa.large_list(pa.int32())),
            "time": pa.array([i * 10 for i in index], pa.int64()),
            "unused": pa.array(["x" * 100] * count),
        }
    )


def write(folder: Path, name: str, first: int, count: int, group: int = 10) -> None:
    (folder / name).parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(rows(first, count), folder / name, row_group_size=group)


def read(source: ParquetSource) -> list[SourceBatch]:
    return [batch for split in range(len(source)) for batch in source.read(split)]


def values(source: ParquetSource, column: str) -> list[Any]:
    return [value for batch in read(source) for value in batch.rows.column(column).to_pylist()]


def select(folder: Path, number: int, start: int, stop: int, times: tuple[int | None, int | None] | None) -> Selection:
    return Selection(list_files(folder)[number], number, start, stop, times, stop - start)


def test_all_rows_come_in_file_order_with_fixed_types(tmp_path: Path) -> None:
    write(tmp_path, "part-2.parquet", 0, 25)
    write(tmp_path, "part-10.parquet", 25, 5)
    source = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, max_rows_per_batch=10)
    assert [source.describe(i).removeprefix(f"{tmp_path}/") for i in range(len(source))] == [
        "part-2.parquet, row group 0",
        "part-2.parquet, row group 1",
        "part-2.parquet, row group 2",
        "part-10.parquet, row group 0",
    ]
    assert [source.num_rows(split) for split in range(len(source))] == [10, 10, 5, 5]
    assert values(source, "user") == list(range(30))
    assert values(source, "history") == [[i] * (i % 3) for i in range(30)]
    assert values(source, ROW_ID) == [make_row_id(0, i) for i in range(25)] + [make_row_id(1, i) for i in range(5)]
    expected = {
        "click": pa.float32(),
        "price": pa.float32(),
        "user": pa.int64(),
        "item": pa.int64(),
        "history": pa.list_(pa.int64()),
        "time": pa.int64(),
        ROW_ID: pa.int64(),
    }
    assert source.output_schema == pa.schema(list(expected.items()))
    assert {batch.rows.schema for batch in read(source)} == {source.output_schema}


def test_only_the_columns_asked_for_are_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.parquet", 0, 20)
    decoded: list[list[str]] = []

    def spy(footer: Footer, parquet: pq.ParquetFile, row_group: int, names: list[str], batch_rows: int) -> Any:
        decoded.append(names)
        for batch in iter_plain(footer, parquet, row_group, names, batch_rows):
            assert sorted(batch.schema.names) == sorted(names)
            yield batch

    monkeypatch.setattr(parquet_source, "iter_plain", spy)
    selections = select_files(list_files(tmp_path))
    source = ParquetSource(selections, SCHEMA, columns=["item", "click"], max_rows_per_batch=10)
    assert read(source)[0].rows.schema.names == ["item", "click", ROW_ID]
    assert decoded == [["item", "click"]] * 2
    decoded.clear()
    timed = ParquetSource(
        [select(tmp_path, 0, 0, 20, (None, 50 * 1_000_000))], SCHEMA, columns=["item"], max_rows_per_batch=10
    )
    assert values(timed, "item") == [0, 10, 20, 30, 40]
    assert read(timed)[0].rows.schema.names == ["item", ROW_ID]
    assert decoded[0] == ["item", "time"]
    with pytest.raises(ConfigError, match="column unused is not in the schema, which has click, price"):
        ParquetSource(selections, SCHEMA, columns=["unused"])


def test_row_ranges_cut_through_row_groups_and_keep_ids(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 40)
    source = ParquetSource([select(tmp_path, 0, 7, 23, None)], SCHEMA, columns=["user"], max_rows_per_batch=4)
    assert len(source) == 3
    assert [source.num_rows(split) for split in range(3)] == [3, 10, 3]
    assert values(source, "user") == values(source, ROW_ID) == list(range(7, 23))
    assert max(batch.rows.num_rows for batch in read(source)) == 4


def test_time_ranges_take_rows_without_a_readable_time_only_from_the_start(tmp_path: Path) -> None:
    table = rows(0, 12).drop_columns("time").append_column("time", pa.array([*range(9), None, 3, 99], pa.int64()))
    pq.write_table(table, tmp_path / "a.parquet", row_group_size=5)
    second = 1_000_000
    drop = BadRowPolicy(policy="drop")
    first = ParquetSource([select(tmp_path, 0, 0, 12, (None, 4 * second))], SCHEMA, policy=drop)
    assert values(first, ROW_ID) == [0, 1, 2, 3, 10]
    assert (sum(p.num_read for p in read(first)), sum(p.num_dropped for p in read(first))) == (6, 1)
    second_half = ParquetSource([select(tmp_path, 0, 0, 12, (4 * second, None))], SCHEMA, policy=drop)
    assert values(second_half, ROW_ID) == [4, 5, 6, 7, 8, 11]
    assert sum(p.num_read for p in read(second_half)) == 6


def test_only_the_row_groups_of_the_plan_are_read(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 50)  # ten rows a group, ten seconds a row
    second = 1_000_000
    selection = replace(select(tmp_path, 0, 0, 50, (100 * second, 201 * second)), row_groups=(1, 2))
    source = ParquetSource([selection], SCHEMA)
    assert [source.describe(split) for split in range(len(source))] == [f"{tmp_path}/a.parquet, row groups 1 to 2"]
    assert values(source, "user") == list(range(10, 21))


def test_partition_folders_are_columns(tmp_path: Path) -> None:
    schema = Schema.from_dict(
        {"labels": ["click"], "ids": ["hour", {"name": "region", "type": "string"}]}, where="schema"
    )
    write(tmp_path, "hour=9/region=north/a.parquet", 0, 2)
    write(tmp_path, "hour=10/region=__HIVE_DEFAULT_PARTITION__/a.parquet", 0, 1)
    source = ParquetSource(select_files(list_files(tmp_path)), schema)
    assert values(source, "hour") == [9, 9, 10]
    assert values(source, "region") == ["north", "north", None]
    only = ParquetSource(select_files(list_files(tmp_path)), schema, columns=["hour"])
    assert (values(only, "hour"), values(only, ROW_ID)) == ([9, 9, 10], [0, 1, make_row_id(1, 0)])


def test_row_ids_are_traced_to_their_file_and_row(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 3)
    write(tmp_path, "b.parquet", 3, 3)
    source = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, columns=["click"])
    last = values(source, ROW_ID)[-1]
    assert source.locate(last) == f"{tmp_path}/b.parquet, row 2"
    assert source.locate(make_row_id(7, 0)) == f"row id {7 << 36}"


def test_a_row_id_column_replaces_derived_ids(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 100, 3)
    schema = Schema.from_dict({"labels": ["click"], "row_id": "user"}, where="schema")
    source = ParquetSource(select_files(list_files(tmp_path)), schema, columns=["click"])
    assert values(source, ROW_ID) == [100, 101, 102]
    assert source.output_schema.names == ["click", ROW_ID]


def test_other_file_systems_are_read_by_url() -> None:
    memory = fsspec.filesystem("memory")
    try:
        with memory.open("/source/a.parquet", "wb") as file:
            pq.write_table(rows(0, 15), file, row_group_size=10)
        source = ParquetSource(select_files(list_files("memory://source")), SCHEMA, max_rows_per_batch=10)
        assert values(source, "user") == list(range(15))
        assert source.describe(1) == "memory:///source/a.parquet, row group 1"
    finally:
        memory.store.clear()
        memory.pseudo_dirs[:] = [""]


def test_items_read_by_many_threads_at_once_and_again_are_the_same(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 400)
    source = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, max_rows_per_batch=3)

    def batches(split: int) -> list[pa.RecordBatch]:
        return [batch.rows for batch in source.read(split)]

    once = [batches(split) for split in range(len(source))]
    with ThreadPoolExecutor(8) as pool:
        again = list(pool.map(batches, list(range(len(source))) * 3))
    assert again == once * 3


def test_an_abandoned_read_closes_its_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, "a.parquet", 0, 30)
    opened: list[pa.NativeFile] = []
    monkeypatch.setattr("headrace.logs.files.pa.OSFile", lambda *a: opened.append(pa_os_file(*a)) or opened[-1])
    source = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, max_rows_per_batch=2)
    batches: Iterator[SourceBatch] = source.read(0)
    next(batches)
    assert not opened[-1].closed
    batches.close()  # type: ignore[attr-defined]
    assert all(file.closed for file in opened)


pa_os_file = pa.OSFile


def test_estimates_follow_the_columns_and_rows_needed(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 1000, group=1000)
    all_columns = ParquetSource(select_files(list_files(tmp_path)), SCHEMA)
    one = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, columns=["user"])
    half = ParquetSource([select(tmp_path, 0, 0, 500, None)], SCHEMA, columns=["user"])
    size = sum(batch.rows.nbytes for batch in read(all_columns))
    assert 0.5 * size < all_columns.estimate_bytes(0) < 2 * size
    assert one.estimate_bytes(0) == pytest.approx(8000, rel=0.1)
    assert half.estimate_bytes(0) == pytest.approx(one.estimate_bytes(0) / 2, rel=0.01)
    batches = ParquetSource(select_files(list_files(tmp_path)), SCHEMA, columns=["user"], max_rows_per_batch=100)
    assert batches.estimate_bytes(0) == pytest.approx(one.estimate_bytes(0) / 10, rel=0.01)


def test_files_whose_types_differ_give_batches_of_one_schema(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 3)
    table = rows(3, 3).drop_columns(["price", "user", "history"])
    table = table.append_column("price", pa.array([1.5, 2.0, 2.5], pa.float64()))
    table = table.append_column("user", pa.array(["3", " 4", "5"]).dictionary_encode())
    table = table.append_column("history", pa.array([[1.0], None, []], pa.list_(pa.float64())))
    pq.write_table(table, tmp_path / "b.parquet")
    source = ParquetSource(select_files(list_files(tmp_path)), SCHEMA)
    assert {batch.rows.schema for batch in read(source)} == {source.output_schema}
    assert values(source, "user") == [0, 1, 2, 3, 4, 5]
    assert values(source, "history")[3:] == [[1], None, []]


def test_a_file_that_lost_rows_since_planning_is_refused(tmp_path: Path) -> None:
    write(tmp_path, "a.parquet", 0, 10)
    with pytest.raises(DataError, match=r"has 10 rows, but rows up to 11 are needed; it changed since"):
        ParquetSource([select(tmp_path, 0, 0, 11, None)], SCHEMA)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = LogFile(str(tmp_path / "gone.parquet"), 10)
    with pytest.raises(DataError, match=r"gone\.parquet: the file no longer exists"):
        ParquetSource([Selection(gone, 0, 0, 1, None, 1)], SCHEMA)


def test_nothing_selected_is_an_empty_source() -> None:
    source = ParquetSource([], SCHEMA, columns=["user"])
    assert (len(source), source.output_schema.names) == (0, ["user", ROW_ID])


def test_columns_not_read_reach_the_quarantine_all_the_same(tmp_path: Path) -> None:
    table = rows(0, 20).drop_columns("click").append_column("click", pa.array([0] * 7 + [5] + [0] * 9 + [None] * 3))
    pq.write_table(table, tmp_path / "hour=3.parquet", row_group_size=10)
    source = ParquetSource(
        select_files(list_files(tmp_path)),
        SCHEMA,
        columns=["click"],
        policy=BadRowPolicy(policy="quarantine"),
        max_rows_per_batch=3,
    )
    rejects = [row for batch in read(source) if batch.rejects is not None for row in batch.rejects.to_pylist()]
    assert [(r["row_group"], r["row"], r["column"]) for r in rejects] == [
        (0, 7, "click"),
        (1, 17, "click"),
        (1, 18, "click"),
        (1, 19, "click"),
    ]
    assert rejects[0]["raw"] == (
        '{"click": 5, "price": 3.5, "user": 7, "item": 70, "history": [7], "time": 70, "__row_id": 7}'
    )
