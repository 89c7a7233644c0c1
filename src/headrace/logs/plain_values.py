"""Converts any Arrow column to JSON-able values; never raises, so that no row is lost."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.logs.canonical import canonical, is_list, is_text

__all__ = ["plain_values"]

Values = list[Any]


def plain_values(array: pa.Array) -> Values:
    """Convert a column to values of type None, bool, int, finite float, str, list or dict.

    Infinities, NaN, times, decimals and UUIDs become text. Bytes also become text; bytes that are not UTF-8 become lone
    surrogates U+DC80 to U+DCFF, as in Python's file names, so that `text.encode("utf-8", "surrogateescape")` restores
    them. Other values become their Python representation, or else the name of their type.
    """
    try:
        return _converter(array.type)(array)
    except Exception:  # several of Arrow's conversions to Python raise for values out of range
        return [_shown_value(array, row) for row in range(len(array))]


def _converter(kind: pa.DataType) -> Callable[[pa.Array], Values]:
    if isinstance(kind, pa.BaseExtensionType):
        return _extension
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return _shared
    if is_text(kind) or pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_fixed_size_binary(kind):
        return _text
    if pt.is_binary_view(kind):
        return _text
    if pt.is_floating(kind):
        return _floats
    if pt.is_decimal(kind) or (pt.is_temporal(kind) and not pt.is_interval(kind)):
        return lambda array: array.cast(pa.string()).to_pylist()
    if is_list(kind):
        return _lists
    if pt.is_map(kind):
        return _maps
    if pt.is_struct(kind):
        return _structs
    return lambda array: [_plain(value) for value in array.to_pylist()]


def _extension(array: pa.ExtensionArray) -> Values:
    if array.type.extension_name in ("arrow.uuid", "arrow.bool8"):
        return plain_values(canonical(array).values)
    return plain_values(array.storage)


def _shared(array: pa.Array) -> Values:
    if pt.is_dictionary(array.type):
        unique, rows = plain_values(array.dictionary), array.indices.to_pylist()
    else:
        unique, ends = plain_values(array.values), array.run_ends.to_numpy(zero_copy_only=False)
        rows = np.searchsorted(ends, np.arange(len(array)) + array.offset, side="right").tolist()
    return [None if row is None else unique[row] for row in rows]


def _text(array: pa.Array) -> Values:
    if is_text(array.type) or pt.is_binary_view(array.type):
        array = array.cast(pa.large_binary())
    return [None if value is None else value.decode("utf-8", "surrogateescape") for value in array.to_pylist()]


def _floats(array: pa.Array) -> Values:
    return [
        value if value is None or math.isfinite(value) else str(value) for value in array.cast(pa.float64()).to_pylist()
    ]


def _lists(array: pa.Array) -> Values:
    return _cut(array, plain_values(array.flatten()), pc.list_value_length(array).to_pylist())


def _maps(array: pa.MapArray) -> Values:
    offsets = array.offsets.to_pylist()
    pairs = [list(pair) for pair in zip(plain_values(array.keys), plain_values(array.items), strict=True)]
    valid = array.is_valid().to_pylist()
    spans = zip(offsets[:-1], offsets[1:], valid, strict=True)
    return [pairs[start:stop] if is_valid else None for start, stop, is_valid in spans]


def _structs(array: pa.StructArray) -> Values:
    names = [field.name for field in array.type]
    columns = [plain_values(column) for column in array.flatten()]
    valid = array.is_valid().to_pylist()
    return [
        dict(zip(names, (column[row] for column in columns), strict=True)) if is_valid else None
        for row, is_valid in enumerate(valid)
    ]


def _cut(array: pa.Array, elements: Values, lengths: list[int | None]) -> Values:
    rows: Values = []
    start = 0
    for length in lengths:
        rows.append(None if length is None else elements[start : start + length])
        start += length or 0
    return rows


def _shown_value(array: pa.Array, row: int) -> Any:
    try:
        return _plain(array[row].as_py())
    except Exception:
        return f"<{array.type}>"


def _plain(value: Any) -> Any:
    """Convert a Python value from Arrow to a JSON-able value."""
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, bytes):
        return value.decode("utf-8", "surrogateescape")
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return str(value)
