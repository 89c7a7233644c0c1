"""Takes rows of Arrow arrays by position, including overlapping lists in a shared buffer."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.types as pt

from headrace.compiling import kernel

__all__ = ["ListParts", "expanded_type", "gather", "is_list", "is_list_view", "list_parts", "primitive_view"]

Ints = npt.NDArray[np.int32] | npt.NDArray[np.int64]

_MAX_LIST_ELEMENTS = 2**31 - 1


class ListParts(NamedTuple):
    """The positions of a column's lists; row i is `values[starts[i] : starts[i] + lengths[i]]`.

    Attributes:
        starts: Int[rows].
        lengths: Int[rows]; 0 for null.
        values: The buffer of all lists, which may overlap and leave parts unused.
        valid: Bool[rows], or None if no list is null.
    """

    starts: Ints
    lengths: Ints
    values: pa.Array
    valid: npt.NDArray[np.bool_] | None


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of the four kinds of lists of any length."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or is_list_view(kind))


def is_list_view(kind: pa.DataType) -> bool:
    """Whether a type is a list of slices of a shared buffer."""
    return bool(pt.is_list_view(kind) or pt.is_large_list_view(kind))


def expanded_type(kind: pa.DataType) -> pa.DataType:
    """The type that `gather` returns for a column: lists become `list`, all others are unchanged."""
    return pa.list_(kind.value_type) if is_list(kind) else kind


def list_parts(array: pa.Array) -> ListParts:
    """Starts, lengths and buffer of any list column, without copying the elements."""
    valid = None
    if array.null_count:
        valid = np.asarray(array.is_valid().to_numpy(zero_copy_only=False), dtype=np.bool_)
    starts = array.offsets.to_numpy(zero_copy_only=False)
    if is_list_view(array.type):
        lengths = array.sizes.to_numpy(zero_copy_only=False)
    else:
        lengths = np.diff(starts)
        starts = starts[:-1]
    if valid is not None:
        lengths = np.where(valid, lengths, 0).astype(lengths.dtype)
    return ListParts(starts, lengths, array.values, valid)


def gather(array: pa.Array, rows: Ints) -> pa.Array:
    """Take rows of an array in the given order; lists of any kind become `list`.

    Args:
        array: Any Arrow array.
        rows: Int[n], positions in the array.

    Raises:
        pa.ArrowInvalid: The lists have 2^31 elements or more.
    """
    if not is_list(array.type):
        values = primitive_view(array)
        if values is None:
            return array.take(pa.array(rows))
        return _from_view(values[rows], array.type)
    starts, lengths, elements, valid = list_parts(array)
    offsets = np.empty(len(rows) + 1, dtype=np.int32)
    total = _gathered_offsets(lengths, rows, offsets)
    if total > _MAX_LIST_ELEMENTS:
        raise pa.ArrowInvalid(f"{total} list elements in one array, at most {_MAX_LIST_ELEMENTS} fit")
    view = primitive_view(elements)
    if view is not None:
        out = np.empty(total, dtype=view.dtype)
        _copy_lists(view, starts, rows, offsets, out)
        gathered = _from_view(out, elements.type)
    else:
        positions = np.empty(total, dtype=np.int64)
        _list_positions(starts, rows, offsets, positions)
        gathered = elements.take(pa.array(positions))
    mask = None if valid is None else pa.array(~valid[rows])
    return pa.ListArray.from_arrays(pa.array(offsets), gathered, type=pa.list_(array.type.value_type), mask=mask)


def primitive_view(array: pa.Array) -> npt.NDArray[np.generic] | None:
    """View numbers without nulls as numpy integers of the same width, without a copy; None for other arrays.

    Floats are viewed as integers, so that a single kernel suffices and NaN keeps its bits.
    """
    kind = array.type
    if array.null_count or not pt.is_primitive(kind) or pt.is_boolean(kind) or kind.bit_width > 64:
        return None
    dtype = np.dtype(f"i{kind.bit_width // 8}")
    buffer = array.buffers()[1]
    if buffer is None:
        return np.zeros(len(array), dtype=dtype)
    return np.frombuffer(buffer, dtype=dtype, count=len(array), offset=array.offset * dtype.itemsize)


def _from_view(values: npt.NDArray[np.generic], kind: pa.DataType) -> pa.Array:
    """The inverse of `primitive_view`."""
    return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(np.ascontiguousarray(values))])


@kernel()
def _gathered_offsets(lengths: Ints, rows: Ints, offsets: npt.NDArray[np.int32]) -> int:
    total = 0
    offsets[0] = 0
    for i in range(len(rows)):
        total += lengths[rows[i]]
        offsets[i + 1] = total
    return total


@kernel()
def _copy_lists(
    values: npt.NDArray[np.generic],
    starts: Ints,
    rows: Ints,
    offsets: npt.NDArray[np.int32],
    out: npt.NDArray[np.generic],
) -> None:
    for i in range(len(rows)):
        start = np.int64(starts[rows[i]])
        at = np.int64(offsets[i])
        for j in range(np.int64(offsets[i + 1]) - at):
            out[at + j] = values[start + j]


@kernel()
def _list_positions(starts: Ints, rows: Ints, offsets: npt.NDArray[np.int32], positions: npt.NDArray[np.int64]) -> None:
    for i in range(len(rows)):
        start = np.int64(starts[rows[i]])
        at = np.int64(offsets[i])
        for j in range(np.int64(offsets[i + 1]) - at):
            positions[at + j] = start + j
