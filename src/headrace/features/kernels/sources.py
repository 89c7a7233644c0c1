"""Describes where the columns of a record batch are in memory, as one row of integers per column for the kernels.

A row describes *rows* (how many, validity, list offsets) and *elements* (type, validity, buffers). For a plain column
they are the same; for a list column the elements are those of its child. It is filled from Arrow's C data interface in
one call, because Python objects for several hundred columns would cost more than transforming them.
"""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from headrace.compiling import kernel
from headrace.features.kernels.memory import at_i32, at_i64, at_u8, is_set

__all__ = [
    "BOOL",
    "ELEMENT_OFFSET",
    "ELEMENT_TYPE",
    "ELEMENT_VALIDITY",
    "F32",
    "F64",
    "FIXED_SIZE",
    "I8",
    "I16",
    "I32",
    "I64",
    "LENGTH",
    "LIST32",
    "LIST64",
    "LIST_FIXED",
    "LIST_OFFSETS",
    "LIST_SIZES",
    "ROW_OFFSET",
    "ROW_VALIDITY",
    "SCALAR",
    "SHAPE",
    "STRING32",
    "STRING64",
    "STRING_OFFSETS",
    "U8",
    "U16",
    "U32",
    "U64",
    "VALUES",
    "VIEW32",
    "VIEW64",
    "WIDTH",
    "element_type",
    "list_shape",
    "read_batch",
    "row_size",
    "row_start",
]

# Columns of the table.
SHAPE = 0  # one of the shapes below
LENGTH = 1  # rows
ROW_OFFSET = 2  # of the first row in validity and list offsets
ROW_VALIDITY = 3  # address of a bitmap, 0 when no row is null
LIST_OFFSETS = 4  # address
FIXED_SIZE = 5  # elements a row of a fixed-size list
LIST_SIZES = 5  # address of a list view's sizes
ELEMENT_TYPE = 6  # one of the types below
ELEMENT_OFFSET = 7  # of the first element in the element's buffers
ELEMENT_VALIDITY = 8  # address of a bitmap, 0 when no element is null
VALUES = 9  # address
STRING_OFFSETS = 10  # address
WIDTH = 11

SCALAR, LIST32, LIST64, LIST_FIXED, VIEW32, VIEW64 = range(6)
I8, I16, I32, I64, U8, U16, U32, U64, F32, F64, BOOL, STRING32, STRING64 = range(13)

_TYPES: dict[Any, int] = {
    pa.int8(): I8,
    pa.int16(): I16,
    pa.int32(): I32,
    pa.int64(): I64,
    pa.uint8(): U8,
    pa.uint16(): U16,
    pa.uint32(): U32,
    pa.uint64(): U64,
    pa.float32(): F32,
    pa.float64(): F64,
    pa.bool_(): BOOL,
    pa.string(): STRING32,
    pa.binary(): STRING32,
    pa.large_string(): STRING64,
    pa.large_binary(): STRING64,
    pa.date32(): I32,
    pa.date64(): I64,
}


def element_type(type_: pa.DataType) -> int | None:
    """The code of an Arrow type that the kernels read directly, or None."""
    if pa.types.is_timestamp(type_):
        return I64
    return _TYPES.get(type_)


def list_shape(type_: pa.DataType) -> int:
    """The row layout of an Arrow type: `SCALAR` or one of the list shapes."""
    if pa.types.is_list(type_):
        return LIST32
    if pa.types.is_large_list(type_):
        return LIST64
    if pa.types.is_list_view(type_):
        return VIEW32
    if pa.types.is_large_list_view(type_):
        return VIEW64
    return LIST_FIXED if pa.types.is_fixed_size_list(type_) else SCALAR


_ArrowArray = ctypes.c_int64 * 10
_RELEASE = 8  # position of the release callback in an ArrowArray, in words
_ReleaseCallback = ctypes.CFUNCTYPE(None, ctypes.c_void_p)


