"""Writing logs: a folder appears whole or not at all, and files and row groups have the sizes asked for."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs.writer import ParquetLogWriter, partition_folder, read_marker

SCHEMA = pa.schema([("user", pa.int64()), ("click", pa.float32())])


def rows(first: int, count: int) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {"user": list(range(first, first + count)), "click": [float(i % 2) for i in range(count)]}, schema=SCHEMA
    )


def test_batches_of_any_size_become_groups_and_files_of_the_sizes_asked_for(tmp_path: Path) -> None:
    with ParquetLogWriter(tmp_path / "logs", schema=SCHEMA, rows_per_group=4, rows_per_file=10) as writer:
        for first, count in ((0, 3), (3, 9), (12, 0), (12, 13)):
            writer.write(rows(first, count))
    assert [path.name for path in writer.files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    groups = [
        [meta.row_group(g).num_rows for g in range(meta.num_row_groups)] for meta in map(pq.read_metadata, writer.files)
    ]
    assert groups == [[4, 4, 2], [4, 4, 2], [4, 1]]
    assert [v for path in writer.files for v in pq.read_table(path)["user"].to_pylist()] == list(range(25))
    assert writer.num_rows == 25


def test_nothing_is_visible_before_close(tmp_path: Path) -> None:
    writer = ParquetLogWriter(tmp_path / "logs", schema=SCHEMA, rows_per_group=2, rows_per_file=2)
    writer.write(rows(0, 9))
    assert not (tmp_path / "logs").exists()
    assert all(path.name.startswith(".") for path in tmp_path.iterdir())
    writer.close()
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    assert pq.read_table(tmp_path / "logs").num_rows == 9


def test_an_error_in_the_block_leaves_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(DataError), ParquetLogWriter(tmp_path / "logs", schema=SCHEMA) as writer:  # noqa: PT012
        writer.write(rows(0, 5))
        writer.write(pa.table({"user": [1]}))
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_writer_left_is_removed_by_the_next(tmp_path: Path) -> None:
    killed = ParquetLogWriter(tmp_path / "logs", schema=SCHEMA, rows_per_group=1)
    killed.write(rows(100, 5))
    with ParquetLogWriter(tmp_path / "logs", schema=SCHEMA) as writer:
        writer.write(rows(0, 5))
    assert pq.read_table(tmp_path / "logs")["user"].to_pylist() == [0, 1, 2, 3, 4]


def test_a_folder_with_files_is_refused_unless_appending(tmp_path: Path) -> None:
    for _ in range(2):
        with ParquetLogWriter(tmp_path / "logs", schema=SCHEMA, if_exists="append", marker={"done": 1}) as writer:
            writer.write(rows(0, 2))
    assert sorted(path.name for path in (tmp_path / "logs").glob("part*")) == [
        "part-00000.parquet",
        "part-00001.parquet",
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["logs"]
    with pytest.raises(FileExistsError, match="is not empty"):
        ParquetLogWriter(tmp_path / "logs", schema=SCHEMA)


def test_an_empty_log_still_has_a_file_with_its_columns(tmp_path: Path) -> None:
    ParquetLogWriter(tmp_path / "logs", schema=SCHEMA).close()
    assert pq.read_table(tmp_path / "logs").schema.names == ["user", "click"]


def test_partition_and_marker(tmp_path: Path) -> None:
    with ParquetLogWriter(
        tmp_path, schema=SCHEMA, partition=[("day", "2024-01-02"), ("hour", "a/b")], marker={"input": "x.tsv"}
    ) as writer:
        writer.write(rows(0, 2))
    assert (
        writer.folder
        == tmp_path / "day=2024-01-02" / "hour=a%2Fb"
        == partition_folder(tmp_path, [("day", "2024-01-02"), ("hour", "a/b")])
    )
    assert read_marker(writer.folder) == {"input": "x.tsv"}
    assert read_marker(tmp_path) is None


def test_rows_are_cast_safely_and_a_misfit_is_named(tmp_path: Path) -> None:
    with ParquetLogWriter(tmp_path / "logs", schema=SCHEMA) as writer:
        writer.write(pa.table({"click": [1], "extra": [0], "user": pa.array([7], pa.int32())}))
        with pytest.raises(DataError, match="have no column click; they have user"):
            writer.write(pa.table({"user": [1]}))
        with pytest.raises(DataError, match="do not fit the schema"):
            writer.write(pa.table({"user": ["x"], "click": [1.0]}))
    assert pq.read_table(tmp_path / "logs").to_pylist() == [{"user": 7, "click": 1.0}]
