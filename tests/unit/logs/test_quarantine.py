"""The quarantine: written whole under a given name, read back, and replayed with the same row ids after a fix."""

import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from wrappings import extension, run_ends, text_of

from headrace.errors import ConfigError, DataError, StorageError
from headrace.logs import quarantine
from headrace.logs.arrow_source import ArrowSource
from headrace.logs.checks import BadRowPolicy
from headrace.logs.footers import Footer
from headrace.logs.quarantine import read_rejects, replay_source, write_rejects
from headrace.logs.raw_rows import decode_rows, encode_rows, parse_row, values_at
from headrace.logs.schema import Schema
from headrace.logs.source import REJECT_SCHEMA, ROW_ID

QUARANTINE = BadRowPolicy(policy="quarantine")
STRICT = Schema.from_dict({"labels": ["click"], "ids": ["user"]}, where="schema")
LOOSE = Schema.from_dict(
    {"labels": [{"name": "click", "allowed": None}], "ids": [{"name": "user", "type": "string"}]}, where="schema"
)


def reject(table: pa.Table, schema: Schema, file_number: int = 0) -> list[pa.RecordBatch]:
    source = ArrowSource(table, schema, policy=QUARANTINE, name=f"log-{file_number}", file_number=file_number)
    return [batch.rejects for i in range(len(source)) for batch in source.read(i) if batch.rejects is not None]


def replay(path: Path, schema: Schema, **options: Any) -> list[Any]:
    source = replay_source(path, schema, **options)
    return [batch for split in range(len(source)) for batch in source.read(split)]


LOG = pa.table({"click": [0, 2, 1, 3], "user": ["1", "2", "x", "4"]})


def test_rejects_are_read_back_as_they_were_written(tmp_path: Path) -> None:
    rejects = reject(LOG, STRICT)
    path = write_rejects(tmp_path / "quarantine", "window-1", rejects)
    assert path == tmp_path / "quarantine" / "window-1.parquet"
    assert read_rejects(tmp_path / "quarantine").equals(pa.Table.from_batches(rejects))
    assert pq.read_schema(path).metadata[b"headrace"] == b"rejects"


def test_writing_the_same_name_again_leaves_the_same_file(tmp_path: Path) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    assert path is not None
    first = path.read_bytes()
    assert write_rejects(tmp_path, "a", reject(LOG, STRICT)) == path
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]
    assert write_rejects(tmp_path, "a", []) is None
    assert list(tmp_path.iterdir()) == []


def test_a_write_that_fails_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    assert path is not None
    first = path.read_bytes()

    def fail(table: pa.Table, file: str, **options: Any) -> None:
        Path(file).write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(pq, "write_table", fail)
    with pytest.raises(StorageError, match=r"a.parquet: cannot be written: disk full"):
        write_rejects(tmp_path, "a", reject(LOG, STRICT, 3))
    assert path.read_bytes() == first
    assert list(tmp_path.iterdir()) == [path]


def test_replayed_rows_keep_their_ids_and_places(tmp_path: Path) -> None:
    for number in (10, 9):
        write_rejects(tmp_path, f"window-{number}", reject(LOG, STRICT, number))
    batches = replay(tmp_path, LOOSE)
    rows = [row for batch in batches for row in batch.rows.to_pylist()]
    assert rows == [
        {"click": click, "user": user, ROW_ID: number << 36 | row}
        for number in (9, 10)
        for row, click, user in ((1, 2.0, "2"), (2, 1.0, "x"), (3, 3.0, "4"))
    ]
    still = replay(tmp_path / "window-9.parquet", STRICT, policy=QUARANTINE)
    again = pa.Table.from_batches([batch.rejects for batch in still])
    assert again.equals(read_rejects(tmp_path / "window-9.parquet"))


