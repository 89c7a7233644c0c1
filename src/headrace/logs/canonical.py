"""Canonical forms of Arrow columns, from which all casts start.

=========================================================  ==========================================================
stored as                                                  becomes
=========================================================  ==========================================================
dictionary, run-end encoded, extension types               the values inside
UUID                                                       its text, as in `str(uuid.UUID(...))`
string, large string, string view, binary of any kind      string or large string: "" is null, bytes that are not
                                                           UTF-8 are bad
half floats                                                float32
decimals of 32 or 64 bits                                  decimal128 of the same precision and scale
=========================================================  ==========================================================

Integers, floats, booleans, times and lists are already canonical; elements of lists are handled when lists are cast.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

__all__ = [
    "Canonical",
    "Mask",
    "canonical",
    "canonical_type",
    "either",
    "is_list",
    "is_text",
    "list_lengths",
    "mask_of",
    "rows_with",
]

Mask = npt.NDArray[np.bool_]

_HEX = np.array([list(f"{byte:02x}".encode()) for byte in range(256)], dtype=np.uint8)
"""uint8 [256, 2], the two hex digits of each byte."""
_UUID_DIGITS = [place for place in range(36) if place not in (8, 13, 18, 23)]


class Canonical(NamedTuple):
    """A column in canonical form.

    Attributes:
        values: The column, with null for bad values.
        bad: Rows with unreadable values, or None if there are none.
    """

    values: pa.Array
    bad: Mask | None = None


def canonical(array: pa.Array) -> Canonical:
    """Convert a column to canonical form; returns the array itself if it is already canonical."""
    kind = array.type
    if pt.is_primitive(kind):
        return Canonical(array.cast(pa.float32()) if pt.is_float16(kind) else array)
    if is_text(kind) or _is_binary(kind):
        return _text(array)
    if isinstance(kind, pa.BaseExtensionType):
        return _storage(array)
    if pt.is_dictionary(kind):
        return _spread(array.dictionary, array.indices)
    if pt.is_run_end_encoded(kind):
        ends = array.run_ends.to_numpy(zero_copy_only=False)
        rows = np.arange(array.offset, array.offset + len(array))
        return _spread(array.values, pa.array(np.searchsorted(ends, rows, side="right")))
    if pt.is_decimal32(kind) or pt.is_decimal64(kind):
        return Canonical(array.cast(pa.decimal128(kind.precision, kind.scale)))
    return Canonical(array)


def canonical_type(kind: pa.DataType) -> pa.DataType:
    """The type that `canonical` returns for a column type, with `string` for all texts."""
    if pt.is_primitive(kind) and not pt.is_float16(kind):
        return kind
    if isinstance(kind, pa.BaseExtensionType):
        return pa.string() if _is_uuid(kind) else canonical_type(pa.bool_() if _is_bool8(kind) else kind.storage_type)
    if pt.is_dictionary(kind) or pt.is_run_end_encoded(kind):
        return canonical_type(kind.value_type)
    if is_text(kind) or _is_binary(kind):
        return pa.string()
    if pt.is_decimal32(kind) or pt.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return pa.float32() if pt.is_float16(kind) else kind


def is_text(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's strings."""
    return bool(pt.is_string(kind) or pt.is_large_string(kind) or pt.is_string_view(kind))


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's five kinds of lists."""
    return any(
        is_kind(kind)
        for is_kind in (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    )


def mask_of(array: pa.BooleanArray) -> Mask:
    """A boolean column as numpy; null is False."""
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def either(one: Mask | None, other: Mask | None) -> Mask | None:
    """The union of two masks, where None is an empty mask."""
    if one is None or other is None:
        return other if one is None else one
    return one | other


def list_lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    """Number of elements of each list; 0 for null."""
    return np.asarray(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def rows_with(lists: pa.Array, elements: Mask) -> Mask:
    """The rows that contain any of the given elements; elements are indexed over all lists."""
    rows = np.repeat(np.arange(len(lists)), list_lengths(lists))
    mask = np.zeros(len(lists), dtype=np.bool_)
    mask[rows[elements]] = True
    return mask


def _is_binary(kind: pa.DataType) -> bool:
    return bool(
        pt.is_binary(kind) or pt.is_large_binary(kind) or pt.is_binary_view(kind) or pt.is_fixed_size_binary(kind)
    )


def _is_uuid(kind: pa.BaseExtensionType) -> bool:
    return bool(kind.extension_name == "arrow.uuid")


def _is_bool8(kind: pa.BaseExtensionType) -> bool:
    return bool(kind.extension_name == "arrow.bool8")


def _storage(array: pa.ExtensionArray) -> Canonical:
    if _is_uuid(array.type):
        return Canonical(_uuid_text(array.storage))
    if _is_bool8(array.type):
        return Canonical(pc.not_equal(array.storage, 0))
    return canonical(array.storage)


def _spread(values: pa.Array, rows: pa.Array) -> Canonical:
    """Make shared values canonical once, then expand them to rows."""
    unique, bad = canonical(values)
    if is_list(unique.type):  # Arrow's take does not support lists of unsupported elements
        unique, bad_elements = _lists_of_canonical(unique)
        bad = either(bad, bad_elements)
    spread = unique.take(rows)
    if bad is None:
        return Canonical(spread)
    places = rows.cast(pa.int64()).fill_null(len(bad)).to_numpy(zero_copy_only=False)
    mask = np.append(bad, False)[places]
    return Canonical(spread, mask if mask.any() else None)


def _lists_of_canonical(lists: pa.Array) -> Canonical:
    elements, bad = canonical(lists.flatten())
    offsets = np.zeros(len(lists) + 1, dtype=np.int64)
    np.cumsum(list_lengths(lists), out=offsets[1:])
    mask = lists.is_null() if lists.null_count else None
    made = pa.LargeListArray.from_arrays(pa.array(offsets), elements, mask=mask)
    return Canonical(made, None if bad is None else rows_with(lists, bad))


def _text(array: pa.Array) -> Canonical:
    if pt.is_string_view(array.type) or pt.is_binary_view(array.type):
        array = array.cast(pa.binary_view()).cast(pa.large_binary())
    elif pt.is_fixed_size_binary(array.type):
        array = array.cast(pa.large_binary())
    kind = pa.large_string() if pt.is_large_string(array.type) or pt.is_large_binary(array.type) else pa.string()
    if not array.type.equals(kind):  # bytes seen as text: the same buffers
        array = pa.Array.from_buffers(kind, len(array), array.buffers(), array.null_count, array.offset)
    if not len(array):
        return Canonical(array)
    offsets = _offsets(array)
    bad = _not_utf8(array, offsets)
    empty = offsets[1:] == offsets[:-1]
    if empty.any() and array.null_count:
        empty &= np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    missing = empty if bad is None else empty | bad
    if missing.any():
        array = pc.if_else(pa.array(missing), pa.scalar(None, kind), array)
    return Canonical(array, bad)


def _offsets(text: pa.Array) -> npt.NDArray[np.int32] | npt.NDArray[np.int64]:
    dtype: Any = np.int64 if pt.is_large_string(text.type) else np.int32
    buffer = text.buffers()[1]
    return np.frombuffer(buffer, dtype=dtype)[text.offset : text.offset + len(text) + 1]


def _not_utf8(text: pa.Array, offsets: npt.NDArray[Any]) -> Mask | None:
    """The rows that are not valid UTF-8, which Parquet does not check."""
    start, stop = int(offsets[0]), int(offsets[-1])
    data = text.buffers()[2]
    if start == stop or data is None:
        return None
    # Most ids and numbers are ASCII, which is detected ten times as fast as Arrow validates UTF-8.
    if np.frombuffer(data, dtype=np.uint8)[start:stop].max() < 0x80:
        return None
    try:
        text.validate(full=True)
        return None
    except pa.ArrowInvalid:
        pass
    values = text.cast(pa.large_binary()).to_pylist()
    return np.array([value is not None and not _is_utf8(value) for value in values], dtype=np.bool_)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _uuid_text(storage: pa.FixedSizeBinaryArray) -> pa.StringArray:
    num_rows = len(storage)
    text = np.full((num_rows, 36), ord("-"), dtype=np.uint8)
    data = storage.buffers()[1]
    if data is not None:
        raw = np.frombuffer(data, dtype=np.uint8)[16 * storage.offset : 16 * (storage.offset + num_rows)]
        text[:, _UUID_DIGITS] = _HEX[raw.reshape(num_rows, 16)].reshape(num_rows, 32)
    offsets = np.arange(0, 36 * num_rows + 1, 36, dtype=np.int32)
    array = pa.Array.from_buffers(pa.string(), num_rows, [None, pa.py_buffer(offsets), pa.py_buffer(text)])
    return pc.if_else(storage.is_valid(), array, pa.scalar(None, pa.string())) if storage.null_count else array
