"""Small row groups that follow each other are read together; rows, ids and places stay those of each."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs.checks import BadRowPolicy
from headrace.logs.cursor import Selection
from headrace.logs.files import list_files
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID
from headrace.logs.splits import JOINED_BYTES, JOINED_ROWS

SCHEMA = Schema.from_dict({"labels": ["click"], "ids": ["user", {"name": "country", "type": "string"}]}, where="schema")
DROP = BadRowPolicy(policy="drop")


def write(path: Path, count: int, group: int, **columns: pa.Array) -> None:
    table = {
        "click": pa.array([i % 2 for i in range(count)], pa.int64()),
        "user": pa.array(range(count), pa.int64()),
        "country": pa.array([f"c{i % 7}" for i in range(count)]).dictionary_encode(),
    }
    pq.write_table(pa.table(table | columns), path, row_group_size=group)


def open_source(folder: Path, max_rows: int = 65_536, *, policy: BadRowPolicy | None = None) -> ParquetSource:
    return ParquetSource(select_files(list_files(folder)), SCHEMA, policy=policy, max_rows_per_batch=max_rows)


def values(source: ParquetSource, column: str) -> list[object]:
    batches = [batch for split in range(len(source)) for batch in source.read(split)]
    return [value for batch in batches for value in batch.rows.column(column).to_pylist()]


def test_a_log_of_row_groups_of_one_row_is_read_in_few_pieces_with_the_same_rows(tmp_path: Path) -> None:
    count = 2 * JOINED_ROWS + 10
    write(tmp_path / "a.parquet", count, 1)
    source = open_source(tmp_path)
    assert [source.num_rows(split) for split in range(len(source))] == [JOINED_ROWS, JOINED_ROWS, 10]
    assert [len(list(source.read(split))) for split in range(len(source))] == [1, 1, 1]
    assert values(source, "user") == values(source, ROW_ID) == list(range(count))
    assert values(source, "country") == [f"c{i % 7}" for i in range(count)]
    assert source.describe(2) == f"{tmp_path}/a.parquet, row groups {2 * JOINED_ROWS} to {count - 1}"


def test_joined_row_groups_cost_what_each_of_them_does(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 20, 5)
    whole, single = open_source(tmp_path), open_source(tmp_path, 5)
    assert (len(whole), len(single)) == (1, 4)
    assert whole.estimate_bytes(0) == sum(single.estimate_bytes(split) for split in range(4))
    assert values(whole, "user") == values(single, "user")
    assert whole.bytes_read.num_bytes == pytest.approx(single.bytes_read.num_bytes)


def test_row_groups_of_many_bytes_stay_apart(tmp_path: Path) -> None:
    text = np.random.default_rng(1).bytes(JOINED_BYTES // 2 + 1).hex()[: JOINED_BYTES // 2 + 1]
    write(tmp_path / "a.parquet", 3, 1, country=pa.array([text] * 3))
    assert len(open_source(tmp_path)) == 3


def test_selected_rows_of_joined_row_groups_keep_their_ids(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 50, 5)
    source = ParquetSource([Selection(list_files(tmp_path)[0], 0, 7, 33, None, 26)], SCHEMA)
    assert len(source) == 1
    assert values(source, "user") == values(source, ROW_ID) == list(range(7, 33))
    assert source.num_rows(0) == 26


def test_a_row_group_larger_than_what_is_joined_is_not_decoded_for_the_few_rows_selected(tmp_path: Path) -> None:
    with pq.ParquetWriter(tmp_path / "a.parquet", pa.schema([("click", pa.int64()), ("user", pa.int64())])) as writer:
        for count in (5, 5, JOINED_ROWS):
            writer.write_table(pa.table({"click": [0] * count, "user": [0] * count}), row_group_size=count)
    source = ParquetSource([Selection(list_files(tmp_path)[0], 0, 0, 12, None, 12)], SCHEMA, optional=["country"])
    assert [source.num_rows(split) for split in range(len(source))] == [10, 2]


def test_a_bad_row_is_named_by_its_own_row_group(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", 12, 2, click=pa.array([0] * 7 + [5] + [0] * 4, pa.int64()))
    with pytest.raises(DataError, match=r"a.parquet, row group 3, row 7, column click"):
        values(open_source(tmp_path), "user")
    assert values(open_source(tmp_path, policy=DROP), "user") == [0, 1, 2, 3, 4, 5, 6, 8, 9, 10, 11]


def test_damage_is_named_by_its_own_row_group_and_nothing_of_the_item_is_delivered(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    write(path, 12, 2)
    chunk = pq.ParquetFile(path).metadata.row_group(4).column(1)
    raw = bytearray(path.read_bytes())
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    raw[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(raw)
    source = open_source(tmp_path)
    batches = source.read(0)
    with pytest.raises(DataError, match=r"a.parquet, row group 4: "):
        next(batches)
