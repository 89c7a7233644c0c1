"""A value means the same whatever Arrow type wraps it: in every part of a schema, with the same bad rows."""

import datetime as dt
import math
import uuid
from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import wrappings
from hypothesis import given, settings
from hypothesis import strategies as st
from wrappings import ANY, LISTS, SMALL, TEXT, WHOLE, Wrapping, elements, text_of

from headrace.logs.arrow_source import ArrowSource
from headrace.logs.canonical import canonical, canonical_type
from headrace.logs.casting import cast_rows, cast_times
from headrace.logs.checks import BadRowPolicy
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID

PARTS: dict[str, dict[str, Any]] = {
    "label": {"labels": ["x"]},
    "any label": {"labels": [{"name": "x", "allowed": None}]},
    "number": {"labels": ["y"], "dense": ["x"]},
    "number or NaN": {"labels": ["y"], "dense": [{"name": "x", "nan": "allow"}]},
    "id": {"labels": ["y"], "ids": ["x"]},
    "text id": {"labels": ["y"], "ids": [{"name": "x", "type": "string"}]},
    "weight": {"labels": ["y"], "weight": "x"},
    "time in s": {"labels": ["y"], "timestamp": {"name": "x", "unit": "s"}},
    "time in ns": {"labels": ["y"], "timestamp": {"name": "x", "unit": "ns"}},
    "session": {"labels": ["y"], "session_id": "x"},
    "row id": {"labels": ["y"], "row_id": "x"},
}
LIST_PARTS: dict[str, dict[str, Any]] = {
    "ids": {"labels": ["y"], "id_lists": [{"name": "x", "max_length": 3}]},
    "text ids": {"labels": ["y"], "id_lists": [{"name": "x", "type": "string"}]},
    "weights": {"labels": ["y"], "id_lists": [{"name": "i", "weights": "x"}]},
}

TEXTS = (
    *(None, b"", b" ", b"x", b"1", b" 0", b"-7", b"1.5", b"nan", b"inf", b"\xe9", b"caf\xc3\xa9", b"12\xff"),
    *(b"18446744073709551615", b"18446744073709551616", b"2024-01-01", b"9999-12-31T23:59:59.1234567Z"),
)
WORDS = st.sampled_from(TEXTS)
HIGH = st.none() | st.integers(0, 3) | st.integers(2**63 - 2, 2**64 - 1)
LOW = st.none() | st.integers(-3, 3) | st.integers(-(2**63), -(2**63) + 2) | st.integers(2**62, 2**63 - 1)


def read(array: pa.Array, schema: Mapping[str, Any]) -> tuple[list[Any], list[tuple[int, str, str]]]:
    """What a column becomes, row by row, and its bad rows with their reasons."""
    table = pa.table({"x": array, "y": pa.array([0] * len(array)), "i": pa.array([[1]] * len(array))})
    source = ArrowSource(
        table, Schema.from_dict(dict(schema), where="schema"), policy=BadRowPolicy(policy="quarantine")
    )
    values: list[Any] = [None] * len(array)
    bad = []
    for split in range(len(source)):
        for batch in source.read(split):
            column = batch.rows.column("x" if "x" in batch.rows.schema.names else ROW_ID)
            for place, value in enumerate(column.to_pylist()):
                values[place] = value
            bad += [(r["row"], r["column"], r["reason"]) for r in batch.rejects.to_pylist()] if batch.rejects else []
    return values, bad


@settings(max_examples=150, deadline=None)
@given(st.lists(WORDS, min_size=1, max_size=6), st.sampled_from(sorted(PARTS)), st.sampled_from(sorted(TEXT)))
def test_text_means_the_same_in_every_wrapping(words: list[bytes | None], part: str, wrapping: str) -> None:
    array = text_of(words)
    assert read(TEXT[wrapping](array), PARTS[part]) == read(array, PARTS[part])


@settings(max_examples=150, deadline=None)
@given(
    st.lists(HIGH, min_size=1, max_size=6).map(lambda values: pa.array(values, pa.uint64()))
    | st.lists(LOW, min_size=1, max_size=6).map(lambda values: pa.array(values, pa.int64())),
    st.sampled_from([part for part in sorted(PARTS) if part != "session"]),
    st.sampled_from(sorted(WHOLE)),
)
def test_whole_numbers_mean_the_same_in_every_wrapping(array: pa.Array, part: str, wrapping: str) -> None:
    # A text id is its text, zeros and spaces included.
    if part != "text id" or wrapping not in ("decimal with zeros", "text with spaces"):
        assert read(WHOLE[wrapping](array), PARTS[part]) == read(array, PARTS[part])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | st.integers(-(2**23), 2**23) | st.integers(-2, 2), min_size=1, max_size=6),
    st.sampled_from(["label", "any label", "number", "id", "weight", "time in s", "time in ns", "row id"]),
    st.sampled_from(sorted(SMALL)),
)
def test_small_numbers_mean_the_same_in_every_type(values: list[int | None], part: str, wrapping: str) -> None:
    array = pa.array(values, pa.int64())
    assert read(SMALL[wrapping](array), PARTS[part]) == read(array, PARTS[part])


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.none() | st.lists(WORDS, max_size=4), min_size=1, max_size=5),
    st.sampled_from(sorted(LIST_PARTS)),
    st.sampled_from(sorted(TEXT)),
    st.sampled_from(sorted(LISTS)),
)
def test_lists_mean_the_same_in_every_wrapping(
    lists: list[list[bytes | None] | None], part: str, inner: str, outer: str
) -> None:
    words = text_of([word for row in lists for word in row or ()])
    offsets = np.cumsum([0, *(len(row or ()) for row in lists)], dtype=np.int32)
    array = pa.ListArray.from_arrays(pa.array(offsets), words, mask=pa.array([row is None for row in lists]))
    if outer == "runs of lists":  # Arrow makes no runs of text that is not UTF-8
        inner = "binary"
    wrapped = LISTS[outer](elements(TEXT[inner])(array))
    assert read(wrapped, LIST_PARTS[part]) == read(array, LIST_PARTS[part])


