"""Hash functions for ids: xxHash64 of strings, and the 64-bit mixes of SigridHash and joined ids."""

from typing import Any

import numpy as np

from headrace.compiling import kernel

__all__ = ["ID_MASK", "combine", "floor_modulus", "joined_id", "mix", "multiply_high", "string_hash"]

ID_MASK = np.uint64(0x7FFF_FFFF_FFFF_FFFF)
"""Hashed ids have 63 bits, so they are never negative."""

_P1 = np.uint64(0x9E3779B185EBCA87)
_P2 = np.uint64(0xC2B2AE3D27D4EB4F)
_P3 = np.uint64(0x165667B19E3779F9)
_P4 = np.uint64(0x85EBCA77C2B2AE63)
_P5 = np.uint64(0x27D4EB2F165667C5)
_LOW = np.uint64(0xFFFFFFFF)
_COMBINE = np.uint64(0x9DDFEA08EB382D69)


@kernel()
def mix(key: Any) -> Any:
    """Thomas Wang's 64-bit mix, as in `folly::hash::twang_mix64`; a permutation of uint64."""
    key = (~key) + (key << np.uint64(21))
    key = key ^ (key >> np.uint64(24))
    key = key + (key << np.uint64(3)) + (key << np.uint64(8))
    key = key ^ (key >> np.uint64(14))
    key = key + (key << np.uint64(2)) + (key << np.uint64(4))
    key = key ^ (key >> np.uint64(28))
    return key + (key << np.uint64(31))


@kernel()
def combine(upper: Any, lower: Any) -> Any:
    """Combine two uint64 into one, as in `folly::hash::hash_128_to_64`."""
    first = (lower ^ upper) * _COMBINE
    first = first ^ (first >> np.uint64(47))
    second = (upper ^ first) * _COMBINE
    second = second ^ (second >> np.uint64(47))
    return second * _COMBINE


@kernel()
def joined_id(first: Any, second: Any) -> Any:
    """One 63-bit id for an ordered pair of ids."""
    return np.int64(combine(np.uint64(first), mix(np.uint64(second))) & ID_MASK)


@kernel()
def multiply_high(a: Any, b: Any) -> Any:
    """The upper 64 bits of a product of two uint64, from 32-bit halves because a 128-bit product does not vectorise."""
    shift = np.uint64(32)
    a_low, a_high, b_low, b_high = a & _LOW, a >> shift, b & _LOW, b >> shift
    middle = a_high * b_low + ((a_low * b_low) >> shift)
    other = a_low * b_high + (middle & _LOW)
    return a_high * b_high + (middle >> shift) + (other >> shift)


@kernel()
def floor_modulus(value: Any, modulus: Any, multiplier: Any, shift: Any) -> Any:
    """`value` modulo `modulus`, in [0, modulus), without a division; see `headrace.features.operators.ids.divisor`."""
    sign = value >> np.int64(63)
    quotient = np.int64(multiply_high(np.uint64(value ^ sign), multiplier) >> shift) ^ sign
    return value - quotient * modulus


@kernel()
def _rotate(value: Any, bits: Any) -> Any:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


@kernel()
def _round(accumulator: Any, lane: Any) -> Any:
    return _rotate(accumulator + lane * _P2, 31) * _P1


@kernel()
def _word(data: Any, at: Any, size: Any) -> Any:
    """`size` (at most 8) bytes from `at` on as a little-endian number."""
    word = np.uint64(0)
    for index in range(size):
        word |= np.uint64(data[at + index]) << np.uint64(8 * index)
    return word


@kernel()
def string_hash(data: Any, start: Any, stop: Any) -> Any:
    """xxHash64 (seed 0) of the bytes data[start:stop], the hash of every string id."""
    size = stop - start
    at = start
    if size >= 32:
        one, two, three, four = _P1 + _P2, _P2, np.uint64(0), np.uint64(0) - _P1
        while at + 32 <= stop:
            one, two = _round(one, _word(data, at, 8)), _round(two, _word(data, at + 8, 8))
            three, four = _round(three, _word(data, at + 16, 8)), _round(four, _word(data, at + 24, 8))
            at += 32
        total = _rotate(one, 1) + _rotate(two, 7) + _rotate(three, 12) + _rotate(four, 18)
        for lane in (one, two, three, four):
            total = (total ^ _round(np.uint64(0), lane)) * _P1 + _P4
    else:
        total = _P5
    total = total + np.uint64(size)
    while at + 8 <= stop:
        total = _rotate(total ^ _round(np.uint64(0), _word(data, at, 8)), 27) * _P1 + _P4
        at += 8
    if at + 4 <= stop:
        total = _rotate(total ^ (_word(data, at, 4) * _P1), 23) * _P2 + _P3
        at += 4
    while at < stop:
        total = _rotate(total ^ (np.uint64(data[at]) * _P5), 11) * _P1
        at += 1
    total = (total ^ (total >> np.uint64(33))) * _P2
    total = (total ^ (total >> np.uint64(29))) * _P3
    return total ^ (total >> np.uint64(32))
