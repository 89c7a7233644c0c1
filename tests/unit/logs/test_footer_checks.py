"""Damaged Parquet footers are refused: by their digest, by what they contradict, or by the rows that were decoded."""

from __future__ import annotations

import importlib.util
import weakref
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from headrace.errors import DataError
from headrace.logs import (
    Cursor,
    ParquetLogWriter,
    ParquetSource,
    Schema,
    WindowConfig,
    find_windows,
    footers,
    list_files,
    select_files,
)
from headrace.logs import metadata as metadata_module
from headrace.logs.clustering import ClusterConfig, keys
from headrace.logs.files import LogFile
from headrace.logs.footer_checks import check_chunks, check_codecs, check_metadata, check_schema, seal_footer
from headrace.logs.footers import read_footer, time_bounds
from headrace.logs.inspection import blocks, inspect_log
from headrace.logs.schema import TimestampColumn

ROWS = pa.table({"click": pa.array([0, 1] * 500, pa.int8()), "user": range(1000), "time": range(1000)})
SCHEMA = Schema.from_dict({"labels": ["click"], "ids": ["user"]}, where="test")
SESSIONS = Schema.from_dict(
    {"labels": ["click"], "session_id": "user", "timestamp": {"name": "time", "unit": "s"}}, where="test"
)
USER, CONFIG, EVERY_SECOND = pa.field("user", pa.int64()), ClusterConfig(), WindowConfig(kind="time", every_s=1)


def plain_log(path: Path, rows: pa.Table = ROWS, **options: Any) -> Path:
    pq.write_table(rows, path, use_dictionary=False, compression="none", **options)
    return path


def file(path: Path) -> LogFile:
    return list_files(path)[0]


def read(path: Path) -> int:
    source = ParquetSource(select_files(list_files(path)), SCHEMA)
    return sum(batch.rows.num_rows for split in range(len(source)) for batch in source.read(split))


def varint(value: int) -> bytes:
    """A Thrift integer."""
    out, value = b"", value << 1
    while True:
        out, value = out + bytes([value & 127 | (128 if value >> 7 else 0)]), value >> 7
        if not value:
            return out


def change_footer(path: Path, old: bytes, new: bytes, count: int = 1) -> None:
    raw = path.read_bytes()
    start = len(raw) - 8 - int.from_bytes(raw[-8:-4], "little")
    assert len(old) == len(new)
    assert old in raw[start:]
    path.write_bytes(raw[:start] + raw[start:].replace(old, new, count))


def test_a_column_with_fewer_values_than_its_row_group_has_rows_is_refused(tmp_path: Path) -> None:
    path = plain_log(tmp_path / "a.parquet")
    change_footer(path, b"\x16" + varint(1000), b"\x16\x80\x00", count=3)
    with pytest.raises(DataError, match=r"row group 0: its Parquet footer is damaged: column click has 0 val"):
        read(path)


def test_rows_that_do_not_add_up_are_refused(tmp_path: Path) -> None:
    path = plain_log(tmp_path / "a.parquet", row_group_size=300)
    change_footer(path, b"\x16" + varint(1000), b"\x16" + varint(1100))
    with pytest.raises(DataError, match="its row groups have 1000 rows, the file 1100"):
        read_footer(file(path))


def test_a_name_that_differs_between_the_schemas_is_refused(tmp_path: Path) -> None:
    path = plain_log(tmp_path / "a.parquet")
    change_footer(path, b"user", b"usar")
    with pytest.raises(DataError, match=r"a column is usar .* in its schema, user"):
        read_footer(file(path))


def test_a_chunk_that_contradicts_the_schema_is_refused_before_anything_asks_for_it(tmp_path: Path) -> None:
    path = plain_log(tmp_path / "a.parquet")
    check_chunks(pq.read_metadata(path), path.stat().st_size, where="log")
    change_footer(path, b"\x25\x02\x18\x04user", b"\x25\x00\x18\x04user")  # nullable becomes required
    # Not `read_footer` first: without the check it would end this process.
    with pytest.raises(DataError, match=r"^log: its Parquet footer is damaged: Definition level histogram"):
        check_chunks(pq.read_metadata(path), path.stat().st_size, where="log")
    with pytest.raises(DataError, match=r"a\.parquet: its Parquet footer is damaged: Definition level histogram"):
        read_footer(file(path))


def test_a_check_keeps_nothing_of_its_callers(tmp_path: Path) -> None:
    """Arrow keeps the error of a file without data, whose traceback would keep a run with its tables."""
    path = tmp_path / "log.parquet"
    pq.write_table(pa.table({"a": [1, 2]}), path)

    class Tables:
        pass

    def run() -> weakref.ref[Tables]:
        tables = Tables()
        check_chunks(pq.read_metadata(path), path.stat().st_size, where="log")
        return weakref.ref(tables)

    assert run()() is None