def test_a_replay_that_fails_names_the_first_place_of_the_row(tmp_path: Path) -> None:
    write_rejects(tmp_path, "a", reject(LOG, STRICT, 7))
    with pytest.raises(DataError, match="log-7, row group 0, row 1, column click: label is not one of 0, 1, given 2"):
        replay(tmp_path, STRICT)


def test_edited_rows_are_good(tmp_path: Path) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    table = read_rejects(tmp_path)
    raws = [json.loads(raw) | {"click": 1, "user": 40} for raw in table["raw"].to_pylist()]
    edited = table.set_column(5, "raw", pa.array([json.dumps(raw) for raw in raws]))
    pq.write_table(edited.replace_schema_metadata(None), path)
    assert [row for batch in replay(tmp_path, STRICT) for row in batch.rows.to_pylist()] == [
        {"click": 1.0, "user": 40, ROW_ID: row} for row in (1, 2, 3)
    ]


@pytest.mark.parametrize("raw", ["not json", "[1]", '{"click": 1}', '{"__row_id": "7"}', "", None])
def test_a_row_whose_json_cannot_be_read_is_a_bad_row(tmp_path: Path, raw: str | None) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    table = read_rejects(tmp_path)
    good = table["raw"].to_pylist()
    pq.write_table(table.set_column(5, "raw", pa.array([good[0], raw, good[2]])), path)
    reason = "not a JSON object with an integer __row_id"
    place = f"{path}: column raw of the row from log-0, row group 0, row 2: {reason}"
    with pytest.raises(DataError) as caught:
        replay(tmp_path, LOOSE)
    assert str(caught.value) == place
    for policy in (QUARANTINE, BadRowPolicy(policy="drop")):
        batches = replay(tmp_path, LOOSE, policy=policy)
        assert [row[ROW_ID] for batch in batches for row in batch.rows.to_pylist()] == [1, 3]
        assert sum(batch.num_read for batch in batches) == 3
        assert sum(batch.num_dropped + batch.num_quarantined for batch in batches) == 1
        if policy is QUARANTINE:
            (kept,) = (row for batch in batches if batch.rejects for row in batch.rejects.to_pylist())
            assert (kept["row"], kept["column"], kept["reason"], kept["raw"]) == (2, "raw", reason, raw)


def test_what_is_no_quarantine_is_said_so(tmp_path: Path) -> None:
    pq.write_table(LOG, tmp_path / "log.parquet")
    with pytest.raises(DataError, match=r"log\.parquet: not a quarantine file: missing columns file, row_group, row"):
        replay_source(tmp_path, STRICT)
    with pytest.raises(ConfigError, match="no such file or folder"):
        read_rejects(tmp_path / "none")


