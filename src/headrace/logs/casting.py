"""Casting Arrow columns so that one unreadable value costs one row, not the column."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

__all__ = ["Mask", "cast_lists", "cast_rows", "cast_times", "list_lengths", "mask_of", "rows_with", "to_time_us"]

Mask = npt.NDArray[np.bool_]

TICKS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}


def cast_rows(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Cast a column.

    Strings are trimmed where needed, and empty ones are null; NaN is null where integers are wanted. Unsigned 64-bit
    integers keep their bits when they become signed: ids are names, and hashes fill all 64.

    Returns:
        The column with `target` as its type, null where a value could not be cast, and the rows where that happened,
        or None for none.
    """
    if array.type.equals(target):
        return array, None
    if pt.is_integer(array.type) and (pt.is_floating(target) or (pt.is_uint64(array.type) and pt.is_int64(target))):
        return array.cast(target, safe=False), None  # rounds where a float cannot hold the integer
    try:
        return array.cast(target), None
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(array), target), mask_of(array.is_valid())
    except pa.ArrowInvalid:
        pass
    if pt.is_floating(array.type) and pt.is_integer(target):
        return _floats_to_integers(array, target)
    return _cast_what_can_be(_trimmed(array), target, lambda part: part.cast(target))


def cast_lists(array: pa.Array, item: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Cast a column of lists to `list<item>`; see `cast_rows`. One bad element makes its row bad."""
    target = pa.list_(item)
    if array.type.equals(target):
        return array, None
    if not _is_list(array.type):
        if pt.is_null(array.type):
            return array.cast(target), None
        return pa.nulls(len(array), target), mask_of(array.is_valid())
    # List views go the long way round: Arrow 26 loses elements when it casts them to lists.
    if array.type.value_type.equals(item) and not (pt.is_list_view(array.type) or pt.is_large_list_view(array.type)):
        return array.cast(target), None
    elements, bad = cast_rows(array.flatten(), item)
    offsets = np.zeros(len(array) + 1, dtype=np.int32)
    np.cumsum(list_lengths(array), out=offsets[1:])
    mask = array.is_null() if array.null_count else None
    lists = pa.ListArray.from_arrays(pa.array(offsets), elements, mask=mask)
    return lists, None if bad is None else rows_with(array, bad)


def cast_times(array: pa.Array, unit: str) -> tuple[pa.Array, Mask | None]:
    """Cast a column of times to int64 ticks of `unit` since 1970-01-01 UTC; see `cast_rows`.

    Takes integers (ticks already), floats (ticks, rounded down), timestamps, dates, and strings of ISO 8601 times
    (UTC unless they say otherwise) or of integers.
    """
    if pt.is_timestamp(array.type) or pt.is_date(array.type):
        return array.cast(pa.timestamp(unit, getattr(array.type, "tz", None)), safe=False).cast(pa.int64()), None
    if pt.is_floating(array.type):
        return cast_rows(pc.floor(array), pa.int64())
    if pt.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if pt.is_string(array.type) or pt.is_large_string(array.type):
        return _cast_what_can_be(_trimmed(array), pa.int64(), lambda part: _parse_times(part, unit))
    return cast_rows(array, pa.int64())


def to_time_us(ticks: pa.Array, unit: str) -> npt.NDArray[np.int64]:
    """Ticks as microseconds, rounded down and clipped to what int64 holds; 0 where null."""
    values = np.asarray(ticks.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)
    if unit == "ns":
        return values // 1_000
    factor = 1_000_000 // TICKS_PER_S[unit]
    limit = np.iinfo(np.int64).max // factor
    return np.clip(values, -limit, limit) * factor


def list_lengths(lists: pa.Array) -> npt.NDArray[np.int64]:
    """Elements of each list; 0 for null."""
    return np.asarray(pc.list_value_length(lists).fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def rows_with(lists: pa.Array, elements: Mask) -> Mask:
    """The rows that hold any of the given elements, which are counted over all lists."""
    rows = np.repeat(np.arange(len(lists)), list_lengths(lists))
    mask = np.zeros(len(lists), dtype=np.bool_)
    mask[rows[elements]] = True
    return mask


def mask_of(array: pa.BooleanArray) -> Mask:
    """A boolean column as numpy; null is False."""
    return np.asarray(array.fill_null(False).to_numpy(zero_copy_only=False), dtype=np.bool_)


def _is_list(kind: pa.DataType) -> bool:
    return any(
        is_kind(kind)
        for is_kind in (pt.is_list, pt.is_large_list, pt.is_fixed_size_list, pt.is_list_view, pt.is_large_list_view)
    )


def _floats_to_integers(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Mask | None]:
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
    is_whole = (np.trunc(values) == values) & (values >= -(2.0**63)) & (values < 2.0**63)
    integers = np.where(is_whole, values, 0.0).astype(np.int64)
    bad = ~is_whole & ~np.isnan(values)
    return pa.array(integers, mask=~is_whole).cast(target), bad if bad.any() else None


def _trimmed(array: pa.Array) -> pa.Array:
    if pt.is_dictionary(array.type):
        array = array.cast(array.type.value_type)
    if not (pt.is_string(array.type) or pt.is_large_string(array.type)):
        return array
    text = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def _cast_what_can_be(
    array: pa.Array, target: pa.DataType, cast: Callable[[pa.Array], pa.Array]
) -> tuple[pa.Array, Mask | None]:
    """Cast in halves, and halves of the halves that fail, down to the values that cannot be cast."""
    parts: list[pa.Array] = []
    bad: list[int] = []
    stack = [(0, len(array))]
    while stack:
        start, stop = stack.pop()
        try:
            parts.append(cast(array.slice(start, stop - start)))
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError):
            if stop - start > 1:
                middle = (start + stop) // 2
                stack += [(middle, stop), (start, middle)]
            else:
                parts.append(pa.nulls(1, target))
                bad.append(start)
    mask = np.zeros(len(array), dtype=np.bool_)
    mask[bad] = True
    return pa.concat_arrays(parts), mask if bad else None


def _parse_times(text: pa.Array, unit: str) -> pa.Array:
    """Parse strings that are all written alike; raises `pa.ArrowInvalid` where they are not."""
    attempts: list[Callable[[], Any]] = [
        lambda: text.cast(pa.timestamp(unit)),
        lambda: text.cast(pa.timestamp(unit, "UTC")),
        lambda: text.cast(pa.timestamp("ns")).cast(pa.timestamp(unit), safe=False),
        lambda: text.cast(pa.timestamp("ns", "UTC")).cast(pa.timestamp(unit, "UTC"), safe=False),
        lambda: text,
    ]
    for attempt in attempts[:-1]:
        try:
            return attempt().cast(pa.int64())
        except pa.ArrowInvalid:
            continue
    return attempts[-1]().cast(pa.int64())