def test_columns_that_share_a_name_are_left_out_and_named_when_asked_for(tmp_path: Path) -> None:
    rows = pa.Table.from_arrays([ROWS["user"], ROWS["click"], ROWS["time"], ROWS["time"]], ["x", "y", "x", "z"])
    footer = read_footer(file(plain_log(tmp_path / "a.parquet", rows)))
    assert footer.repeated == ("x",)
    assert footer.schema.names == ["y", "z"]
    assert footer.leaves == {"y": [1], "z": [3]}
    footer.check_columns(["y", "z"])
    with pytest.raises(DataError, match=r"a\.parquet: more than one column is named x; rename the others"):
        footer.check_columns(["y", "x"])


def test_a_unit_of_time_finer_than_the_one_written_is_refused(tmp_path: Path) -> None:
    rows = ROWS.append_column("when", pa.array(range(1000), pa.timestamp("ms")))
    path = plain_log(tmp_path / "a.parquet", rows)
    change_footer(path, b"\x12\x1c\x1c\x00", b"\x12\x1c\x3c\x00")  # the unit's number in the schema, 1 to 3
    with pytest.raises(DataError, match=r"column when is .*\[ms\].* in one of its two schemas, .*\[ns\]"):
        read_footer(file(path))


def test_rows_that_are_missing_once_decoded_are_an_error(tmp_path: Path) -> None:
    footer = read_footer(file(plain_log(tmp_path / "a.parquet")))
    batches = ROWS.slice(1).to_batches(max_chunksize=300)
    with pytest.raises(DataError, match="row group 0: damaged: 999 rows were decoded, its footer says 1000"):
        list(footers._whole(iter(batches), footer, 0))


def chunk(**values: Any) -> SimpleNamespace:
    fields = {"num_values": 10, "data_page_offset": 4, "total_compressed_size": 50, "has_dictionary_page": False}
    return SimpleNamespace(**(fields | {"path_in_schema": "x", "physical_type": "INT64"} | values))


def metadata(*chunks: SimpleNamespace, num_rows: int = 10, max_repetition_level: int = 0) -> Any:
    group = SimpleNamespace(num_rows=num_rows, num_columns=len(chunks), column=lambda leaf: chunks[leaf])
    column = SimpleNamespace(path="x", physical_type="INT64", max_repetition_level=max_repetition_level)
    schema = SimpleNamespace(column=lambda leaf: column)
    return SimpleNamespace(
        num_rows=num_rows, num_columns=len(chunks), num_row_groups=1, schema=schema, row_group=lambda number: group
    )


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (metadata(chunk(num_values=9)), "column x has 9 values, the row group 10 rows"),
        (metadata(chunk(num_values=9), max_repetition_level=1), "column x has 9 values, the row group 10 rows"),
        (metadata(chunk(data_page_offset=51)), "column chunks lie at 51 to 101, the data at 4 to 100"),
        (metadata(chunk(data_page_offset=0)), "column chunks lie at 0 to 50"),
        (metadata(chunk(), chunk(data_page_offset=53, total_compressed_size=9)), "two column chunks overlap at 53"),
        (metadata(chunk(total_compressed_size=-1)), "column x lies at 4, -1 bytes"),
        (
            metadata(chunk(has_dictionary_page=True, dictionary_page_offset=4, data_page_offset=60)),
            "column x lies at 4, 50 bytes, its data at 60",
        ),
        (metadata(chunk(path_in_schema="y")), r"a column is x \(INT64\) in its schema, y \(INT64\) in its data"),
    ],
)
def test_each_contradiction_is_named(found: Any, message: str) -> None:
    with pytest.raises(DataError, match=f"log: its Parquet footer is damaged: {message}|log, row group 0: .*{message}"):
        check_metadata(found, 100, where="log")


def test_numbers_that_agree_are_accepted() -> None:
    check_metadata(metadata(chunk(), chunk(data_page_offset=54, total_compressed_size=46)), 100, where="log")
    check_metadata(metadata(chunk(num_values=12), max_repetition_level=1), 100, where="log")