FAR = pa.array([9 * 10**18, -9 * 10**18], pa.timestamp("s", "Europe/Berlin"))
NOT_TEXT = text_of([b"caf\xe9", b"\xff"])
STRANGE = {
    "text that is not UTF-8": NOT_TEXT,
    "lists of it": pa.ListArray.from_arrays([0, 1, 2], NOT_TEXT),
    "structs of it": pa.StructArray.from_arrays([NOT_TEXT], ["a"]),
    "a dictionary of it": pa.DictionaryArray.from_arrays([1, 0], NOT_TEXT),
    "string views": pa.array(["a", None], pa.string_view()),
    "lists of nanoseconds": pa.array([[1704067200000000123], None], pa.list_(pa.timestamp("ns"))),
    "lists of dates before Christ": pa.array([[-800_000], []], pa.list_(pa.date32())),
    "times of no calendar": FAR,
    "lists of them": pa.ListArray.from_arrays([0, 1, 2], FAR),
    "a time zone nobody knows": pa.array([0, 1], pa.timestamp("s", "Mars/Olympus")),
    "durations": pa.array([2**63 - 1, -(2**63)], pa.duration("s")),
    "intervals": pa.array([(1, 2, 3), None], pa.month_day_nano_interval()),
    "maps": pa.array([[("a", 1.5), ("b", None)], None], pa.map_(pa.string(), pa.float64())),
    "unions": pa.UnionArray.from_dense(
        pa.array([0, 1], pa.int8()), pa.array([0, 0], pa.int32()), [pa.array([1]), pa.array(["a"])]
    ),
    "runs": run_ends(pa.array(["a", None])),
    "lists of runs": pa.ListArray.from_arrays([0, 1, 2], run_ends(pa.array([1, 2]))),
    "UUIDs": pa.array([b"\xff" * 16, None], pa.uuid()),
    "extension types": extension(pa.array([[1, 2], None])),
    "views of lists": pa.array([[1], None], pa.list_view(pa.int64())),
    "lists of a fixed size": pa.array([[math.nan, math.inf], None], pa.list_(pa.float32(), 2)),
    "half floats": pa.array([0.5, math.inf], pa.float16()),
    "long decimals": pa.array([Decimal(10**75), None], pa.decimal256(76, 0)),
    "large numbers": pa.array([2**64 - 1, 0], pa.uint64()),
    "nulls": pa.nulls(2),
    "nested lists": pa.array([[[["\n\u2028\x00"]]], None]),
    "long text": pa.array(["x" * 1_000_000, ""]),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_a_bad_row_is_kept_whatever_else_is_in_it(kind: str, tmp_path: Path) -> None:
    schema = Schema.from_dict({"labels": ["click"], "dense": ["price"], "ids": ["user"]}, where="schema")
    table = pa.table({"click": ["no", "yes"], "user": STRANGE[kind], "price": STRANGE[kind]})
    for columns in (["click"], None):
        source = ArrowSource(table, schema, columns=columns, policy=QUARANTINE)
        (batch,) = source.read(0)
        assert batch.num_quarantined == 2
        assert batch.rejects is not None
        raws = [parsed(raw) for raw in batch.rejects.column("raw").to_pylist()]
        assert [raw["click"] for raw in raws] == ["no", "yes"]
        assert [raw["user"] is None for raw in raws] == STRANGE[kind].is_null().to_pylist()
        write_rejects(tmp_path, "a", [batch.rejects])
        again = replay(tmp_path, schema, policy=QUARANTINE)
        assert [row for batch in again for row in batch.rejects.to_pylist()] == batch.rejects.to_pylist()
    with pytest.raises(DataError, match='column click: not a number, given "no"'):
        next(ArrowSource(table, schema).read(0))


def test_bytes_that_are_not_text_are_the_same_bytes_when_a_row_is_replayed(tmp_path: Path) -> None:
    schema = Schema.from_dict({"labels": ["click"], "ids": [{"name": "user", "type": "string"}]}, where="schema")
    rejects = reject(pa.table({"click": [0, 1], "user": text_of([b"caf\xe9", b"ok"])}), schema)
    assert [row["reason"] for row in rejects[0].to_pylist()] == ["not a string"]
    assert "caf\\udce9" in rejects[0].column("raw")[0].as_py()
    write_rejects(tmp_path, "a", rejects)
    (batch,) = replay(tmp_path, schema, policy=QUARANTINE)
    assert batch.rejects.equals(rejects[0])


def test_large_numbers_are_the_same_numbers_when_a_row_is_replayed(tmp_path: Path) -> None:
    schema = {"labels": ["click"], "dense": ["price"], "ids": ["user"]}
    high = pa.array([2**64 - 1, 2**63, 5], pa.uint64())
    table = pa.table({"click": [2, 2, 2], "price": high, "user": high})
    write_rejects(tmp_path, "a", reject(table, Schema.from_dict(schema, where="schema")))
    loose = Schema.from_dict(schema | {"labels": [{"name": "click", "allowed": None}]}, where="schema")
    (batch,) = replay(tmp_path, loose)
    assert batch.rows.column("price").to_pylist() == [2.0**64, 2.0**63, 5.0]
    assert batch.rows.column("user").to_pylist() == [-1, -(2**63), 5]


def test_a_surrogate_written_by_hand_is_a_bad_value(tmp_path: Path) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    raws = ['{"click": 1, "user": "\\ud800", "__row_id": 1}', "[" * 100_000, '{"__row_id": 99999999999999999999}']
    pq.write_table(read_rejects(tmp_path).set_column(5, "raw", pa.array(raws)), path)
    batches = replay(tmp_path, LOOSE, policy=QUARANTINE)
    assert sorted(row["reason"] for batch in batches for row in batch.rejects.to_pylist()) == [
        "not a JSON object with an integer __row_id",
        "not a JSON object with an integer __row_id",
        "not a string",
    ]


def parsed(text: str) -> dict[str, Any]:
    row = parse_row(text)
    assert row is not None
    return row


VALUES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    st.text(max_size=5),
    st.lists(st.integers(-(2**63), 2**63 - 1), max_size=3),
    st.lists(st.one_of(st.none(), st.text(max_size=3)), max_size=3),
)


