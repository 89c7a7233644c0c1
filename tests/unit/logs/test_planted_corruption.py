"""The promise about bad input: corruption planted anywhere in a log is found, and its place and reason are named."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs.checks import BadRowPolicy
from headrace.logs.files import list_files
from headrace.logs.parquet_source import ParquetSource, select_files
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID, SourceBatch

SCHEMA = Schema.from_dict(
    {
        "labels": ["click", {"name": "rating", "allowed": None}],
        "dense": ["price", "age"],
        "ids": ["user", {"name": "country", "type": "string"}],
        "id_lists": [{"name": "history", "max_length": 3, "weights": "strengths"}, {"name": "tags", "type": "string"}],
        "weight": "importance",
        "timestamp": {"name": "time", "unit": "ms"},
    },
    where="schema",
)
ROWS_PER_FILE, ROWS_PER_GROUP = 40, 10
ROW_GROUPS = ROWS_PER_FILE // ROWS_PER_GROUP

TYPES: dict[str, pa.DataType] = {
    "click": pa.int8(),
    "rating": pa.float32(),
    "price": pa.float64(),
    "age": pa.int32(),
    "user": pa.int64(),
    "country": pa.string(),
    "history": pa.list_(pa.int64()),
    "strengths": pa.list_(pa.float32()),
    "tags": pa.list_(pa.string()),
    "importance": pa.float32(),
    "time": pa.timestamp("ms"),
}


def good_row(index: int) -> dict[str, Any]:
    return {
        "click": index % 2,
        "rating": index / 4,
        "price": index * 0.5,
        "age": None if index % 7 == 0 else index,
        "user": 1000 + index,
        "country": f"c{index % 3}",
        "history": [index, index + 1][: index % 3],
        "strengths": [1.0, 2.0][: index % 3],
        "tags": ["x"],
        "importance": 1.0,
        "time": 1_700_000_000_000 + index,
    }


# What is planted: column, type it is stored in, a bad value for one row (`good` makes the others), reason found.
PLANTS: dict[str, tuple[str, pa.DataType, Any, str]] = {
    "label missing": ("click", pa.int8(), None, "label is missing"),
    "label not allowed": ("click", pa.int8(), 2, "label is not one of 0, 1"),
    "label not finite": ("rating", pa.float32(), math.inf, "label is not a finite number"),
    "number unparsable": ("price", pa.string(), "12,5", "not a number"),
    "NaN": ("price", pa.float64(), math.nan, "NaN or infinite"),
    "infinity": ("price", pa.float32(), -math.inf, "NaN or infinite"),
    "wrong type": ("age", pa.list_(pa.int32()), [7], "not a number"),
    "id unparsable": ("user", pa.string(), "u-17", "not an integer"),
    "id with a fraction": ("user", pa.float64(), 17.5, "not an integer"),
    "id of wrong type": ("country", pa.struct([("code", pa.string())]), {"code": "c1"}, "not a string"),
    "id not UTF-8": ("country", pa.binary(), b"\xff\xfe", "not a string"),
    "list too long": ("history", pa.list_(pa.int64()), [1, 2, 3, 4], "list longer than 3"),
    "null inside a list": ("tags", pa.list_(pa.string()), ["a", None], "null inside the list"),
    "list unparsable": ("history", pa.list_(pa.string()), ["1", "x"], "not a list of integers"),
    "list of wrong type": ("tags", pa.string(), "a|b", "not a list of strings"),
    "weights of another length": (
        "strengths",
        pa.list_(pa.float32()),
        [1.0] * 3,
        "more or fewer weights than ids in history",
    ),
    "NaN weight in a list": ("strengths", pa.list_(pa.float64()), [math.nan], "null, NaN or infinite inside the list"),
    "weight negative": ("importance", pa.float32(), -0.5, "weight is not a finite number >= 0"),
    "weight missing": ("importance", pa.float64(), None, "weight is missing"),
    "timestamp missing": ("time", pa.timestamp("us"), None, "timestamp is missing"),
    "timestamp unparsable": ("time", pa.string(), "2024-13-45T00:00:00", "not a time"),
}
ALWAYS_NULL = {"age": pa.list_(pa.int32()), "country": pa.struct([("code", pa.string())]), "tags": pa.string()}


def write_planted_log(folder: Path) -> dict[tuple[str, int], tuple[int, str, str, str]]:
    """One file for each plant; returns (file, row) -> (row group, column, reason, plant)."""
    expected = {}
    for number, (plant, (column, stored, value, reason)) in enumerate(PLANTS.items()):
        rows = [good_row(index) for index in range(ROWS_PER_FILE)]
        if ALWAYS_NULL.get(column) == stored:  # no value of this type can be good
            for row in rows:
                row[column] = None
        if column == "time":
            for row in rows:
                row[column] = row[column] * 1000 if stored == pa.timestamp("us") else str(row[column])
        position = (number * 13 + 5) % ROWS_PER_FILE
        rows[position][column] = value
        arrays = []
        for name, kind in TYPES.items():
            kind = stored if name == column else kind
            values = [row[name] for row in rows]
            if pa.types.is_string(kind):
                values = [None if v is None else str(v) for v in values]
            if pa.types.is_binary(kind):
                values = [v if isinstance(v, bytes) else v.encode() for v in values]
            if kind == pa.list_(pa.string()):
                values = [[None if e is None else str(e) for e in v] for v in values]
            arrays.append(pa.array(values, kind))
        path = folder / f"part-{number}.parquet"
        pq.write_table(pa.table(arrays, names=list(TYPES)), path, row_group_size=ROWS_PER_GROUP)
        expected[(str(path), position)] = (position // ROWS_PER_GROUP, column, reason, plant)
    return expected


def read_all(folder: Path, policy: str, **options: Any) -> list[SourceBatch]:
    source = ParquetSource(
        select_files(list_files(folder)), SCHEMA, policy=BadRowPolicy.model_validate({"policy": policy}), **options
    )
    return [batch for split in range(len(source)) for batch in source.read(split)]


@pytest.mark.parametrize("max_rows_per_batch", [3, 65_536])
def test_each_planted_row_is_found_with_its_place_and_no_other(tmp_path: Path, max_rows_per_batch: int) -> None:
    expected = write_planted_log(tmp_path)
    assert len(expected) >= 10
    batches = read_all(tmp_path, "quarantine", max_rows_per_batch=max_rows_per_batch)
    rejects = [row for batch in batches if batch.rejects is not None for row in batch.rejects.to_pylist()]
    found = {(r["file"], r["row"]): (r["row_group"], r["column"], r["reason"]) for r in rejects}
    assert found == {place: what[:3] for place, what in expected.items()}
    assert len(rejects) == len(expected)
    for reject in rejects:
        raw = json.loads(reject["raw"])
        assert set(raw) == {*SCHEMA.columns, ROW_ID}
        assert raw["importance"] in (1.0, -0.5, None)  # the row itself, not another one

    # Nothing good is lost: the good rows are all the others, in order.
    num_read = sum(batch.num_read for batch in batches)
    num_good = sum(batch.rows.num_rows for batch in batches)
    assert (num_read, num_good) == (ROWS_PER_FILE * len(PLANTS), ROWS_PER_FILE * len(PLANTS) - len(expected))
    row_ids = [row_id for batch in batches for row_id in batch.rows.column(ROW_ID).to_pylist()]
    bad_ids = {json.loads(reject["raw"])[ROW_ID] for reject in rejects}
    everything = [file << 36 | row for file in range(len(PLANTS)) for row in range(ROWS_PER_FILE)]
    assert row_ids == [row_id for row_id in everything if row_id not in bad_ids]


def test_dropped_rows_are_counted(tmp_path: Path) -> None:
    expected = write_planted_log(tmp_path)
    batches = read_all(tmp_path, "drop")
    assert sum(batch.num_dropped for batch in batches) == len(expected)
    assert all(batch.rejects is None for batch in batches)
    for batch in batches:
        assert batch.num_read == batch.rows.num_rows + batch.num_dropped + batch.num_quarantined


@pytest.mark.parametrize("plant", list(PLANTS))
def test_failing_names_the_place_the_reason_and_the_value(tmp_path: Path, plant: str) -> None:
    write_planted_log(tmp_path)
    number = list(PLANTS).index(plant)
    column, _, _, reason = PLANTS[plant]
    position = (number * 13 + 5) % ROWS_PER_FILE
    path = tmp_path / f"part-{number}.parquet"
    with pytest.raises(DataError) as caught:
        read_all(path, "fail")
    text = str(caught.value)
    place = f"{path}, row group {position // ROWS_PER_GROUP}, row {position}, column {column}: {reason}, given "
    assert text.startswith(place)
    assert "\n" not in text
    assert text != place


def cut_off(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def empty(path: Path) -> None:
    path.write_bytes(b"")


def not_parquet(path: Path) -> None:
    path.write_bytes(b"user,click\n1,0\n" * 10)


def broken_footer(path: Path) -> None:
    data = bytearray(path.read_bytes())
    length = int.from_bytes(data[-8:-4], "little")
    data[-8 - length : -8] = b"\xff" * length
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (cut_off, "incomplete Parquet file"),
        (empty, "not a Parquet file: it is empty"),
        (not_parquet, "not a Parquet file"),
        (broken_footer, "its Parquet footer cannot be read"),
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, damage: Callable[[Path], None], message: str) -> None:
    write_planted_log(tmp_path)
    path = tmp_path / "part-7.parquet"
    damage(path)
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, "drop")
    assert str(caught.value).startswith(f"{path}: {message}")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("checksums", [True, False])
def test_a_damaged_page_is_named_with_file_and_row_group(tmp_path: Path, checksums: bool) -> None:
    path = tmp_path / "a.parquet"
    rows = [good_row(index) for index in range(ROWS_PER_FILE)]
    table = pa.table([pa.array([row[n] for row in rows], kind) for n, kind in TYPES.items()], names=list(TYPES))
    pq.write_table(table, path, row_group_size=ROWS_PER_GROUP, compression="zstd", write_page_checksum=checksums)
    chunk = pq.read_metadata(path).row_group(2).column(4)
    data = bytearray(path.read_bytes())
    first = chunk.dictionary_page_offset or chunk.data_page_offset
    last = first + chunk.total_compressed_size - 1
    if checksums:  # one flipped bit
        data[last] ^= 1
    else:
        data[first : last + 1] = b"\x00" * (last + 1 - first)
    path.write_bytes(bytes(data))
    source = ParquetSource(select_files(list_files(path)), SCHEMA, max_rows_per_batch=ROWS_PER_GROUP)
    assert [sum(batch.num_read for batch in source.read(split)) for split in (0, 1, 3)] == [10, 10, 10]
    with pytest.raises(
        DataError, match=r"a\.parquet, row group 2: cannot be decoded, because the file is damaged"
    ) as caught:
        list(source.read(2))
    assert "\n" not in str(caught.value)


def test_a_missing_column_is_named_with_those_there_are(tmp_path: Path) -> None:
    write_planted_log(tmp_path)
    path = tmp_path / "part-3.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["user", "price"]), path)
    with pytest.raises(DataError) as caught:
        read_all(tmp_path, "drop")
    assert str(caught.value) == (
        f"{path}: no column price, user; the file has click, rating, age, country, history, strengths, tags, "
        f"importance, time"
    )