@pytest.mark.parametrize(
    "options", [{}, {"version": "1.0"}, {"coerce_timestamps": "ms"}, {"use_deprecated_int96_timestamps": True}]
)
def test_schemas_agree_however_a_writer_stores_the_values(tmp_path: Path, options: dict[str, Any]) -> None:
    import decimal

    values = {
        "text": pa.array(["a"], pa.string_view()),
        "large": pa.array([["a"]], pa.large_list(pa.large_string())),
        "words": pa.array(["a"]).dictionary_encode(),
        "when": pa.array([1_000_000_000], pa.timestamp("us", "Europe/Zurich")),
        "day": pa.array([86_400_000], pa.date64()),
        "took": pa.array([5], pa.duration("s")),
        "half": pa.array([0.5], pa.float16()),
        "cost": pa.array([decimal.Decimal("1.5")], pa.decimal256(20, 2)),
        "place": pa.array([{"x": 1, "y": [2]}]),
        "map": pa.array([[("a", 1)]], pa.map_(pa.string(), pa.int8())),
        "fixed": pa.array([[1, 2]], pa.list_(pa.int8(), 2)),
        "uuid": pa.ExtensionArray.from_storage(pa.uuid(), pa.array([b"0" * 16], pa.binary(16))),
        "none": pa.nulls(1),
    }
    pq.write_table(pa.table(values), tmp_path / "a.parquet", **options)
    check_schema(pq.read_metadata(tmp_path / "a.parquet"), where="log")


def test_our_own_logs_carry_a_digest_that_other_readers_pass_over(tmp_path: Path) -> None:
    with ParquetLogWriter(tmp_path / "log", schema=ROWS.schema, rows_per_group=300) as writer:
        writer.write(ROWS)
    (path,) = writer.files
    footer = read_footer(file(path))
    assert footer.is_sealed
    assert pq.read_table(path).equals(ROWS)
    raw = path.read_bytes()
    length = int.from_bytes(raw[-8:-4], "little")
    for place in (len(raw) - 8 - length, len(raw) - 9, len(raw) - 100):
        path.write_bytes(raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :])
        with pytest.raises(DataError, match="its Parquet footer is damaged: its digest is"):
            read_footer(file(path))


def test_statistics_without_a_digest_are_not_believed(tmp_path: Path) -> None:
    path = plain_log(tmp_path / "a.parquet")
    clock = TimestampColumn(name="time", unit="s")
    assert time_bounds(read_footer(file(path)), 0, clock) is None
    seal_footer(path)
    assert time_bounds(read_footer(file(path)), 0, clock) == (0, 999_000_000)


@pytest.mark.parametrize("key", [b"headrace.layout", b"headrace.sources"])
@pytest.mark.parametrize("value", [b"\xff\xfe", b"{", b"[]", b"null", b'{"row_bytes_on_disk": 3}'])
def test_damaged_notes_of_clustering_are_one_line_or_ignored(tmp_path: Path, key: bytes, value: bytes) -> None:
    path = plain_log(tmp_path / "a.parquet", ROWS.replace_schema_metadata({key: value}))
    if key == b"headrace.layout":
        with pytest.raises(DataError, match=r"a\.parquet: its (layout|Parquet footer) cannot be read"):
            read_footer(file(path))
    else:
        assert read_footer(file(path)).row_bytes_on_disk == {}


def broken(*_: object, **__: object) -> Any:
    raise pa.ArrowInvalid("a mistake of our own")


@pytest.mark.parametrize(
    ("place", "name", "command"),
    [
        (keys, "widened", lambda path: list(keys.read_keys([(0, read_footer(file(path)))], SESSIONS, USER, CONFIG))),
        (blocks, "_complete", lambda path: inspect_log(path)),
        (metadata_module, "cast_times", lambda path: find_windows(path, SESSIONS, Cursor(), EVERY_SECOND)),
    ],
)
def test_our_own_mistakes_are_never_called_damage_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: Any, name: str, command: Any
) -> None:
    path = plain_log(tmp_path / "a.parquet", row_group_size=300)
    monkeypatch.setattr(place, name, broken)
    with pytest.raises(pa.ArrowInvalid, match="a mistake of our own"):
        command(path)


def fuzzing() -> Any:
    path = Path(__file__).parents[3] / "scripts" / "fuzz_footers.py"
    spec = importlib.util.spec_from_file_location("fuzz_footers", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_flipped_bits_in_footers_are_refused_or_change_nothing(tmp_path: Path) -> None:
    script = fuzzing()
    pq.write_table(script.table(), tmp_path / "a.parquet", row_group_size=100)
    counts = script.fuzz(tmp_path / "a.parquet", 60, seed=3)
    assert set(counts) == {"refused", "same"}
    with ParquetLogWriter(tmp_path / "ours", schema=script.table().schema, rows_per_group=100) as writer:
        writer.write(script.table())
    assert script.fuzz(writer.files[0], 60, seed=4) == {"refused": 60}


def test_a_column_called_plain_whose_sizes_differ_is_refused() -> None:
    sizes = {"total_compressed_size": 50, "total_uncompressed_size": 60}
    check_codecs(metadata(chunk(**sizes, compression="SNAPPY")), 0, [0], where="log")
    with pytest.raises(DataError, match=r"^log, row group 0: .* column x is not compressed, but its sizes differ"):
        check_codecs(metadata(chunk(**sizes, compression="UNCOMPRESSED")), 0, [0], where="log")
