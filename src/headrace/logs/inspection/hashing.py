"""64-bit hashes of Arrow columns, for counting and comparing values of any type."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from headrace.compiling import kernel

__all__ = ["NULL_HASH", "Hashes", "hash_column", "hash_integers", "integers_of", "is_list"]

Hashes = npt.NDArray[np.uint64]

NULL_HASH = np.uint64(0x9E3779B97F4A7C15)
"""Hash of null."""

_M1 = np.uint64(0xBF58476D1CE4E5B9)
_M2 = np.uint64(0x94D049BB133111EB)


def hash_column(array: pa.Array) -> Hashes | None:
    """A hash of each value, `NULL_HASH` for null.

    Hashes of numbers are unique, so only strings and lists can collide (with 10 million distinct values: once in
    400,000 columns). An integral number has the hash of the integer even if stored as a float, as pandas stores ids
    with nulls. (Numbers below 1e-307 share hashes with integers.)

    Args:
        array: A column of numbers, strings, times, or lists of these.

    Returns:
        uint64, one per row; None for types without a hash (structs, maps, unions).
    """
    if isinstance(array, pa.ExtensionArray):
        return hash_column(array.storage)
    if pt.is_dictionary(array.type):
        words = hash_column(array.dictionary)
        if words is None:
            return None
        codes = array.indices.cast(pa.int64()).fill_null(len(words)).to_numpy(zero_copy_only=False)
        hashes = np.asarray(np.append(words, NULL_HASH)[codes], dtype=np.uint64)
    elif is_list(array.type):
        elements = hash_column(array.flatten())
        if elements is None:
            return None
        lengths = pc.list_value_length(array).fill_null(0).to_numpy(zero_copy_only=False)
        hashes = _hash_lists(elements, lengths.astype(np.int64))
    elif pt.is_nested(array.type):
        return None
    elif pt.is_null(array.type):
        return np.full(len(array), NULL_HASH)
    elif pt.is_floating(array.type):
        numbers = array.cast(pa.float64()).to_numpy(zero_copy_only=False) + 0.0  # -0.0 and 0.0 are equal
        hashes = _mix(_float_bits(np.where(np.isnan(numbers), np.nan, numbers)))
    elif pt.is_boolean(array.type) or pt.is_integer(array.type):
        hashes = _mix(array.cast(pa.int64(), safe=False).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64))
    elif (
        pt.is_timestamp(array.type)
        or pt.is_time64(array.type)
        or pt.is_date64(array.type)
        or pt.is_duration(array.type)
    ):
        hashes = _mix(array.cast(pa.int64()).fill_null(0).to_numpy(zero_copy_only=False).view(np.uint64))
    else:
        hashes = _hash_texts(array)
    if array.null_count:
        hashes[array.is_null().to_numpy(zero_copy_only=False)] = NULL_HASH
    return hashes


def hash_integers(values: npt.NDArray[np.int64]) -> Hashes:
    """The hashes that `hash_column` gives a column of integers."""
    return _mix(values.view(np.uint64))


def integers_of(hashes: Hashes) -> npt.NDArray[np.int64]:
    """The integers of some hashes: undoes `hash_integers`."""
    x = hashes.copy()
    for shift, factor in ((31, _M2), (27, _M1)):
        x ^= (x >> np.uint64(shift)) ^ (x >> np.uint64(2 * shift))
        x *= np.uint64(pow(int(factor), -1, 1 << 64))
    x ^= (x >> np.uint64(30)) ^ (x >> np.uint64(60))
    return (x - NULL_HASH).view(np.int64)


def is_list(kind: pa.DataType) -> bool:
    """Whether a type is one of Arrow's lists."""
    return bool(pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind))


def _hash_texts(array: pa.Array) -> Hashes:
    if not _is_bytes(array.type):
        array = array.cast(pa.string())  # views, dates, decimals
    array = array.cast(pa.large_binary())
    _, offsets, data = array.buffers()
    ends = np.frombuffer(offsets, dtype=np.int64, count=array.offset + len(array) + 1)[array.offset :]
    return _hash_bytes(ends, np.frombuffer(data or b"", dtype=np.uint8))


def _float_bits(numbers: npt.NDArray[np.float64]) -> Hashes:
    """Bits that tell floats apart: those of the integer for whole numbers."""
    bits = numbers.view(np.uint64).copy()
    whole = (np.abs(numbers) < 2.0**52) & (np.floor(numbers) == numbers)
    bits[whole] = numbers[whole].astype(np.int64).view(np.uint64)
    return bits


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pt.is_binary, pt.is_large_binary, pt.is_binary_view, pt.is_fixed_size_binary)
    return any(test(kind) for test in (*tests, pt.is_string, pt.is_large_string))


@kernel()
def _mix(values: Hashes) -> Hashes:
    # The finaliser of splitmix64: bijective on 64 bits, and every output bit depends on every input bit.
    result = np.empty_like(values)
    for index in range(len(values)):
        x = values[index] + NULL_HASH
        x = (x ^ (x >> np.uint64(30))) * _M1
        x = (x ^ (x >> np.uint64(27))) * _M2
        result[index] = x ^ (x >> np.uint64(31))
    return result


@kernel()
def _hash_bytes(offsets: npt.NDArray[np.int64], data: npt.NDArray[np.uint8]) -> Hashes:
    result = np.empty(len(offsets) - 1, dtype=np.uint64)
    for row in range(len(result)):
        x = (np.uint64(offsets[row + 1] - offsets[row]) + NULL_HASH) * _M2  # distinguishes lengths
        position = offsets[row]
        while position < offsets[row + 1]:
            word = np.uint64(0)
            for index in range(min(8, offsets[row + 1] - position)):
                word |= np.uint64(data[position + index]) << np.uint64(8 * index)
            x = (x ^ word) * _M1
            x = (x ^ (x >> np.uint64(29))) * _M2
            position += 8
        result[row] = x ^ (x >> np.uint64(32))
    return result


@kernel()
def _hash_lists(elements: Hashes, lengths: npt.NDArray[np.int64]) -> Hashes:
    result = np.empty(len(lengths), dtype=np.uint64)
    position = 0
    for row in range(len(lengths)):
        x = np.uint64(lengths[row]) + _M2
        for index in range(position, position + lengths[row]):
            x = (x ^ elements[index]) * _M1
            x ^= x >> np.uint64(29)
        position += lengths[row]
        result[row] = x
    return result
