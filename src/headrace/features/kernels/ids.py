"""In-place operators on a block of ids: elementwise ones, and ones that depend on the rows.

Dropped ids are marked 0 in a parallel `keep` array.
"""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.hashing import combine, floor_modulus, joined_id, mix

__all__ = [
    "clamp_ids",
    "close_up",
    "enumerate_ids",
    "fill_ids",
    "first_x",
    "keep_some_rows",
    "local_hour",
    "look_up",
    "modulus",
    "sample",
    "sigrid_hash",
]


@kernel()
def sigrid_hash(ids: Any, count: int, salt: int, range_: int, multiplier: int, shift: int) -> None:
    """hash_128_to_64(salt, twang_mix64(id)) modulo `range_`, as torcharrow's `sigrid_hash`."""
    upper, factor, bits = np.uint64(salt), np.uint64(multiplier), np.uint64(shift)
    if range_ == 1:
        for index in range(count):
            ids[index] = 0
    else:
        for index in range(count):
            hashed = np.int64(combine(upper, mix(np.uint64(ids[index]))))
            ids[index] = floor_modulus(hashed, np.int64(range_), factor, bits)


@kernel()
def modulus(ids: Any, count: int, range_: int, multiplier: int, shift: int) -> None:
    """`id` modulo `range_`, never negative."""
    factor, bits = np.uint64(multiplier), np.uint64(shift)
    if range_ == 1:
        for index in range(count):
            ids[index] = 0
    else:
        for index in range(count):
            ids[index] = floor_modulus(ids[index], np.int64(range_), factor, bits)


@kernel()
def clamp_ids(ids: Any, count: int, low: int, high: int) -> None:
    """Clamp to [low, high]."""
    for index in range(count):
        id_ = ids[index]
        id_ = low if id_ < low else id_
        ids[index] = high if id_ > high else id_


@kernel()
def fill_ids(ids: Any, keep: Any, count: int, value: int) -> None:
    """Replace missing ids."""
    for index in range(count):
        ids[index] = ids[index] if keep[index] else value
        keep[index] = 1


@kernel()
def look_up(ids: Any, keep: Any, count: int, slots: Any, unused: int, default: int, drop: bool) -> None:
    """Map ids by an open-addressing hash table of keys (first half of `slots`) and values (second half).

    Args:
        ids: int64 block.
        keep: uint8 block; read and written only if `drop`.
        count: Ids in the block.
        slots: int64 [2 * capacity]; the capacity is a power of two.
        unused: Key of empty slots, not a key of the map.
        default: Value of ids that are not in the map, unless `drop`.
        drop: Whether to drop ids that are not in the map.
    """
    capacity = slots.size >> 1
    wrap = np.uint64(capacity - 1)
    for index in range(count):
        id_ = ids[index]
        slot = mix(np.uint64(id_)) & wrap
        while slots[slot] != id_ and slots[slot] != unused:
            slot = (slot + np.uint64(1)) & wrap
        found = slots[slot] == id_ and id_ != unused
        ids[index] = slots[np.uint64(capacity) + slot] if found else default
        if drop and not found:
            keep[index] = 0


@kernel()
def local_hour(times: Any, count: int, per_second: int, transitions: Any) -> None:
    """The hour of the day (0..23) of Unix times; `transitions` has UTC offset changes, then offsets, in seconds."""
    size = transitions.size >> 1
    for index in range(count):
        second = times[index] // per_second
        low, high = 0, size
        while low < high:
            middle = (low + high) >> 1
            if transitions[middle] <= second:
                low = middle + 1
            else:
                high = middle
        local = second + transitions[size + max(low - 1, 0)]
        times[index] = (local % 86_400) // 3_600


@kernel()
def first_x(keep: Any, bounds: Any, num_rows: int, limit: int) -> None:
    """Keep at most the first `limit` ids of each row."""
    for row in range(num_rows):
        left = limit
        for index in range(bounds[row], bounds[row + 1]):
            if left <= 0:
                keep[index] = 0
            left -= keep[index]


@kernel()
def enumerate_ids(ids: Any, keep: Any, bounds: Any, num_rows: int, joined: bool) -> None:
    """Replace each id with its position in its row (from 0), or with one id for (position, id)."""
    for row in range(num_rows):
        position = 0
        for index in range(bounds[row], bounds[row + 1]):
            ids[index] = joined_id(position, ids[index]) if joined else position
            position += keep[index]


@kernel()
def sample(row_id: int, seed: int, threshold: int) -> Any:
    """Whether a row is in a sample, a function of its id and the seed; the threshold is in units of 2^-63."""
    return np.int64(combine(np.uint64(seed), mix(np.uint64(row_id))) >> np.uint64(1)) < threshold


@kernel()
def keep_some_rows(keep: Any, bounds: Any, num_rows: int, row_ids: Any, seed: int, threshold: int) -> None:
    """Drop all ids of rows that are not in the sample."""
    for row in range(num_rows):
        if not sample(row_ids[row], seed, threshold):
            for index in range(bounds[row], bounds[row + 1]):
                keep[index] = 0


@kernel()
def close_up(ids: Any, keep: Any, bounds: Any, num_rows: int, lengths: Any) -> Any:
    """Compact the kept ids in order; writes the row lengths and returns the number of ids."""
    at = 0
    for row in range(num_rows):
        start = at
        for index in range(bounds[row], bounds[row + 1]):
            ids[at] = ids[index]
            at += keep[index]
        lengths[row] = at - start
    return at