def read_batch(batch: pa.RecordBatch, layout: NDArray[np.int64]) -> NDArray[np.int64]:
    """Describe columns of a batch as int64 [N, WIDTH]; the addresses in it are valid while the batch lives.

    Args:
        batch: The batch to describe.
        layout: int64 [N, 5]: for each source its column's position in the batch (negative: not in the batch, skipped),
            its shape, its element type, the list size of a fixed-size list, and for a feature in a group column its
            position in the dictionary's struct (else negative). For a group column the unique rows are described.
    """
    table = np.zeros((len(layout), WIDTH), np.int64)
    struct = _ArrowArray()
    address = ctypes.addressof(struct)
    batch._export_to_c(address)
    try:
        _read_struct(address, layout, table)
    finally:
        _ReleaseCallback(struct[_RELEASE])(address)
    return table


@kernel()
def _read_struct(address: int, layout: NDArray[np.int64], table: NDArray[np.int64]) -> None:
    """Walk an exported `ArrowArray` (length, null_count, offset, n_buffers, n_children, buffers, children, ...)."""
    top = at_i64(address, 10)
    children = at_i64(top[6], top[4])
    for index in range(layout.shape[0]):
        if layout[index, 0] < 0:
            continue
        column = at_i64(children[layout[index, 0]], 10)
        row = table[index]
        length, above = column[0], np.int64(0)
        if layout[index, 4] >= 0:
            struct = at_i64(column[7], 10)
            length, above = struct[0], struct[2]
            column = at_i64(at_i64(struct[6], struct[4])[layout[index, 4]], 10)
        row[SHAPE] = layout[index, 1]
        row[ELEMENT_TYPE] = layout[index, 2]
        row[FIXED_SIZE] = layout[index, 3]
        row[LENGTH] = length
        row[ROW_OFFSET] = column[2] + above
        element = column
        if layout[index, 1] != SCALAR:
            buffers = at_i64(column[5], column[3])
            row[ROW_VALIDITY] = 0 if column[1] == 0 else buffers[0]
            row[LIST_OFFSETS] = buffers[1] if layout[index, 1] != LIST_FIXED else 0
            if layout[index, 1] == VIEW32 or layout[index, 1] == VIEW64:
                row[LIST_SIZES] = buffers[2]
            element = at_i64(at_i64(column[6], 1)[0], 10)
        _read_element(element, row)
        if layout[index, 1] == SCALAR:
            row[ELEMENT_OFFSET] += above
            row[ROW_VALIDITY] = row[ELEMENT_VALIDITY]
            row[LIST_OFFSETS] = 0


@kernel()
def _read_element(element: Any, row: Any) -> None:
    """Describe a column without lists: its offset, validity, values and string offsets."""
    buffers = at_i64(element[5], element[3])
    row[ELEMENT_OFFSET] = element[2]
    row[ELEMENT_VALIDITY] = 0 if element[1] == 0 else buffers[0]
    is_string = row[ELEMENT_TYPE] == STRING32 or row[ELEMENT_TYPE] == STRING64
    row[STRING_OFFSETS] = buffers[1] if is_string else 0
    row[VALUES] = buffers[2] if is_string else buffers[1]


@kernel()
def row_start(source: Any, row: int) -> Any:
    """Start of a row's elements (and, except for list views, end of the previous row's)."""
    shape, at = source[SHAPE], source[ROW_OFFSET] + row
    if shape in (LIST32, VIEW32):
        return np.int64(at_i32(source[LIST_OFFSETS], at + 1)[at])
    if shape in (LIST64, VIEW64):
        return np.int64(at_i64(source[LIST_OFFSETS], at + 1)[at])
    if shape == LIST_FIXED:
        return np.int64(at * source[FIXED_SIZE])
    return np.int64(row)


@kernel()
def row_size(source: Any, row: int) -> Any:
    """Number of elements of a row, 0 if it is null."""
    at = source[ROW_OFFSET] + row
    if source[ROW_VALIDITY] != 0 and not is_set(at_u8(source[ROW_VALIDITY], (at >> 3) + 1), at):
        return np.int64(0)
    if source[SHAPE] == VIEW32:
        return np.int64(at_i32(source[LIST_SIZES], at + 1)[at])
    if source[SHAPE] == VIEW64:
        return np.int64(at_i64(source[LIST_SIZES], at + 1)[at])
    return row_start(source, row + 1) - row_start(source, row)
