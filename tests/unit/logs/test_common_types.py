"""The common type of columns: the table in the module, on both sides of each pair, and values that survive it."""

from __future__ import annotations

from decimal import Decimal
from itertools import product

import pyarrow as pa
import pytest

from headrace.logs.common_types import common_type, normal_type, widen

UTC_US = pa.timestamp("us", "UTC")

TABLE = [
    (pa.null(), pa.uuid(), pa.uuid()),
    (pa.null(), pa.list_(pa.int8()), pa.list_(pa.int8())),
    (pa.bool_(), pa.int8(), pa.int8()),
    (pa.bool_(), pa.float32(), pa.float32()),
    (pa.int8(), pa.int64(), pa.int64()),
    (pa.uint8(), pa.uint32(), pa.uint32()),
    (pa.uint8(), pa.int8(), pa.int16()),
    (pa.uint32(), pa.int8(), pa.int64()),
    (pa.uint8(), pa.int64(), pa.int64()),
    (pa.uint64(), pa.int64(), pa.decimal128(20, 0)),
    (pa.int8(), pa.float32(), pa.float64()),
    (pa.float16(), pa.float32(), pa.float32()),
    (pa.decimal128(10, 3), pa.int32(), pa.decimal128(13, 3)),
    (pa.decimal128(10, 3), pa.decimal128(5, 5), pa.decimal128(12, 5)),
    (pa.decimal128(38, 0), pa.decimal128(10, 3), pa.decimal256(41, 3)),
    (pa.decimal128(38, 0), pa.float32(), pa.float64()),
    (pa.date32(), pa.timestamp("ms"), pa.timestamp("ms")),
    (pa.date32(), pa.date64(), pa.date32()),
    (pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("ns")),
    (pa.timestamp("us"), pa.timestamp("ms", "Europe/Berlin"), UTC_US),
    (pa.time32("s"), pa.time64("us"), pa.time64("us")),
    (pa.duration("s"), pa.duration("ms"), pa.duration("ms")),
    (pa.string(), pa.large_string(), pa.string()),
    (pa.dictionary(pa.int32(), pa.string()), pa.string_view(), pa.string()),
    (pa.int64(), pa.string(), pa.string()),
    (pa.timestamp("us"), pa.int64(), pa.string()),
    (pa.binary(16), pa.large_binary(), pa.binary()),
    (pa.binary_view(), pa.binary(), pa.binary()),
    (pa.uuid(), pa.binary(16), pa.binary(16)),
    (pa.string(), pa.binary(), pa.binary()),
    (pa.list_(pa.null()), pa.large_list(pa.int32()), pa.list_(pa.int32())),
    (pa.list_(pa.int32(), 2), pa.list_(pa.int32(), 3), pa.list_(pa.int32())),
    (pa.list_(pa.bool_()), pa.list_(pa.string()), pa.list_(pa.string())),
    (
        pa.struct({"a": pa.int8()}),
        pa.struct({"a": pa.int64(), "b": pa.string()}),
        pa.struct({"a": pa.int64(), "b": pa.string()}),
    ),
    (pa.list_(pa.int64()), pa.int64(), None),
    (pa.struct({"a": pa.int8()}), pa.int64(), None),
]


@pytest.mark.parametrize(("one", "other", "expected"), TABLE)
def test_the_common_type_is_that_of_the_table_in_either_order(
    one: pa.DataType, other: pa.DataType, expected: pa.DataType | None
) -> None:
    assert common_type([one, other]) == expected
    found = common_type([other, one])
    assert found == expected
    if expected is not None:
        assert common_type([one, other, expected]) == expected
        assert widen(pa.nulls(3, one), expected).equals(pa.nulls(3, expected))


VALUES = {
    pa.bool_(): [True, None, False],
    pa.uint8(): [1, None, 0],
    pa.int64(): [-5, None, 7],
    pa.float64(): [0.5, None, 3.0],
    pa.decimal128(6, 2): [Decimal("1.50"), None, Decimal("-2.00")],
    pa.string(): ["x", None, "7"],
    pa.timestamp("ms"): [0, None, 1_700_000_000_000],
    pa.date32(): [0, None, 20_000],
    pa.binary(): [b"\xff", None, b""],
    pa.binary(2): [b"\xff\x00", None, b"ab"],
}


@pytest.mark.parametrize(("one", "other"), list(product(VALUES, VALUES)))
def test_values_of_any_two_types_survive_their_common_type(one: pa.DataType, other: pa.DataType) -> None:
    kind = common_type([one, other])
    assert kind is not None
    array = pa.array(VALUES[one], one)
    wide = widen(array, kind)
    assert wide.type == kind
    assert wide.is_null().to_pylist() == [False, True, False]
    assert len(set(wide.to_pylist())) == 3
    lists = widen(pa.array([VALUES[one], None, []], pa.large_list(one)).slice(0, 2), pa.list_(kind))
    assert lists.to_pylist() == [wide.to_pylist(), None]


def test_numbers_and_times_as_text_are_read_back_as_they_were() -> None:
    assert widen(pa.array([True, False]), pa.string()).to_pylist() == ["1", "0"]
    assert widen(pa.array([3.0, 0.1]), pa.string()).to_pylist() == ["3", "0.1"]
    assert widen(pa.array([0.1], pa.float32()), pa.string()).cast(pa.float64()).cast(pa.float32())[0].as_py() == (
        pa.scalar(0.1, pa.float32()).as_py()
    )
    assert widen(pa.array([0], UTC_US), pa.string()).to_pylist() == ["1970-01-01 00:00:00.000000Z"]


def test_an_integer_that_a_float_cannot_hold_is_refused() -> None:
    with pytest.raises(pa.ArrowInvalid, match="9007199254740993"):
        widen(pa.array([2**53 + 1]), pa.float64())


def test_structs_get_the_fields_they_lack() -> None:
    array = pa.array([{"a": 1}, None])
    kind = pa.struct({"a": pa.float64(), "b": pa.string()})
    assert widen(array, kind).to_pylist() == [{"a": 1.0, "b": None}, None]


def test_normal_types_have_no_wrapping() -> None:
    wrapped = pa.dictionary(pa.int32(), pa.large_string())
    assert normal_type(pa.large_list(wrapped)) == pa.list_(pa.string())
    assert normal_type(pa.uuid()) == pa.uuid()
