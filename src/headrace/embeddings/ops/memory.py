"""Loads and stores at addresses, for kernels whose helpers would otherwise count references to arrays.

Numba counts a reference each time that an array is passed on or taken from a tuple, with two atomic instructions. In
loops over random keys this took longer than the cache misses. An address is a number: `array.ctypes.data` plus bytes.
The caller of the kernel keeps the array alive. Addresses need not be aligned.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from headrace.compiling import kernel

__all__ = ["load16", "load32", "load64", "store16", "store32", "store64"]


@kernel()
def load16(address: int) -> Any:
    """The uint16 at an address."""
    return _load16(address)


@kernel()
def load32(address: int) -> Any:
    """The uint32 at an address."""
    return _load32(address)


@kernel()
def load64(address: int) -> Any:
    """The int64 at an address."""
    return np.int64(_load64(address))


@kernel()
def store16(address: int, value: Any) -> None:
    """Store the low 16 bits of a number."""
    _store16(address, np.uint64(value))


@kernel()
def store32(address: int, value: Any) -> None:
    """Store the low 32 bits of a number."""
    _store32(address, np.uint64(value))


@kernel()
def store64(address: int, value: Any) -> None:
    """Store an int64."""
    _store64(address, np.uint64(value))


def _loader(num_bits: int) -> Any:
    @intrinsic
    def load(typing: Any, address: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            value = builder.load(builder.inttoptr(args[0], ir.IntType(num_bits).as_pointer()), align=1)
            return value if num_bits == 64 else builder.zext(value, ir.IntType(64))

        return types.uint64(types.int64), generate

    return load


def _storer(num_bits: int) -> Any:
    @intrinsic
    def store(typing: Any, address: Any, value: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            low = args[1] if num_bits == 64 else builder.trunc(args[1], ir.IntType(num_bits))
            builder.store(low, builder.inttoptr(args[0], low.type.as_pointer()), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.uint64), generate

    return store


_load16, _load32, _load64 = _loader(16), _loader(32), _loader(64)
_store16, _store32, _store64 = _storer(16), _storer(32), _storer(64)
