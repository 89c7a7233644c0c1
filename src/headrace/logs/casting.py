"""Casts Arrow columns such that an unreadable value invalidates only its row, not the column."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.logs.canonical import Mask, canonical, either, is_list, is_text, list_lengths, mask_of, rows_with

__all__ = ["Mask", "cast_lists", "cast_rows", "cast_times", "list_lengths", "mask_of", "rows_with", "to_time_us"]

Cast = Callable[[pa.Array], pa.Array]

TICKS_PER_S = {"s": 1, "ms": 1_000, "us": 1_000_000, "ns": 1_000_000_000}

_DAY_S = 86_400
_INT64_MAX = np.iinfo(np.int64).max


def cast_rows(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Cast a column of any Arrow type, see `headrace.logs.canonical`, to int64, floats or string.

    Empty text is null, numbers in text may be surrounded by spaces, and NaN is null unless the target is float.
    Integers from 2^63 to 2^64 - 1 keep their bits when cast to int64, however they are stored, because ids are often
    64-bit hashes.

    Returns:
        The column with type `target`, with null where a value could not be cast, and a mask of those rows, or None.
    """
    if array.type.equals(target) and not is_text(target):  # most columns of most logs
        return array, None
    array, bad = canonical(array)
    values, unreadable = _cast_canonical(array, target)
    return values, either(bad, unreadable)


def cast_lists(array: pa.Array, item: pa.DataType) -> tuple[pa.Array, Mask | None]:
    """Cast a column of lists to `list<item>`; see `cast_rows`. One bad element makes its row bad."""
    target = pa.list_(item)
    array, bad = canonical(array)
    if not is_list(array.type):
        if pt.is_null(array.type):
            return array.cast(target), bad
        return pa.nulls(len(array), target), either(bad, mask_of(array.is_valid()))
    # List views take a detour, because Arrow 26 loses elements when it casts them to lists.
    is_view = pt.is_list_view(array.type) or pt.is_large_list_view(array.type)
    if array.type.value_type.equals(item) and not is_view and not is_text(item):
        return (array if array.type.equals(target) else array.cast(target)), bad
    given = array.flatten()
    elements, bad_elements = cast_rows(given, item)
    if bad_elements is not None:
        bad = either(bad, rows_with(array, bad_elements))
    if elements is given and array.type.equals(target):
        return array, bad
    offsets = np.zeros(len(array) + 1, dtype=np.int32)
    np.cumsum(list_lengths(array), out=offsets[1:])
    mask = array.is_null() if array.null_count else None
    return pa.ListArray.from_arrays(pa.array(offsets), elements, mask=mask), bad


def cast_times(array: pa.Array, unit: str) -> tuple[pa.Array, Mask | None]:
    """Cast a column of times to int64 ticks of `unit` since 1970-01-01 UTC; see `cast_rows`.

    Accepts integers, decimals and floats (as ticks), timestamps, dates, and strings of ISO 8601 times (UTC by default)
    or numbers. Fractions of a tick are rounded down; a time that does not fit into int64 is bad.
    """
    array, bad = canonical(array)
    ticks, unreadable = _cast_canonical_times(array, unit)
    return ticks, either(bad, unreadable)


def to_time_us(ticks: pa.Array, unit: str) -> npt.NDArray[np.int64]:
    """Convert ticks to microseconds, rounded down and clipped to int64; 0 for null."""
    values = _filled(ticks)
    if unit == "ns":
        return values // 1_000
    factor = 1_000_000 // TICKS_PER_S[unit]
    limit = _INT64_MAX // factor
    return np.clip(values, -limit, limit) * factor


def _cast_canonical(array: pa.Array, target: pa.DataType) -> tuple[pa.Array, Mask | None]:
    kind = array.type
    if kind.equals(target):
        return array, None
    if pt.is_integer(kind) and (pt.is_floating(target) or (pt.is_uint64(kind) and pt.is_int64(target))):
        return array.cast(target, safe=False), None  # rounds integers that a float cannot represent
    if pt.is_floating(kind) and not pt.is_floating(target):
        return _floats_to_text(array) if is_text(target) else _floats_to_integers(array)
    if pt.is_date(kind) and pt.is_integer(target):
        array = array.cast(pa.date32()).cast(pa.int32())
    try:
        return array.cast(target), None
    except pa.ArrowNotImplementedError:
        return pa.nulls(len(array), target), mask_of(array.is_valid())
    except pa.ArrowInvalid:
        pass
    return _cast_what_can_be(_trimmed(array), target, _to_int64 if pt.is_int64(target) else _cast_to(target))


def _cast_canonical_times(array: pa.Array, unit: str) -> tuple[pa.Array, Mask | None]:
    kind = array.type
    if pt.is_timestamp(kind):
        return _rescaled(array.cast(pa.int64()), TICKS_PER_S[kind.unit], TICKS_PER_S[unit])
    if pt.is_date64(kind):
        return _rescaled(array.cast(pa.int64()), TICKS_PER_S["ms"], TICKS_PER_S[unit])
    if pt.is_date32(kind):
        return _rescaled(array.cast(pa.int32()).cast(pa.int64()), 1, _DAY_S * TICKS_PER_S[unit])
    if pt.is_floating(kind):
        return _floats_to_integers(pc.floor(array), stop=2.0**63)
    if pt.is_decimal(kind):
        return _cast_what_can_be(pc.floor(array), pa.int64(), _cast_to(pa.int64()))
    if is_text(kind):
        return _cast_what_can_be(_trimmed(array), pa.int64(), lambda part: _parse_times(part, unit))
    if pt.is_integer(kind):
        return _cast_what_can_be(array, pa.int64(), _cast_to(pa.int64()))
    return pa.nulls(len(array), pa.int64()), None if pt.is_null(kind) else mask_of(array.is_valid())


