"""Finds and numbers equal rows: rows of sources, indices of a dictionary, and combinations of groups.

Comparing rows of sources takes one pass per column, or with hashing two passes.
"""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.gathering import element_width
from headrace.features.kernels.memory import at_i8, at_i16, at_i32, at_i64, at_u8, is_set
from headrace.features.kernels.sources import (
    BOOL,
    ELEMENT_OFFSET,
    ELEMENT_TYPE,
    ELEMENT_VALIDITY,
    LIST32,
    LIST_OFFSETS,
    ROW_OFFSET,
    ROW_VALIDITY,
    SCALAR,
    SHAPE,
    STRING32,
    STRING64,
    STRING_OFFSETS,
    VALUES,
    row_size,
    row_start,
)

__all__ = [
    "count_elements",
    "hash_rows",
    "mark_changes",
    "number_combinations",
    "number_hashes",
    "number_runs",
    "number_used",
]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@kernel()
def _same_bytes(address: Any, first: Any, second: Any, count: Any) -> Any:
    """Whether two byte ranges are equal. All words are compared, because that vectorises and most ranges are equal."""
    if first == second:
        return True
    words = count >> 3
    left, right = at_i64(address + first, words), at_i64(address + second, words)
    difference: Any = np.int64(0)
    for index in range(words):
        difference |= left[np.uint64(index)] ^ right[np.uint64(index)]
    rest = at_i8(address, 1)
    for index in range(words << 3, count):
        difference |= np.int64(rest[first + index] ^ rest[second + index])
    return difference == 0


@kernel()
def _same_elements(source: Any, first: Any, second: Any, count: Any) -> Any:
    """Whether two ranges of elements are equal, including nulls."""
    first, second, type_ = first + source[ELEMENT_OFFSET], second + source[ELEMENT_OFFSET], source[ELEMENT_TYPE]
    if source[ELEMENT_VALIDITY] != 0:
        bits = at_u8(source[ELEMENT_VALIDITY], 1)
        for index in range(count):
            if is_set(bits, first + index) != is_set(bits, second + index):
                return False
    if type_ == BOOL:
        flags, differing = at_u8(source[VALUES], 1), 0
        for index in range(count):
            differing += is_set(flags, first + index) != is_set(flags, second + index)
        return differing == 0
    if type_ in (STRING32, STRING64):
        for index in range(count):
            start, size = _text(source, first + index)
            other, other_size = _text(source, second + index)
            if size != other_size or not _same_bytes(source[VALUES], start, other, size):
                return False
        return True
    width = element_width(type_)
    return _same_bytes(source[VALUES], first * width, second * width, count * width)


@kernel()
def _text(source: Any, at: int) -> Any:
    """Start and number of bytes of a string."""
    if source[ELEMENT_TYPE] == STRING32:
        bounds = at_i32(source[STRING_OFFSETS], 1)
        return np.int64(bounds[at]), np.int64(bounds[at + 1]) - np.int64(bounds[at])
    wide = at_i64(source[STRING_OFFSETS], 1)
    return wide[at], wide[at + 1] - wide[at]


@kernel()
def _mark_words(values: Any, first: int, others: Any, changed: Any) -> None:
    """Mark changed rows of contiguous numbers; an empty `others` compares with the previous row."""
    if others.size:
        for row in range(changed.size):
            changed[row] |= values[first + row] != values[first + others[row]]
    else:
        for row in range(1, changed.size):
            changed[row] |= values[np.uint64(first + row)] != values[np.uint64(first + row - 1)]


@kernel()
def _is_simple(source: Any) -> Any:
    """Whether lists and their numbers are never null."""
    type_ = source[ELEMENT_TYPE]
    has_nulls = source[ROW_VALIDITY] != 0 or source[ELEMENT_VALIDITY] != 0
    return not has_nulls and type_ != BOOL and type_ != STRING32 and type_ != STRING64


