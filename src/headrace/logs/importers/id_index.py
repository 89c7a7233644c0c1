"""`IdIndex`: a Numba hash table that numbers ids consecutively."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.logs.keyed_random import mix

__all__ = ["IdIndex"]


class IdIndex:
    """Numbers ids 0, 1, 2, ... in order of first occurrence."""

    def __init__(self) -> None:
        self._table = np.zeros(1 << 12, np.int32)  # number + 1; 0 means free; open addressing, at most half full
        self._ids = np.empty(1 << 11, np.int64)
        self._size = 0

    def __len__(self) -> int:
        """Number of distinct ids."""
        return self._size

    @property
    def ids(self) -> npt.NDArray[np.int64]:
        """i64[len], the id of each number."""
        return self._ids[: self._size]

    def add(self, ids: npt.NDArray[np.int64]) -> npt.NDArray[np.int32]:
        """i32[N], the number of each id; new ids get new numbers."""
        while (self._size + len(ids)) > len(self._ids):
            self._grow()
        numbers = np.empty(len(ids), np.int32)
        self._size = _add(ids, self._table, self._ids, self._size, numbers)
        return numbers

    def _grow(self) -> None:
        old = self.ids
        self._table = np.zeros(2 * len(self._table), np.int32)
        self._ids = np.empty(2 * len(self._ids), np.int64)
        _add(old, self._table, self._ids, 0, np.empty(len(old), np.int32))


@kernel()
def _add(
    new: npt.NDArray[np.int64],
    table: npt.NDArray[np.int32],
    ids: npt.NDArray[np.int64],
    size: int,
    numbers: npt.NDArray[np.int32],
) -> int:
    mask = len(table) - 1
    for i in range(len(new)):
        at = int(np.int64(mix(np.uint64(new[i])) & np.uint64(mask)))
        while table[at] != 0 and ids[table[at] - 1] != new[i]:
            at = (at + 1) & mask
        if table[at] == 0:
            ids[size] = new[i]
            size += 1
            table[at] = size
        numbers[i] = table[at] - 1
    return size
