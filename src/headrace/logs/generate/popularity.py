"""Zipf-distributed popularity of ids, with draws in a single lookup."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.keyed_random import derive

__all__ = ["Popularity", "draw_slot", "zipf_popularity"]


class Popularity(NamedTuple):
    """Concatenated alias tables of several columns; a draw takes one lookup for any skew.

    Column c has the entries `start[c]:start[c + 1]`. Walker's method: pick an entry uniformly, keep it with
    `keep[entry]`, else take `other[entry]`.

    Attributes:
        keep: f32[entries], probability.
        other: i32[entries], slot within the column.
        start: i64[columns + 1].
    """

    keep: npt.NDArray[np.float32]
    other: npt.NDArray[np.int32]
    start: npt.NDArray[np.int64]


@kernel()
def draw_slot(popularity: Popularity, column: int, bits: np.uint64) -> int:
    """Draw a slot of the column by popularity."""
    start = popularity.start[column]
    size = popularity.start[column + 1] - start
    # The upper half picks the entry, the lower half decides whether to keep it.
    slot = int(np.int64(((bits >> np.uint64(32)) * np.uint64(size)) >> np.uint64(32)))
    if np.int64(bits & np.uint64(0xFFFFFFFF)) * (1.0 / 4294967296.0) < popularity.keep[start + slot]:
        return slot
    return int(popularity.other[start + slot])


def zipf_popularity(columns: list[tuple[int, float]], seed: int) -> Popularity:
    """Build alias tables from the (cardinality, Zipf exponent) of each column.

    The seed determines which slots are popular, so neighbouring slots have unrelated popularity, like ids in logs.
    """
    start = np.zeros(len(columns) + 1, np.int64)
    start[1:] = np.cumsum([size for size, _ in columns])
    keep = np.empty(start[-1], np.float32)
    other = np.empty(start[-1], np.int32)
    for column, (size, exponent) in enumerate(columns):
        weights = np.arange(1, size + 1, dtype=np.float64) ** -exponent
        keys = np.empty(size, np.uint64)
        _fill_keys(np.uint64(seed), column, keys)
        weights = weights[np.argsort(keys, kind="stable")]
        part = slice(start[column], start[column + 1])
        _build_alias(weights * (size / weights.sum()), keep[part], other[part])
    return Popularity(keep, other, start)


@kernel()
def _fill_keys(seed: np.uint64, column: int, keys: npt.NDArray[np.uint64]) -> None:
    base = derive(seed, 7_000_000 + column)
    for slot in range(len(keys)):
        keys[slot] = derive(base, slot)


@kernel()
def _build_alias(scaled: npt.NDArray[np.float64], keep: npt.NDArray[np.float32], other: npt.NDArray[np.int32]) -> None:
    """Vose's construction; `scaled` has mean 1 and is overwritten."""
    size = len(scaled)
    stack = np.empty(size, np.int32)  # small ones grow from the front, large ones from the back
    num_small, num_large = 0, 0
    for slot in range(size):
        if scaled[slot] < 1.0:
            stack[num_small] = slot
            num_small += 1
        else:
            num_large += 1
            stack[size - num_large] = slot
    while num_small > 0 and num_large > 0:
        num_small -= 1
        small = stack[num_small]
        large = stack[size - num_large]
        keep[small] = scaled[small]
        other[small] = large
        scaled[large] -= 1.0 - scaled[small]
        if scaled[large] < 1.0:
            num_large -= 1
            stack[num_small] = large
            num_small += 1
    for i in range(num_small):
        keep[stack[i]] = 1.0
        other[stack[i]] = stack[i]
    for i in range(size - num_large, size):
        keep[stack[i]] = 1.0
        other[stack[i]] = stack[i]
