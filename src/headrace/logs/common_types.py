"""The common type of a column that files store with different types, and widening of values to it.

=============================  ===================================================================================
stored as                      common type
=============================  ===================================================================================
null and X                     X
dictionaries, views, large_*   as their values: text, binary, list
integers                       the narrowest that holds both; int64 and uint64: decimal128(20, 0)
bool and a number              the number: 0 and 1
integer and float              float64
float and float                the wider one
decimal and integer            a decimal that holds both
decimal and float              float64
dates, timestamps              timestamp of the finer unit, in UTC if one of them has a time zone
text and any other value       text: numbers in digits, booleans as 0 and 1, times in ISO 8601
binary and any other value     binary, text as UTF-8
a number and a time            text
lists                          list of the common type of their elements
structs                        struct of all fields, each with its common type
a list and a single value      none
=============================  ===================================================================================
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import reduce

import numpy as np
import pyarrow as pa
import pyarrow.types as pt

from headrace.logs.casting import list_lengths
from headrace.logs.gathering import is_list

__all__ = ["common_type", "normal_type", "widen"]

UNITS = ("s", "ms", "us", "ns")

INTEGER_DIGITS = {8: 3, 16: 5, 32: 10, 64: 20}
"""Decimal digits of an integer, by its bits."""


def normal_type(kind: pa.DataType) -> pa.DataType:
    """Normalise a type: dictionaries to their values, large types and views to the plain ones."""
    if pt.is_primitive(kind):
        return kind
    if pt.is_dictionary(kind):
        return normal_type(kind.value_type)
    if is_list(kind):
        return pa.list_(normal_type(kind.value_type))
    if pt.is_fixed_size_list(kind):
        return pa.list_(normal_type(kind.value_type), kind.list_size)
    if pt.is_struct(kind):
        return pa.struct([field.with_type(normal_type(field.type)) for field in kind])
    if pt.is_map(kind):
        return pa.map_(normal_type(kind.key_type), normal_type(kind.item_type))
    if pt.is_large_string(kind) or pt.is_string_view(kind):
        return pa.string()
    if pt.is_large_binary(kind) or pt.is_binary_view(kind):
        return pa.binary()
    return kind


def common_type(kinds: Iterable[pa.DataType]) -> pa.DataType | None:
    """The narrowest type that can represent the values of all these types, or None.

    Args:
        kinds: At least one type; their order does not matter.
    """
    return reduce(_join, map(normal_type, kinds))


def widen(array: pa.Array, kind: pa.DataType) -> pa.Array:
    """Cast a column to a common type.

    Raises:
        pa.ArrowInvalid: The type cannot represent a value exactly (an integer beyond 2^53 as float64, a year outside
            the range of nanoseconds).
        pa.ArrowNotImplementedError: The type is not a common type for the column.
    """
    if array.type.equals(kind):
        return array
    if pt.is_dictionary(array.type):
        return widen(array.cast(array.type.value_type), kind)
    if pt.is_null(array.type):
        return pa.nulls(len(array), kind)
    if pt.is_list(kind):
        elements = widen(array.flatten(), kind.value_type)
        offsets = np.zeros(len(array) + 1, dtype=np.int64)
        np.cumsum(list_lengths(array), out=offsets[1:])
        mask = array.is_null() if array.null_count else None
        return pa.ListArray.from_arrays(pa.array(offsets).cast(pa.int32()), elements, type=kind, mask=mask)
    if pt.is_struct(kind):
        inside = dict(zip((field.name for field in array.type), array.flatten(), strict=True))
        fields = [
            widen(inside[field.name], field.type) if field.name in inside else pa.nulls(len(array), field.type)
            for field in kind
        ]
        return pa.StructArray.from_arrays(fields, fields=list(kind), mask=array.is_null())
    if isinstance(array.type, pa.BaseExtensionType):
        array = array.storage
    if pt.is_string(kind) or pt.is_binary(kind):
        return _as_text(array).cast(kind)
    if pt.is_boolean(array.type):
        array = array.cast(pa.int8())
    return array.cast(kind)


def _as_text(array: pa.Array) -> pa.Array:
    kind = array.type
    if pt.is_boolean(kind):
        array = array.cast(pa.int8())
    elif pt.is_floating(kind):
        array = array.cast(pa.float64())  # the digits of the stored value, not of the shortest float32
    elif _is_bytes(normal_type(kind)):
        return array.cast(pa.binary())
    return array.cast(pa.string())


def _join(one: pa.DataType | None, other: pa.DataType | None) -> pa.DataType | None:
    if one is None or other is None:
        return None
    if one.equals(other) or pt.is_null(other):
        return one
    if pt.is_null(one):
        return other
    if _is_any_list(one) and _is_any_list(other):
        item = _join(normal_type(one.value_type), normal_type(other.value_type))
        if item is None:
            return None
        return pa.list_(item)
    if pt.is_struct(one) and pt.is_struct(other):
        return _join_structs(one, other)
    if isinstance(one, pa.BaseExtensionType) or isinstance(other, pa.BaseExtensionType):
        return _join(_storage(one), _storage(other))
    if pt.is_nested(one) or pt.is_nested(other):
        return None
    return _join_values(one, other)


def _join_structs(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    kinds: dict[str, pa.DataType | None] = {}
    for field in [*one, *other]:
        kind = normal_type(field.type)
        kinds[field.name] = _join(kinds[field.name], kind) if field.name in kinds else kind
    if None in kinds.values() or len(kinds) < max(one.num_fields, other.num_fields):
        return None
    return pa.struct(list(kinds.items()))


def _join_values(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    if _is_bytes(one) or _is_bytes(other):
        return pa.binary()
    if _is_number(one) and _is_number(other):
        return _join_numbers(one, other)
    if (pt.is_timestamp(one) or pt.is_date(one)) and (pt.is_timestamp(other) or pt.is_date(other)):
        return _join_times(one, other)
    for is_kind, make in ((pt.is_duration, pa.duration), (pt.is_time, _time_of_day)):
        if is_kind(one) and is_kind(other):
            return make(max(one.unit, other.unit, key=UNITS.index))
    return pa.string()


def _join_numbers(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    for number, more in ((one, other), (other, one)):
        if pt.is_boolean(number):
            return more
    if pt.is_integer(one) and pt.is_integer(other):
        return _join_integers(one, other)
    if pt.is_floating(one) and pt.is_floating(other):
        return max(one, other, key=lambda kind: kind.bit_width)
    if pt.is_floating(one) or pt.is_floating(other):
        return pa.float64()
    (whole, scale), (other_whole, other_scale) = _digits(one), _digits(other)
    precision = max(whole, other_whole) + max(scale, other_scale)
    if precision > 76:
        return pa.float64()
    return (pa.decimal128 if precision <= 38 else pa.decimal256)(precision, max(scale, other_scale))


def _join_integers(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    wide, narrow = sorted((one, other), key=lambda kind: (-kind.bit_width, pt.is_unsigned_integer(kind)))
    if pt.is_signed_integer(wide) and (pt.is_signed_integer(narrow) or wide.bit_width > narrow.bit_width):
        return wide
    if pt.is_unsigned_integer(one) and pt.is_unsigned_integer(other):
        return wide
    return {8: pa.int16(), 16: pa.int32(), 32: pa.int64(), 64: pa.decimal128(20, 0)}[wide.bit_width]


def _join_times(one: pa.DataType, other: pa.DataType) -> pa.DataType:
    times = [kind for kind in (one, other) if pt.is_timestamp(kind)]
    if not times:
        return pa.date32()
    unit = max((kind.unit for kind in times), key=UNITS.index)
    zones = {kind.tz for kind in times}
    return pa.timestamp(unit, zones.pop() if len(zones) == 1 else "UTC")


def _time_of_day(unit: str) -> pa.DataType:
    return pa.time32(unit) if unit in ("s", "ms") else pa.time64(unit)


def _digits(kind: pa.DataType) -> tuple[int, int]:
    """Digits before and after the decimal point."""
    return (INTEGER_DIGITS[kind.bit_width], 0) if pt.is_integer(kind) else (kind.precision - kind.scale, kind.scale)


def _storage(kind: pa.DataType) -> pa.DataType:
    return normal_type(kind.storage_type) if isinstance(kind, pa.BaseExtensionType) else kind


def _is_any_list(kind: pa.DataType) -> bool:
    return is_list(kind) or bool(pt.is_fixed_size_list(kind))


def _is_bytes(kind: pa.DataType) -> bool:
    return bool(pt.is_binary(kind) or pt.is_fixed_size_binary(kind))


def _is_number(kind: pa.DataType) -> bool:
    return bool(pt.is_boolean(kind) or pt.is_integer(kind) or pt.is_floating(kind) or pt.is_decimal(kind))