@kernel()
def _mark_lists(source: Any, width: int, changed: Any) -> None:
    """Mark rows whose list differs from the previous row's, for the most common kind of lists."""
    bounds = at_i32(source[LIST_OFFSETS] + 4 * source[ROW_OFFSET], changed.size + 1)
    address = source[VALUES] + source[ELEMENT_OFFSET] * width
    for row in range(1, changed.size):
        size = np.int64(bounds[row + 1]) - np.int64(bounds[row])
        if changed[row] == 0:
            start, before = np.int64(bounds[row]), np.int64(bounds[row - 1])
            same = start - before == size
            changed[row] = not (same and _same_bytes(address, start * width, before * width, size * width))


@kernel()
def mark_changes(sources: Any, columns: Any, others: Any, changed: Any) -> None:
    """Mark rows that differ from another row in any of the given columns.

    A null list equals an empty one, and numbers are compared bit by bit, because that is how they are read.

    Args:
        sources: int64 [S, WIDTH], see `headrace.features.kernels.sources`.
        columns: int64 [C], numbers of the sources to compare.
        others: int64 [B], the row to compare each row with; or empty for the previous row (row 0 has none).
        changed: uint8 [B]; set to 1 where a row differs, else unchanged.
    """
    for column in columns:
        source = sources[column]
        type_, first = source[ELEMENT_TYPE], source[ELEMENT_OFFSET]
        plain = source[SHAPE] == SCALAR and type_ != BOOL and type_ != STRING32 and type_ != STRING64
        if plain and source[ELEMENT_VALIDITY] == 0:
            width = element_width(type_)
            if width == 8:
                _mark_words(at_i64(source[VALUES], 1), first, others, changed)
            elif width == 4:
                _mark_words(at_i32(source[VALUES], 1), first, others, changed)
            elif width == 2:
                _mark_words(at_i16(source[VALUES], 1), first, others, changed)
            else:
                _mark_words(at_i8(source[VALUES], 1), first, others, changed)
            continue
        if source[SHAPE] == LIST32 and not others.size and _is_simple(source):
            _mark_lists(source, element_width(type_), changed)
            continue
        for row in range(0 if others.size else 1, changed.size):
            if changed[row] == 0:
                other = others[row] if others.size else row - 1
                size: Any = np.int64(1)
                start, other_start = np.int64(row), np.int64(other)
                if source[SHAPE] != SCALAR:
                    size, other_size = row_size(source, row), row_size(source, other)
                    if size != other_size:
                        changed[row] = 1
                        continue
                    start, other_start = row_start(source, row), row_start(source, other)
                if size > 0 and not _same_elements(source, start, other_start, size):
                    changed[row] = 1


@kernel()
def number_runs(changed: Any, inverse: Any, first_rows: Any) -> Any:
    """Number the runs of equal rows; returns the number of runs.

    Args:
        changed: uint8 [B]; the entry of row 0 is ignored.
        inverse: int32 [B], output: the run of each row.
        first_rows: int64 [B], output in its first entries: the first row of each run.
    """
    count = 0
    for row in range(changed.size):
        if row == 0 or changed[row] != 0:
            first_rows[count] = row
            count += 1
        inverse[row] = count - 1
    return count


@kernel()
def hash_rows(sources: Any, columns: Any, codes: Any) -> None:
    """Mix columns into one hash per row in `codes`, uint64 [B]; rows equal by `mark_changes` have equal hashes."""
    for column in columns:
        source = sources[column]
        type_, is_list = source[ELEMENT_TYPE], source[SHAPE] != SCALAR
        for row in range(codes.size):
            size = row_size(source, row) if is_list else np.int64(1)
            start = row_start(source, row) if is_list and size > 0 else np.int64(row)
            code = (codes[row] ^ np.uint64(size)) * _MULTIPLIER
            for index in range(start, start + size):
                code = (code ^ _hash_element(source, type_, source[ELEMENT_OFFSET] + index)) * _MULTIPLIER
                code ^= code >> np.uint64(32)
            codes[row] = code


