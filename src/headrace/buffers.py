"""Memory for large arrays that live for a step: taken again in the next step instead of given back to the kernel.

The C library returns large blocks to the kernel when they are freed, and the kernel hands out zeroed pages, one fault a
page, when they are wanted again a moment later. On a virtual machine that costs more than the work on them: 24 MB of
activations took 6.2 ms to allocate and fill anew, 0.4 ms in memory kept from the step before.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["BufferPool", "empty"]

SMALL_BYTES = 1 << 16
"""Below this the C library keeps freed memory by itself."""
MAX_IDLE_TURNS = 512
"""Requests after which a buffer nobody asked for is let go: a step makes about thirty."""


@dataclass(eq=False)
class _Buffer:
    storage: torch.UntypedStorage
    idle_count: int
    last_turn: int

    @property
    def is_idle(self) -> bool:
        return torch._C._storage_Use_Count(self.storage._cdata) == self.idle_count


class BufferPool:
    """Hands out uninitialised tensors, and the memory of one to the next as soon as nobody holds it any more.

    A tensor from here may be kept, saved for backward, returned or viewed as any other: its memory is used again only
    after the last tensor or NumPy array on it is gone. Any thread may ask.
    """

    def __init__(self) -> None:
        self._buffers: list[_Buffer] = []
        self._turn = 0
        self._lock = threading.Lock()

    def empty(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """An uninitialised contiguous CPU tensor."""
        num_bytes = math.prod(shape) * dtype.itemsize
        if num_bytes < SMALL_BYTES:
            return torch.empty(tuple(shape), dtype=dtype)
        with self._lock:
            return torch.empty(0, dtype=dtype).set_(self._take(num_bytes).storage, 0, tuple(shape))  # type: ignore[call-overload,no-any-return]

    @property
    def num_bytes(self) -> int:
        """Of all buffers, in use or idle."""
        return sum(buffer.storage.nbytes() for buffer in self._buffers)

    def _take(self, num_bytes: int) -> _Buffer:
        self._turn += 1
        # The one used last of those that fit: its lines may still be in the cache.
        best: _Buffer | None = None
        for buffer in self._buffers:
            fits = num_bytes <= buffer.storage.nbytes() <= 2 * num_bytes
            if fits and (best is None or buffer.last_turn > best.last_turn) and buffer.is_idle:
                best = buffer
        if best is None:
            oldest = self._turn - MAX_IDLE_TURNS
            self._buffers = [b for b in self._buffers if b.last_turn >= oldest or not b.is_idle]
            storage = torch.UntypedStorage(_size_class(num_bytes))  # type: ignore[no-untyped-call]
            best = _Buffer(storage, torch._C._storage_Use_Count(storage._cdata), self._turn)
            self._buffers.append(best)
        best.last_turn = self._turn
        return best


_POOL = BufferPool()


def empty(shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
    """An uninitialised contiguous CPU tensor from the pool of this process."""
    return _POOL.empty(shape, dtype)


def _size_class(num_bytes: int) -> int:
    """Rounded up by at most an eighth, so that batches of nearly one size share buffers."""
    step = 1 << max(0, num_bytes.bit_length() - 4)
    return -(-num_bytes // step) * step