def _rescaled(ticks: pa.Array, given_per_s: int, wanted_per_s: int) -> tuple[pa.Array, Mask | None]:
    """Convert ticks from one unit to another."""
    if given_per_s == wanted_per_s:
        return ticks, None
    values = _filled(ticks)
    bad: Mask | None = None
    if given_per_s > wanted_per_s:
        values = values // (given_per_s // wanted_per_s)
    else:
        factor = wanted_per_s // given_per_s
        limit = _INT64_MAX // factor
        beyond = (values > limit) | (values < -limit)
        if beyond.any():
            bad = beyond
        values = np.where(beyond, 0, values) * factor
    missing = mask_of(ticks.is_null()) if ticks.null_count else None
    return pa.array(values, mask=either(missing, bad)), bad


def _filled(ticks: pa.Array) -> npt.NDArray[np.int64]:
    return np.asarray(ticks.fill_null(0).to_numpy(zero_copy_only=False), dtype=np.int64)


def _floats_to_integers(array: pa.Array, *, stop: float = 2.0**64) -> tuple[pa.Array, Mask | None]:
    """Convert whole floats below `stop` to int64, from 2^63 on with the bits of a uint64."""
    values = array.cast(pa.float64()).to_numpy(zero_copy_only=False)  # null becomes NaN
    is_whole = (np.trunc(values) == values) & (values >= -(2.0**63)) & (values < stop)
    is_high = is_whole & (values >= 2.0**63)
    integers = np.where(is_whole & ~is_high, values, 0.0).astype(np.int64)
    if is_high.any():
        integers[is_high] = values[is_high].astype(np.uint64).view(np.int64)
    bad = ~is_whole & ~np.isnan(values)
    return pa.array(integers, mask=~is_whole), bad if bad.any() else None


def _floats_to_text(array: pa.Array) -> tuple[pa.Array, Mask | None]:
    """Convert floats to text: whole numbers without a fraction, NaN as null; infinities are bad."""
    whole, _ = _floats_to_integers(array, stop=2.0**63)
    finite = pc.is_finite(array)
    text = pc.if_else(whole.is_valid(), whole.cast(pa.string()), array.cast(pa.string()))
    bad = mask_of(pc.is_inf(array))
    return pc.if_else(finite, text, pa.scalar(None, pa.string())), bad if bad.any() else None


def _trimmed(array: pa.Array) -> pa.Array:
    if not is_text(array.type):
        return array
    text = pc.utf8_trim_whitespace(array)
    return pc.if_else(pc.equal(text, ""), pa.scalar(None, text.type), text)


def _cast_to(target: pa.DataType) -> Cast:
    return lambda part: part.cast(target)


def _to_int64(part: pa.Array) -> pa.Array:
    """Convert text or decimals to int64, or else all of them to uint64 with the same bits."""
    return _first_that_reads(part, (_cast_to(pa.int64()), lambda high: high.cast(pa.uint64()).cast(pa.int64(), False)))


def _first_that_reads(part: pa.Array, casts: Sequence[Cast]) -> pa.Array:
    for cast in casts[:-1]:
        try:
            return cast(part)
        except pa.ArrowInvalid:
            continue
    return casts[-1](part)


def _cast_what_can_be(array: pa.Array, target: pa.DataType, cast: Cast) -> tuple[pa.Array, Mask | None]:
    """Cast by bisection, down to the values that cannot be cast."""
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
    """Parse strings that all have the same format; raises `pa.ArrowInvalid` otherwise."""
    # Fractional digits finer than `unit` are read up to microseconds, because nanoseconds only cover 1677 to 2262.
    fine, num_digits = ("ns", 9) if unit == "ns" else ("us", 6)
    pattern, kept = rf"(\.[0-9]{{{num_digits}}})[0-9]+", r"\1"

    def shortened(part: pa.Array) -> pa.Array:
        return pc.replace_substring_regex(part, pattern, kept)

    def rescaled(times: pa.Array) -> pa.Array:
        return _rescaled(times.cast(pa.int64()), TICKS_PER_S[fine], TICKS_PER_S[unit])[0]

    return _first_that_reads(
        text,
        (
            lambda part: part.cast(pa.timestamp(unit)).cast(pa.int64()),
            lambda part: part.cast(pa.timestamp(unit, "UTC")).cast(pa.int64()),
            lambda part: rescaled(shortened(part).cast(pa.timestamp(fine))),
            lambda part: rescaled(shortened(part).cast(pa.timestamp(fine, "UTC"))),
            _cast_to(pa.int64()),
            lambda part: _whole_ticks(part.cast(pa.float64())),
        ),
    )


def _whole_ticks(numbers: pa.Array) -> pa.Array:
    ticks, bad = _cast_canonical_times(numbers, "s")
    if bad is not None:
        raise pa.ArrowInvalid("ticks beyond int64")
    return ticks
