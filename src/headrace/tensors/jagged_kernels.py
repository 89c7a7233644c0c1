"""Kernels for rows of jagged tensors: find equal rows, gather rows. Legend: F keys, B rows, U unique rows, N ids."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["count_selected", "find_equal_rows", "select_rows"]

_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)


@kernel()
def _hash_row(values: Any, weights: Any, starts: Any, lengths: Any, num_keys: int, stride: int, row: int) -> Any:
    """A hash of all lists of a row: their lengths, ids and weights."""
    code = np.uint64(0)
    for key in range(num_keys):
        place = key * stride + row
        length, start = np.int64(lengths[place]), starts[place]
        code = (code ^ np.uint64(length)) * _MULTIPLIER
        code ^= code >> np.uint64(29)
        for at in range(start, start + length):
            code = (code ^ np.uint64(values[at])) * _MULTIPLIER
            code ^= code >> np.uint64(32)
            if weights.size:
                code = (code ^ np.uint64(weights[at])) * _MULTIPLIER
    return code ^ (code >> np.uint64(31))


@kernel()
def _are_equal(
    values: Any, weights: Any, starts: Any, lengths: Any, num_keys: int, stride: int, one: int, other: int
) -> Any:
    """Whether two rows have equal lists for all keys; weights are compared bit by bit."""
    for key in range(num_keys):
        if lengths[key * stride + one] != lengths[key * stride + other]:
            return False
    for key in range(num_keys):
        first, second = starts[key * stride + one], starts[key * stride + other]
        if first == second:  # slices of a shared buffer
            continue
        for at in range(lengths[key * stride + one]):
            if values[first + at] != values[second + at]:
                return False
            if weights.size and weights[first + at] != weights[second + at]:
                return False
    return True


@kernel()
def find_equal_rows(
    values: Any,
    weights: Any,
    starts: Any,
    lengths: Any,
    num_keys: int,
    neighbours_only: bool,
    inverse: Any,
    first_rows: Any,
) -> Any:
    """Number the distinct rows in order of first occurrence.

    Args:
        values: int64 [N], the ids.
        weights: int32 [N], bits of the weights, or [0] for none.
        starts: int64 [F * B].
        lengths: int32 [F * B].
        num_keys: F.
        neighbours_only: Only compare each row with the previous one, without hashing, for rows in session order.
        inverse: int32 [B], output: unique row of each row.
        first_rows: int64 [B], output in its first U entries: first row of each unique row.

    Returns:
        U, the number of unique rows.
    """
    stride, unique = inverse.size, 0
    if neighbours_only:
        for row in range(stride):
            if row == 0 or not _are_equal(values, weights, starts, lengths, num_keys, stride, row - 1, row):
                first_rows[unique] = row
                unique += 1
            inverse[row] = unique - 1
        return unique
    capacity = 4
    while capacity < 2 * stride:
        capacity *= 2
    slots, codes = np.full(capacity, -1, np.int32), np.empty(stride, np.uint64)
    for row in range(stride):
        code = _hash_row(values, weights, starts, lengths, num_keys, stride, row)
        slot = np.int64(code & np.uint64(capacity - 1))
        while slots[slot] >= 0:
            known = slots[slot]
            if codes[known] == code and _are_equal(
                values, weights, starts, lengths, num_keys, stride, first_rows[known], row
            ):
                break
            slot = (slot + 1) & (capacity - 1)
        if slots[slot] < 0:
            slots[slot] = unique
            codes[unique] = code
            first_rows[unique] = row
            unique += 1
        inverse[row] = slots[slot]
    return unique


@kernel()
def count_selected(lengths: Any, num_keys: int, rows: Any) -> Any:
    """Number of ids that `select_rows` writes."""
    stride, total = lengths.size // max(1, num_keys), 0
    for key in range(num_keys):
        for row in range(rows.size):
            total += lengths[key * stride + rows[row]]
    return total


@kernel()
def select_rows(
    values: Any,
    weights: Any,
    starts: Any,
    lengths: Any,
    num_keys: int,
    rows: Any,
    out_values: Any,
    out_weights: Any,
    out_lengths: Any,
    out_offsets: Any,
) -> None:
    """Gather rows of a jagged tensor without gaps or overlaps: RecD's jagged index select.

    Args:
        values: int64 [N].
        weights: float32 [N], or [0] for none.
        starts: int64 [F * U], start of each list.
        lengths: int32 [F * U].
        num_keys: F.
        rows: Integers [B]: source row of each row of the result.
        out_values: int64 [`count_selected`], output.
        out_weights: float32, the same size if there are weights, else [0]; output.
        out_lengths: int32 [F * B], output.
        out_offsets: int64 [F * B + 1], output.
    """
    stride, num_rows = lengths.size // max(1, num_keys), rows.size
    out_offsets[0] = 0
    at: Any = np.int64(0)
    for key in range(num_keys):
        for row in range(num_rows):
            place = key * stride + rows[row]
            length, start = np.int64(lengths[place]), starts[place]
            for index in range(length):
                out_values[np.uint64(at + index)] = values[np.uint64(start + index)]
            if weights.size:
                for index in range(length):
                    out_weights[np.uint64(at + index)] = weights[np.uint64(start + index)]
            at += length
            out_lengths[key * num_rows + row] = length
            out_offsets[key * num_rows + row + 1] = at
