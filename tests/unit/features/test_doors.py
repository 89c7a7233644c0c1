"""A value becomes the same feature whichever way it comes in: from Parquet, a table, or rows given to the plan."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.errors import DataError
from headrace.features import FeaturePlan
from headrace.logs import BadRowPolicy, ParquetSource, Schema, list_files, select_files
from headrace.logs.arrow_source import ArrowSource
from headrace.logs.source import ROW_ID, Source
from headrace.pipeline.sources import to_record_batch

SCHEMA = Schema.from_dict(
    {
        "labels": [{"name": "click", "allowed": None}],
        "dense": ["price"],
        "ids": ["user", {"name": "country", "type": "string"}],
        "id_lists": [{"name": "history", "weights": "scores"}, {"name": "tags", "type": "string"}],
        "weight": "importance",
        "timestamp": {"name": "time", "unit": "ms"},
        "session_id": "session",
    },
    where="schema",
)
PLAN = FeaturePlan.from_config(
    {
        "dense": {
            "price": ["log1p"],
            "no_price": {"from": "price", "ops": ["is_null"]},
            "price_in_tens": {"from": "price", "ops": [{"standardize": {"mean": 5, "std": 10}}]},
            "hour": {"from": "time", "ops": ["local_hour", {"cast": "number"}]},
        },
        "sparse": {
            **dict.fromkeys(("user", "country", "history", "tags", "time", "session")),
            "scores": [{"bucketize": [0.1, 2.0**24, 2.0**30]}],  # borders that float32 moves values across
        },
    },
    SCHEMA,
)
NEUTRAL = {
    "price": 1.0,
    "user": 1,
    "country": "de",
    "history": [1],
    "scores": [0.5],
    "tags": ["a"],
    "time": 0,
    "session": 1,
    "importance": 1.0,
    "click": 0,
}
LISTS = ("history", "scores", "tags")

SECONDS = 2.0**30 + 1
"""A log whose milliseconds look like seconds is refused as a whole."""

VALUES: dict[str, tuple[Any, ...]] = {
    "text": ("5", "", " 7 ", "x", None, "18446744073709551615", "2024-01-01T00:00:00.5", "caf\u00e9"),
    "bytes": (b"5", b"", b" 7 ", b"\xe9", None, b"2024-01-01"),
    "integers": (5, -1, None, 2**40, 2**24 + 1),
    "large": (2**64 - 1, 2**63, 5, None),
    "floats": (5.0, 7.5, None, -3.0, 0.1, SECONDS),
    "half floats": (5.0, 7.5, None, -3.0),
    "decimals": (Decimal("5"), Decimal("7.50"), None, Decimal(2**63)),
    "booleans": (True, False, None),
}
KINDS: dict[str, tuple[pa.DataType, ...]] = {
    "text": (pa.string(), pa.large_string(), pa.string_view(), pa.dictionary(pa.int8(), pa.string())),
    "bytes": (pa.binary(), pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())),
    "integers": (pa.int64(), pa.timestamp("ms"), pa.timestamp("us", "UTC"), pa.decimal128(30, 0)),
    "large": (pa.uint64(), pa.decimal128(38, 3)),
    "floats": (pa.float32(), pa.float64()),
    "half floats": (pa.float16(),),
    "decimals": (pa.decimal128(38, 2), pa.decimal256(50, 2)),
    "booleans": (pa.bool_(),),
}


@st.composite
def columns(draw: st.DrawFn) -> tuple[str, pa.Array]:
    name = draw(st.sampled_from(sorted(NEUTRAL)))
    family = draw(st.sampled_from(sorted(VALUES)))
    kind = draw(st.sampled_from(KINDS[family]))
    known = [value for value in VALUES[family] if name != "time" or value != SECONDS]
    values = draw(st.lists(st.sampled_from(known), min_size=1, max_size=4))
    array = pa.array(values, kind)
    if name in LISTS:
        make, index = draw(st.sampled_from([(pa.ListArray, pa.int32()), (pa.LargeListArray, pa.int64())]))
        array = make.from_arrays(pa.array(range(len(array) + 1), index), array)
    return name, array


def batch_with(name: str, array: pa.Array) -> pa.RecordBatch:
    rows = {column: pa.array([value] * len(array)) for column, value in NEUTRAL.items()}
    return pa.record_batch(rows | {name: array} | {ROW_ID: pa.array(range(len(array)), pa.int64())})


def features_of(batch: pa.RecordBatch) -> dict[int, Any]:
    """Features, label and weight of each row by its id."""
    made = PLAN.apply(batch)
    assert made.weights is not None
    sparse = {key: rows for group in made.sparse for key, rows in group.to_lists().items()}
    numbers = np.column_stack([made.dense.numpy(), made.labels.numpy(), made.weights.numpy()]).astype(float)
    known = [[None if np.isnan(number) else round(number, 5) for number in row] for row in numbers.tolist()]
    row_ids = made.row_ids.tolist()
    return {row: (known[at], {key: rows[at] for key, rows in sparse.items()}) for at, row in enumerate(row_ids)}


def features_from(source: Source) -> dict[int, Any]:
    found: dict[int, Any] = {}
    for split in range(len(source)):
        for batch in source.read(split):
            found |= features_of(batch.rows) if batch.rows.num_rows else {}
    return found


@settings(max_examples=200, deadline=None)
@given(columns())
def test_rows_given_to_a_plan_have_the_features_of_rows_that_were_read(drawn: tuple[str, pa.Array]) -> None:
    name, array = drawn
    batch = batch_with(name, array)
    read = features_from(ArrowSource(pa.Table.from_batches([batch]), SCHEMA, policy=BadRowPolicy(policy="drop")))
    for row in range(len(array)):
        one = batch.slice(row, 1)
        if row in read:
            assert features_of(one) == {row: read[row]}
        elif name in (*LISTS, "importance") or array[row].as_py() in (None, "", b""):
            continue  # nulls in lists, missing times and negative weights are bad rows of a log; a plan takes them
        else:
            with pytest.raises(DataError, match=rf"^column {name}: row 0 of the batch: not an? "):
                features_of(one)


@settings(max_examples=25, deadline=None)
@given(columns())
def test_rows_of_parquet_have_the_features_of_rows_of_a_table(
    tmp_path_factory: pytest.TempPathFactory, drawn: tuple[str, pa.Array]
) -> None:
    if pa.types.is_float16(drawn[1].type) or "view" in str(drawn[1].type):
        return  # Arrow writes them as other types, which are drawn as well
    table = pa.Table.from_batches([batch_with(*drawn)]).drop_columns([ROW_ID])
    path: Path = tmp_path_factory.mktemp("log") / "a.parquet"
    pq.write_table(table, path)
    policy = BadRowPolicy(policy="drop")
    parquet = ParquetSource(select_files(list_files(path)), SCHEMA, policy=policy)
    assert features_from(parquet) == features_from(ArrowSource(table, SCHEMA, policy=policy))


def test_text_of_a_number_is_that_number_where_the_schema_says_so() -> None:
    rows = {name: [value] for name, value in NEUTRAL.items()}
    expected = features_of(to_record_batch(rows | {"user": [5], "history": [[5, 7]], "price": [2.0]}))
    assert features_of(to_record_batch(rows | {"user": ["5"], "history": [["5", " 7"]], "price": ["2"]})) == expected
    assert features_of(to_record_batch(rows | {"user": [5.0], "history": [[5.0, 7.0]], "price": [2]})) == expected
    text = features_of(to_record_batch(rows | {"country": ["5"]}))
    assert features_of(to_record_batch(rows | {"country": [5]})) == text
    assert features_of(to_record_batch(rows | {"country": [5.0]})) == text


@pytest.mark.parametrize("unit", ["s", "ms", "us", "ns"])
@pytest.mark.parametrize("zone", [None, "Europe/Zurich"])
def test_a_timestamp_of_another_unit_is_the_same_time(unit: str, zone: str | None) -> None:
    times = pa.array([1_700_000_000_000], pa.timestamp("ms", zone)).cast(pa.timestamp(unit, zone))
    assert features_of(batch_with("time", times)) == features_of(batch_with("time", pa.array([1_700_000_000_000])))


@pytest.mark.parametrize("name", ["scores", "importance", "click"])
def test_numbers_that_are_read_as_float32_are_rounded_before_anything_is_made_of_them(name: str) -> None:
    def features(number: float, kind: pa.DataType) -> dict[int, Any]:
        return features_of(batch_with(name, pa.array([[number] if name == "scores" else number], kind)))

    for number, wide in ((0.1, pa.float64()), (2**24 + 1, pa.int32()), (2**30 + 1, pa.uint64())):
        small = pa.float32()
        if name == "scores":
            wide, small = pa.list_(wide), pa.list_(small)
        assert features(number, wide) == features(float(np.float32(number)), small)
