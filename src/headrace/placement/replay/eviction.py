"""Which rows leave a full memory."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.placement.replay.stream import Int32s, Int64s

__all__ = ["farthest_keys", "highest", "lowest"]


def farthest_keys(next_use: Int32s, last_use: Int32s) -> Int64s:
    """int64, keys that order rows by their next use, and among rows with the same one (`NEVER`) the least recently
    used last: the last ones leave first (Belady, 1966)."""
    keys: Int64s = (next_use.astype(np.int64) << 32) + (np.iinfo(np.int32).max - last_use.astype(np.int64))
    return keys


def lowest(rows: Int32s, keys: npt.NDArray[np.int64], count: int) -> Int32s:
    """The `count` rows with the lowest keys, in no order."""
    if count >= len(rows):
        return rows
    return rows[np.argpartition(keys, count)[:count]] if count > 0 else rows[:0]


def highest(rows: Int32s, keys: npt.NDArray[np.int64], count: int) -> Int32s:
    """The `count` rows with the highest keys, in no order."""
    return lowest(rows, -keys, count)