@kernel()
def _hash_element(source: Any, type_: int, at: int) -> Any:
    """The bits of an element, or the hash of a string; a null differs from values only in its validity bit."""
    valid = np.uint64(0)
    if source[ELEMENT_VALIDITY] != 0 and not is_set(at_u8(source[ELEMENT_VALIDITY], 1), at):
        valid = _MULTIPLIER
    if type_ == BOOL:
        return valid ^ np.uint64(is_set(at_u8(source[VALUES], 1), at))
    if type_ in (STRING32, STRING64):
        start, size = _text(source, at)
        code, data = np.uint64(size), at_u8(source[VALUES], 1)
        for index in range(start, start + size):
            code = (code ^ np.uint64(data[index])) * _MULTIPLIER
            code ^= code >> np.uint64(29)
        return valid ^ code
    width = element_width(type_)
    if width == 8:
        return valid ^ np.uint64(at_i64(source[VALUES], 1)[at])
    if width == 4:
        return valid ^ np.uint64(at_i32(source[VALUES], 1)[at])
    return valid ^ np.uint64(at_i16(source[VALUES], 1)[at] if width == 2 else at_i8(source[VALUES], 1)[at])


@kernel()
def number_hashes(codes: Any, inverse: Any, first_rows: Any, others: Any) -> Any:
    """Number distinct hashes in order of first occurrence; returns how many there are.

    Args:
        codes: uint64 [B].
        inverse: int32 [B], output: the number of each row's hash.
        first_rows: int64 [B], output in its first entries: the first row of each number.
        others: int64 [B], output: the first row with the same hash, for `mark_changes` to compare with.
    """
    capacity = 4
    while capacity < 2 * codes.size:
        capacity *= 2
    slots, count = np.full(capacity, -1, np.int32), 0
    for row in range(codes.size):
        code = codes[row]
        slot = np.int64((code ^ (code >> np.uint64(29))) & np.uint64(capacity - 1))
        while slots[slot] >= 0 and codes[first_rows[slots[slot]]] != code:
            slot = (slot + 1) & (capacity - 1)
        if slots[slot] < 0:
            slots[slot] = count
            first_rows[count] = row
            count += 1
        inverse[row] = slots[slot]
        others[row] = first_rows[slots[slot]]
    return count


@kernel()
def count_elements(source: Any, num_rows: int) -> Any:
    """Number of elements in all rows of a source."""
    if source[SHAPE] == SCALAR:
        return num_rows
    total: Any = np.int64(0)
    for row in range(num_rows):
        total += row_size(source, row)
    return total


@kernel()
def number_used(indices: Any, used: Any, inverse: Any) -> Any:
    """Number the unique rows that a batch uses in order of first occurrence; returns how many there are.

    Args:
        indices: int32 [B], into a dictionary of any size.
        used: int64 [B], output in its first entries: the unique rows.
        inverse: int32 [B], output: the number of each row's unique row.
    """
    if indices.size == 0:
        return 0
    low, high = np.int64(indices.min()), np.int64(indices.max())
    numbers, count = np.full(high - low + 1, -1, np.int32), 0
    for row in range(indices.size):
        place = indices[row] - low
        if numbers[place] < 0:
            numbers[place] = count
            used[count] = indices[row]
            count += 1
        inverse[row] = numbers[place]
    return count


@kernel()
def number_combinations(inverses: Any, inverse: Any, first_rows: Any) -> Any:
    """Number the runs of rows that are equal in all groups; returns how many there are.

    Args:
        inverses: int32 [G, B].
        inverse: int32 [B], output: the run of each row.
        first_rows: int64 [B], output in its first entries: the first row of each run.
    """
    count = 0
    for row in range(inverse.size):
        changed = row == 0
        for group in range(inverses.shape[0]):
            changed |= row > 0 and inverses[group, row] != inverses[group, row - 1]
        if changed:
            first_rows[count] = row
            count += 1
        inverse[row] = count - 1
    return count
