"""Operators on a block of ids, in place; ids to leave out are marked 0 in a `keep` array beside the block."""

from typing import Any

import numpy as np

from headrace.compiling import kernel
from headrace.features.kernels.hashing import combine, floor_modulus, mix

__all__ = ["clamp_ids", "fill_ids", "local_hour", "look_up", "modulus", "sigrid_hash"]


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
    """Limit to [low, high]."""
    for index in range(count):
        id_ = ids[index]
        id_ = low if id_ < low else id_
        ids[index] = high if id_ > high else id_


@kernel()
def fill_ids(ids: Any, keep: Any, count: int, value: int) -> None:
    """Put an id where there is none."""
    for index in range(count):
        ids[index] = ids[index] if keep[index] else value
        keep[index] = 1


@kernel()
def look_up(ids: Any, keep: Any, count: int, slots: Any, unused: int, default: int, drop: bool) -> None:
    """Replace ids by what an open-addressing table of keys (first half of `slots`) and values (second half) holds.

    Args:
        ids: int64 block.
        keep: uint8 block; read and written only if `drop`.
        count: Ids in the block.
        slots: int64 [2 * capacity], the capacity a power of two.
        unused: The key of empty slots; no key of the map.
        default: Stands for ids not in the map, unless `drop`.
        drop: Leave out ids not in the map.
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
    """The hour of the day (0..23) of Unix times, by a table of moments, then UTC offsets from then on, in seconds."""
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
