"""Restricts sources to some of their rows: contiguous rows are only described anew, others are copied."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.load import load_ids
from headrace.features.kernels.memory import at_i8, at_i16, at_i32, at_i64, at_u8, is_set
from headrace.features.kernels.sources import (
    BOOL,
    ELEMENT_OFFSET,
    ELEMENT_TYPE,
    ELEMENT_VALIDITY,
    F32,
    I8,
    I16,
    I32,
    I64,
    LENGTH,
    LIST64,
    LIST_OFFSETS,
    LIST_SIZES,
    ROW_OFFSET,
    ROW_VALIDITY,
    SCALAR,
    SHAPE,
    STRING32,
    STRING64,
    STRING_OFFSETS,
    U8,
    U16,
    U32,
    VALUES,
    VIEW32,
    VIEW64,
    row_size,
    row_start,
)

__all__ = ["element_width", "gather_sources", "gathered_bytes"]


@kernel()
def element_width(type_: int) -> Any:
    """Bytes of a copied element of a type; a string becomes an id, and a boolean a byte."""
    if type_ in (F32, I32, U32):
        return np.int64(4)
    if type_ in (I16, U16):
        return np.int64(2)
    return np.int64(1) if type_ in (I8, U8, BOOL) else np.int64(8)


@kernel()
def _is_contiguous(rows: Any) -> Any:
    """Whether rows are consecutive and in order."""
    count = rows.size
    if count == 0 or rows[count - 1] - rows[0] != count - 1:
        return count == 0
    apart = 0
    for index in range(1, count):
        apart += rows[index] != rows[index - 1] + 1
    return apart == 0


@kernel()
def _padded(num_bytes: int) -> Any:
    return (num_bytes + 7) & ~7


@kernel()
def _bytes_of(source: Any, rows: Any) -> Any:
    """Bytes needed to copy some rows of a source."""
    shape = source[SHAPE]
    if shape in (VIEW32, VIEW64):
        return np.int64(16 * rows.size)
    num_elements: Any = np.int64(rows.size)
    if shape != SCALAR:
        num_elements = 0
        for row in rows:
            num_elements += row_size(source, row)
    offsets = 0 if shape == SCALAR else 8 * (rows.size + 1)
    validity = 0 if source[ELEMENT_VALIDITY] == 0 else _padded((num_elements + 7) >> 3)
    return np.int64(_padded(num_elements * element_width(source[ELEMENT_TYPE])) + offsets + validity)


@kernel()
def gathered_bytes(sources: Any, which: Any, rows: Any) -> Any:
    """Bytes that `gather_sources` writes for the same arguments."""
    total: Any = np.int64(0)
    for at in range(which.size):
        if which[at] >= 0 and not _is_contiguous(rows[which[at]]):
            total += _bytes_of(sources[at], rows[which[at]])
    return total


@kernel()
def gather_sources(sources: Any, which: Any, rows: Any, arena: Any) -> None:
    """Restrict sources to some of their rows; lists in a shared buffer stay slices of it, strings become ids.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`; changed.
        which: int64 [S]: the line of `rows` for each source, or -1 to leave it unchanged.
        rows: int64 [G, U].
        arena: uint8 [`gathered_bytes`], written; must live as long as the sources are read.
    """
    address: Any = np.int64(arena.ctypes.data)
    for at in range(which.size):
        if which[at] < 0:
            continue
        source, wanted = sources[at], rows[which[at]]
        if _is_contiguous(wanted):
            first = wanted[0] if wanted.size else 0
            source[ROW_OFFSET] += first
            if source[SHAPE] == SCALAR:
                source[ELEMENT_OFFSET] += first
        else:
            size = _bytes_of(source, wanted)
            if source[SHAPE] == SCALAR:
                _gather_scalars(source, wanted, address)
            elif source[SHAPE] == VIEW32 or source[SHAPE] == VIEW64:
                _gather_views(source, wanted, address)
            else:
                _gather_lists(source, wanted, address)
            address += size
        source[LENGTH] = wanted.size


@kernel()
def _copy_elements(source: Any, start: Any, count: Any, address: Any, at: Any) -> None:
    """Copy elements from `start` on to position `at` of the memory at `address`."""
    type_, first = source[ELEMENT_TYPE], source[ELEMENT_OFFSET] + start
    if type_ in (STRING32, STRING64):
        load_ids(source, start, count, at_i64(address, at + count)[at:])
        return
    if type_ == BOOL:
        bits, flags = at_u8(source[VALUES], 1), at_u8(address, 1)
        for index in range(count):
            flags[at + index] = is_set(bits, first + index)
        return
    width = element_width(type_)
    if width == 8:
        words, out = at_i64(source[VALUES], 1), at_i64(address, 1)
        for index in range(count):
            out[np.uint64(at + index)] = words[np.uint64(first + index)]
    elif width == 4:
        halves, out_4 = at_i32(source[VALUES], 1), at_i32(address, 1)
        for index in range(count):
            out_4[np.uint64(at + index)] = halves[np.uint64(first + index)]
    elif width == 2:
        quarters, out_2 = at_i16(source[VALUES], 1), at_i16(address, 1)
        for index in range(count):
            out_2[np.uint64(at + index)] = quarters[np.uint64(first + index)]
    else:
        bytes_, out_1 = at_i8(source[VALUES], 1), at_i8(address, 1)
        for index in range(count):
            out_1[np.uint64(at + index)] = bytes_[np.uint64(first + index)]


@kernel()
def _copy_valid(source: Any, start: Any, count: Any, bits: Any, at: Any) -> None:
    """Copy the validity of elements to zeroed bits from position `at` on."""
    given, first = at_u8(source[ELEMENT_VALIDITY], 1), source[ELEMENT_OFFSET] + start
    for index in range(count):
        if is_set(given, first + index):
            place = at + index
            bits[place >> 3] |= np.uint8(1 << (place & 7))


@kernel()
def _now_at(source: Any, address: Any, validity: Any) -> None:
    """Point a source to its copied elements."""
    type_ = source[ELEMENT_TYPE]
    if type_ in (STRING32, STRING64):
        source[ELEMENT_TYPE] = I64
    elif type_ == BOOL:
        source[ELEMENT_TYPE] = U8
    source[VALUES] = address
    source[STRING_OFFSETS] = 0
    source[ELEMENT_OFFSET] = 0
    source[ELEMENT_VALIDITY] = validity


@kernel()
def _gather_scalars(source: Any, rows: Any, address: int) -> None:
    type_, validity, count = source[ELEMENT_TYPE], np.int64(0), rows.size
    size = element_width(type_)
    first = source[ELEMENT_OFFSET]
    if size == 8 and type_ != STRING32 and type_ != STRING64:
        words, out = at_i64(source[VALUES], 1), at_i64(address, 1)
        for index in range(count):
            out[np.uint64(index)] = words[np.uint64(first + rows[index])]
    elif size == 4:
        halves, out_4 = at_i32(source[VALUES], 1), at_i32(address, 1)
        for index in range(count):
            out_4[np.uint64(index)] = halves[np.uint64(first + rows[index])]
    else:
        for index in range(count):
            _copy_elements(source, rows[index], np.int64(1), address, index)
    if source[ELEMENT_VALIDITY] != 0:
        validity = address + _padded(count * size)
        bits = at_u8(validity, (count + 7) >> 3)
        bits[:] = 0
        for index in range(count):
            _copy_valid(source, rows[index], np.int64(1), bits, index)
    _now_at(source, address, validity)
    source[ROW_VALIDITY], source[ROW_OFFSET] = validity, 0


@kernel()
def _gather_views(source: Any, rows: Any, address: int) -> None:
    starts, sizes = at_i64(address, rows.size), at_i64(address + 8 * rows.size, rows.size)
    for index in range(rows.size):
        starts[index] = row_start(source, rows[index])
        sizes[index] = row_size(source, rows[index])
    source[SHAPE], source[ROW_OFFSET], source[ROW_VALIDITY] = VIEW64, 0, 0
    source[LIST_OFFSETS], source[LIST_SIZES] = address, address + 8 * rows.size


@kernel()
def _gather_lists(source: Any, rows: Any, address: int) -> None:
    offsets, values = at_i64(address, rows.size + 1), address + 8 * (rows.size + 1)
    offsets[0] = 0
    for index in range(rows.size):
        offsets[index + 1] = offsets[index] + row_size(source, rows[index])
    total, validity = offsets[rows.size], np.int64(0)
    for index in range(rows.size):
        size = offsets[index + 1] - offsets[index]
        if size > 0:
            _copy_elements(source, row_start(source, rows[index]), size, values, offsets[index])
    if source[ELEMENT_VALIDITY] != 0:
        validity = values + _padded(total * element_width(source[ELEMENT_TYPE]))
        bits = at_u8(validity, (total + 7) >> 3)
        bits[:] = 0
        for index in range(rows.size):
            size = offsets[index + 1] - offsets[index]
            if size > 0:
                _copy_valid(source, row_start(source, rows[index]), size, bits, offsets[index])
    _now_at(source, values, validity)
    source[SHAPE], source[LIST_OFFSETS], source[ROW_OFFSET], source[ROW_VALIDITY] = LIST64, address, 0, 0