@settings(max_examples=200)
@given(st.lists(st.tuples(VALUES, VALUES), max_size=12))
def test_json_rows_of_any_types_come_back_in_order(rows: list[tuple[Any, Any]]) -> None:
    texts: list[str] = []
    for number, (one, other) in enumerate(rows):
        batch = pa.RecordBatch.from_arrays([pa.array([one]), pa.array([other])], names=["a", "b"])
        texts += encode_rows(values_at(batch, np.arange(1)), np.array([number]))
    back = list(decode_rows(map(parsed, texts), ["a", "b", "new"]))
    assert [i for _, ids in back for i in ids.tolist()] == list(range(len(rows)))
    decoded = [(row["a"], row["b"]) for batch, _ in back for row in batch.to_pylist()]
    assert decoded == rows
    assert all(batch.column("new").null_count == batch.num_rows for batch, _ in back)


def test_types_that_change_seldom_make_few_batches() -> None:
    texts = [json.dumps({"a": [None, 1][i % 2], "b": [[], [1]][i % 2], ROW_ID: i}) for i in range(100)]
    assert len(list(decode_rows(map(parsed, texts), ["a", "b"]))) == 1


def test_rows_that_are_missing_once_decoded_are_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rejects = reject(LOG, STRICT)
    write_rejects(tmp_path, "a", rejects)

    @contextmanager
    def cut(footer: Footer) -> Iterator[Any]:
        yield SimpleNamespace(reader=SimpleNamespace(iter_batches=lambda *_, **__: iter([rejects[0].slice(1)])))

    monkeypatch.setattr(quarantine, "open_parquet", cut)
    damaged = r"a\.parquet, row group 0: damaged: 2 rows were decoded, its footer says 3"
    with pytest.raises(DataError, match=damaged):
        read_rejects(tmp_path)
    with pytest.raises(DataError, match=damaged):
        replay(tmp_path, LOOSE)


def test_types_left_by_an_editor_are_cast_or_named(tmp_path: Path) -> None:
    path = write_rejects(tmp_path, "a", reject(LOG, STRICT))
    kept = read_rejects(tmp_path)
    pq.write_table(kept.set_column(2, "row", kept["row"].cast(pa.string())), path)
    assert read_rejects(tmp_path).equals(kept)
    assert sum(batch.num_read for batch in replay(tmp_path, LOOSE)) == 3
    pq.write_table(kept.set_column(2, "row", pa.array(["x"] * 3)), path)
    for read in (read_rejects, lambda folder: replay(folder, LOOSE)):
        with pytest.raises(DataError, match=r"not a quarantine file: column row is string, expected int64$"):
            read(tmp_path)


def test_reject_schema_is_what_the_page_says() -> None:
    assert REJECT_SCHEMA.names == ["file", "row_group", "row", "column", "reason", "raw"]
