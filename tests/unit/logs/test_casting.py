"""Casting columns: one unreadable value costs one row, and what is readable means the same whatever is beside it."""

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.logs.casting import cast_lists, cast_rows, cast_times, to_time_us

INTEGERS = st.integers(-(2**63), 2**63 - 1)
WORDS = st.one_of(
    INTEGERS.map(str),
    INTEGERS.map(lambda n: f" {n}\t"),
    st.sampled_from(["", " ", "x", "1.5", "1e3", str(2**63), str(2**64 - 1), str(2**64), "-"]),
)


def integer_in(word: str | None) -> tuple[int | None, bool]:
    """(value, bad) by the plainest definition there is."""
    if word is None or not word.strip():
        return None, False
    try:
        value = int(word)
    except ValueError:
        return None, True
    if 2**63 <= value < 2**64:
        return value - 2**64, False  # the same bits
    return (value, False) if -(2**63) <= value < 2**63 else (None, True)


def both(result: tuple[pa.Array, Any], num_rows: int) -> tuple[list[Any], list[bool]]:
    values, bad = result
    return values.to_pylist(), [False] * num_rows if bad is None else bad.tolist()


@given(st.lists(st.one_of(st.none(), WORDS), max_size=40), st.sampled_from(["plain", "large", "dictionary"]))
def test_strings_become_integers_one_by_one(words: list[str | None], encoding: str) -> None:
    array = pa.array(words, pa.large_string() if encoding == "large" else pa.string())
    array = array.dictionary_encode() if encoding == "dictionary" else array
    expected = [integer_in(word) for word in words]
    values, bad = both(cast_rows(array, pa.int64()), len(words))
    assert values == [value for value, _ in expected]
    assert bad == [is_bad for _, is_bad in expected]


@given(st.lists(st.one_of(st.none(), st.floats(), INTEGERS.map(float)), max_size=40))
def test_floats_become_integers_where_they_are_whole(numbers: list[float | None]) -> None:
    values, bad = both(cast_rows(pa.array(numbers, pa.float64()), pa.int64()), len(numbers))
    for number, value, is_bad in zip(numbers, values, bad, strict=True):
        if number is None or math.isnan(number):
            assert (value, is_bad) == (None, False)
        elif number.is_integer() and -(2.0**63) <= number < 2.0**64:
            assert (value, is_bad) == (int(number) - (2**64 if number >= 2.0**63 else 0), False)
        else:
            assert (value, is_bad) == (None, True)


@given(st.lists(st.one_of(st.none(), st.lists(WORDS, max_size=4)), max_size=20), st.integers(0, 3))
def test_lists_are_bad_where_an_element_is(lists: list[list[str] | None], skipped: int) -> None:
    array = pa.array([["x", "1"]] * skipped + lists, pa.large_list(pa.string())).slice(skipped)
    values, bad = both(cast_lists(array, pa.int64()), len(lists))
    assert array.type.value_type == pa.string()
    for words, value, is_bad in zip(lists, values, bad, strict=True):
        expected = None if words is None else [integer_in(word) for word in words]
        assert value == (None if expected is None else [number for number, _ in expected])
        assert is_bad == any(element_bad for _, element_bad in expected or [])


@pytest.mark.parametrize(
    ("array", "target", "values", "bad"),
    [
        (pa.array([2**64 - 1], pa.uint64()), pa.int64(), [-1], [False]),
        (pa.array([2**60 + 1]), pa.float64(), [float(2**60)], [False]),
        (pa.array([True, None]), pa.float32(), [1.0, None], [False, False]),
        (pa.array([{"a": 1}, None]), pa.float64(), [None, None], [True, False]),
        (pa.nulls(2), pa.int64(), [None, None], [False, False]),
        (pa.array(["inf", "-1e-3", "0,5"]), pa.float64(), [math.inf, -0.001, None], [False, False, True]),
        (pa.array([b"ok", b"\xff"]), pa.string(), ["ok", None], [False, True]),
        (pa.array([5, None]), pa.string(), ["5", None], [False, False]),
    ],
)
def test_other_types(array: pa.Array, target: pa.DataType, values: list[Any], bad: list[bool]) -> None:
    assert both(cast_rows(array, target), len(values)) == (values, bad)


@pytest.mark.parametrize(
    "array",
    [
        pa.array([[1, 2], [3, 4]], pa.list_(pa.int32(), 2)),
        pa.array([[1, 2], [3, 4]], pa.list_view(pa.int64())),
        pa.array([[1, 2], [3, 4]], pa.list_(pa.uint64())),
        pa.array([[1.0, 2.0], [3.0, 4.0]], pa.large_list(pa.float64())),
        pa.array([["1", "2"], ["3", "4"]], pa.list_(pa.dictionary(pa.int8(), pa.string()))),
    ],
    ids=lambda array: str(array.type),
)
def test_lists_of_all_kinds(array: pa.Array) -> None:
    lists, bad = cast_lists(array, pa.int64())
    assert (lists.type, lists.to_pylist(), bad) == (pa.list_(pa.int64()), [[1, 2], [3, 4]], None)


def test_what_is_no_list_is_bad_unless_null() -> None:
    assert both(cast_lists(pa.array(["1,2", None]), pa.int64()), 2) == ([None, None], [True, False])
    assert both(cast_lists(pa.nulls(1), pa.int64()), 1) == ([None], [False])


def test_times_written_in_several_ways() -> None:
    words = [
        "1970-01-01",
        "1970-01-01 00:00:01",
        "1970-01-01T00:00:01.5",
        "1970-01-01T00:00:01.123456789",
        "1970-01-01T02:00:00+02:00",
        "1970-01-01T00:00:03.123456789Z",
        "4000",
        "noon",
        "",
        None,
    ]
    ticks, bad = both(cast_times(pa.array(words), "ms"), len(words))
    assert ticks == [0, 1000, 1500, 1123, 0, 3123, 4000, None, None, None]
    assert bad == [word == "noon" for word in words]


def test_times_of_other_types() -> None:
    assert cast_times(pa.array([19_000], pa.date32()), "s")[0].to_pylist() == [19_000 * 86_400]
    assert cast_times(pa.array([1.9, None, math.nan]), "s")[0].to_pylist() == [1, None, None]
    assert cast_times(pa.array([7], pa.int32()), "s")[0].to_pylist() == [7]


def test_ticks_become_microseconds_without_overflow() -> None:
    top = 2**63 - 1
    assert to_time_us(pa.array([1, -1, None, top, -top]), "s").tolist() == [
        1_000_000,
        -1_000_000,
        0,
        top // 1_000_000 * 1_000_000,
        -(top // 1_000_000) * 1_000_000,
    ]
    assert to_time_us(pa.array([1999, -1]), "ns").tolist() == [1, -1]
    assert to_time_us(pa.array([3]), "us").dtype == np.int64