TIMES = st.datetimes(dt.datetime(1, 1, 1), dt.datetime(9999, 12, 31)) | st.none()
UNITS = st.sampled_from(["s", "ms", "us", "ns"])


@settings(deadline=None)
@given(st.lists(TIMES, min_size=1, max_size=5), UNITS, UNITS, st.sampled_from(sorted(ANY)), st.booleans())
def test_a_time_is_itself_or_bad_but_never_another(
    times: list[dt.datetime | None], stored: str, wanted: str, wrapping: str, is_text: bool
) -> None:
    ticks_us = [None if t is None else (t - dt.datetime(1970, 1, 1)) // dt.timedelta(microseconds=1) for t in times]
    per_us = {"s": 10**-6, "ms": 10**-3, "us": 1, "ns": 1000}
    if is_text:
        array = pa.array([None if t is None else t.isoformat() for t in times], pa.string())
    else:
        times = [t if t is None or stored != "ns" or 1678 < t.year < 2262 else None for t in times]
        ticks_us = [us if t is not None else None for t, us in zip(times, ticks_us, strict=True)]
        coarse = {"s": 10**6, "ms": 10**3, "us": 1, "ns": 1}[stored]
        ticks_us = [None if us is None else us // coarse * coarse for us in ticks_us]
        raw = [None if us is None else us // coarse * (1000 if stored == "ns" else 1) for us in ticks_us]
        array = pa.array(raw, pa.int64()).cast(pa.timestamp(stored, "Europe/Berlin"))
    values, bad = cast_times(ANY[wrapping](array), wanted)
    for row, us in enumerate(ticks_us):
        scale = {"s": (1, 10**6), "ms": (1, 10**3), "us": (1, 1), "ns": (1000, 1)}[wanted]
        expected = None if us is None else us * scale[0] // scale[1]
        fits = expected is None or abs(expected) < 2**63
        assert values[row].as_py() == (expected if fits else None), per_us
        assert (bad is not None and bool(bad[row])) == (not fits)


@pytest.mark.parametrize(
    ("array", "reads"),
    [
        (pa.array([2**63], pa.uint64()), [None]),
        (pa.array(["9223372036854775808", "1e300"]), [None, None]),
        (pa.array([math.inf, -math.inf, math.nan, 2.0**63, -1.5]), [None, None, None, None, -2]),
        (pa.array([110_000, -800_000, None], pa.date32()), [None, None, None]),
        (pa.array([True]), [None]),
        (pa.array([5], pa.time64("us")), [None]),
        (pa.array([5], pa.duration("ns")), [None]),
        (pa.array([-1, 1_999], pa.timestamp("ns")), [-1, 1_999]),
    ],
)
def test_what_is_no_time_in_range_is_a_bad_row(array: pa.Array, reads: list[int | None]) -> None:
    values, bad = cast_times(array, "ns")
    assert values.to_pylist() == reads
    missing = [value is None or value != value for value in array.cast(pa.string()).to_pylist()]
    is_nan = [text == "nan" for text in array.cast(pa.string()).to_pylist()]
    expected = [value is None and not (m or n) for value, m, n in zip(reads, missing, is_nan, strict=True)]
    assert ([False] * len(array) if bad is None else bad.tolist()) == expected


def test_a_uuid_is_its_text() -> None:
    ids = [uuid.UUID(int=5), None, uuid.UUID("f1a4e2c8-0b1d-4e6f-9a3b-c5d7e9f10213")]
    array = pa.array([None if i is None else i.bytes for i in ids], pa.uuid())
    expected = [None if i is None else str(i) for i in ids]
    for wrapping in (lambda array: array, lambda array: array.slice(1), wrappings.run_ends):
        wrapped = wrapping(array)
        values, bad = cast_rows(wrapped, pa.string())
        assert (values.to_pylist(), bad) == (expected[len(ids) - len(wrapped) :], None)
    assert canonical_type(array.type) == pa.string()


def test_the_type_is_the_one_that_the_values_have() -> None:
    arrays = [text_of([b"a"]), pa.array([1.5], pa.float16()), pa.array([1], pa.decimal32(3, 0)), pa.array([True])]
    for array in arrays:
        for wrap in ANY.values():
            assert canonical_type(wrap(array).type) == canonical(wrap(array)).values.type
    wrapped: Wrapping = TEXT["large_string"]
    assert canonical_type(wrapped(arrays[0]).type) == pa.string()


def test_what_is_canonical_is_not_copied() -> None:
    for array in (pa.array([1, None]), pa.array(["a", None]), pa.array([0.5]), pa.array([[1], [2]])):
        assert canonical(array) == (array, None)
        assert canonical(array).values is array


def test_any_number_but_0_is_true_in_a_bool8() -> None:
    array = pa.ExtensionArray.from_storage(pa.bool8(), pa.array([0, 1, 5, -1, None], pa.int8()))
    assert canonical(array).values.equals(pa.array([False, True, True, True, None]))
