"""`GrowingArray`: a one-dimensional array that grows without a copy, because the system moves its pages."""

from __future__ import annotations

import mmap
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = ["GrowingArray"]

HUGE_ABOVE = 4 << 20
"""Bytes from which huge pages are requested, as NumPy does for its arrays."""
GROWTH = 16
"""An array grows by at least one part in this many."""


class GrowingArray:
    """An array of zeros that can become longer.

    On Linux the pages are moved (`mremap`), so that growing costs neither time nor memory for a copy. Elsewhere the
    array is copied.

    Args:
        length: Number of elements.
        dtype: Type of the elements.

    Attributes:
        array: The elements. While an array that shares its memory exists, it cannot grow.
        address: Address of the first element, until the array grows.
    """

    def __init__(self, length: int, dtype: npt.DTypeLike) -> None:
        self.array: npt.NDArray[Any] = np.zeros(0, dtype=dtype)
        self.address: int = self.array.ctypes.data  # NumPy takes a microsecond to tell it, and each look-up needs four
        self._map: mmap.mmap | None = None
        if length:
            self._set_length(length)

    @property
    def num_bytes(self) -> int:
        """Bytes of the elements."""
        return self.array.nbytes

    def reserve(self, length: int) -> None:
        """Ensure a number of elements; new ones are zeros, and there may be a few more.

        Raises:
            BufferError: Another array shares the memory.
        """
        if length > len(self.array):
            self._set_length(max(length, len(self.array) + len(self.array) // GROWTH))

    def _set_length(self, length: int) -> None:
        dtype = self.array.dtype
        num_bytes = length * dtype.itemsize
        if self._map is None:
            self._map = _zeros(num_bytes)
        else:
            old_length = len(self.array)
            self.array = np.zeros(0, dtype=dtype)  # the map cannot be resized while an array refers to it
            try:
                self._map.resize(num_bytes)
            except SystemError:  # no mremap
                old, self._map = self._map, _zeros(num_bytes)
                self._map[: old_length * dtype.itemsize] = old[: old_length * dtype.itemsize]
            except (BufferError, OSError):
                self._show(old_length, dtype)
                raise
        if num_bytes >= HUGE_ABOVE and hasattr(mmap, "MADV_HUGEPAGE"):
            self._map.madvise(mmap.MADV_HUGEPAGE)
        self._show(length, dtype)

    def _show(self, length: int, dtype: np.dtype[Any]) -> None:
        assert self._map is not None
        self.array = np.frombuffer(self._map, dtype=dtype, count=length)
        self.address = self.array.ctypes.data


def _zeros(num_bytes: int) -> mmap.mmap:
    return mmap.mmap(-1, num_bytes, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
