"""Loads a range of a column's elements into a block: numbers as floats, ids as int64."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.hashing import ID_MASK, string_hash
from headrace.features.kernels.memory import (
    at_f32,
    at_f64,
    at_i8,
    at_i16,
    at_i32,
    at_i64,
    at_u8,
    at_u16,
    at_u32,
    at_u64,
    is_set,
)
from headrace.features.kernels.sources import (
    BOOL,
    ELEMENT_OFFSET,
    ELEMENT_TYPE,
    ELEMENT_VALIDITY,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    STRING32,
    STRING64,
    STRING_OFFSETS,
    U8,
    U16,
    U32,
    U64,
    VALUES,
)

__all__ = ["load_ids", "load_numbers", "load_valid"]


@kernel()
def _copy(values: Any, start: int, out: Any, count: int) -> None:
    for index in range(count):
        out[index] = values[start + index]


@kernel()
def _load(source: Any, start: int, count: int, out: Any) -> None:
    """Convert `count` elements from `start` on (not counting the column's own offset) to the type of `out`."""
    type_ = source[ELEMENT_TYPE]
    address = source[VALUES]
    first = source[ELEMENT_OFFSET] + start
    stop = first + count
    if type_ == I64:
        _copy(at_i64(address, stop), first, out, count)
    elif type_ == F32:
        _copy(at_f32(address, stop), first, out, count)
    elif type_ == I32:
        _copy(at_i32(address, stop), first, out, count)
    elif type_ == F64:
        _copy(at_f64(address, stop), first, out, count)
    elif type_ == I8:
        _copy(at_i8(address, stop), first, out, count)
    elif type_ == I16:
        _copy(at_i16(address, stop), first, out, count)
    elif type_ == U8:
        _copy(at_u8(address, stop), first, out, count)
    elif type_ == U16:
        _copy(at_u16(address, stop), first, out, count)
    elif type_ == U32:
        _copy(at_u32(address, stop), first, out, count)
    elif type_ == U64:
        _copy(at_u64(address, stop), first, out, count)
    elif type_ == BOOL:
        bits = at_u8(address, (stop + 7) >> 3)
        for index in range(count):
            out[index] = is_set(bits, first + index)


@kernel()
def _load_strings(source: Any, start: int, count: int, out: Any) -> None:
    """Load the hash of each string, as an id of 63 bits."""
    first = source[ELEMENT_OFFSET] + start
    if source[ELEMENT_TYPE] == STRING32:
        bounds = at_i32(source[STRING_OFFSETS], first + count + 1)
        data = at_u8(source[VALUES], np.int64(bounds[first + count]))
        for index in range(count):
            at = first + index
            out[index] = np.int64(string_hash(data, np.int64(bounds[at]), np.int64(bounds[at + 1])) & ID_MASK)
    else:
        long_bounds = at_i64(source[STRING_OFFSETS], first + count + 1)
        data = at_u8(source[VALUES], long_bounds[first + count])
        for index in range(count):
            at = first + index
            out[index] = np.int64(string_hash(data, long_bounds[at], long_bounds[at + 1]) & ID_MASK)


@kernel()
def load_numbers(source: Any, start: int, count: int, out: Any) -> None:
    """Load elements as floats; a null becomes NaN."""
    _load(source, start, count, out)
    if source[ELEMENT_VALIDITY] != 0:
        first = source[ELEMENT_OFFSET] + start
        bits = at_u8(source[ELEMENT_VALIDITY], (first + count + 7) >> 3)
        for index in range(count):
            if not is_set(bits, first + index):
                out[index] = np.nan


@kernel()
def load_ids(source: Any, start: int, count: int, out: Any) -> None:
    """Load elements as int64 ids; nulls give arbitrary values, see `load_valid`."""
    if source[ELEMENT_TYPE] == STRING32 or source[ELEMENT_TYPE] == STRING64:
        _load_strings(source, start, count, out)
    else:
        _load(source, start, count, out)


@kernel()
def load_valid(source: Any, start: int, count: int, keep: Any) -> Any:
    """Write 1 for valid elements and 0 for nulls; returns False without writing if there can be no nulls."""
    if source[ELEMENT_VALIDITY] == 0:
        return False
    first = source[ELEMENT_OFFSET] + start
    bits = at_u8(source[ELEMENT_VALIDITY], (first + count + 7) >> 3)
    for index in range(count):
        keep[index] = is_set(bits, first + index)
    return True
