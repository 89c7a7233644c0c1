"""Loads and stores in the order in which they are written, for arrays that one thread changes while others read."""

from __future__ import annotations

from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from headrace.compiling import kernel

__all__ = ["load_acquire", "store_release"]


@kernel()
def load_acquire(address: int) -> Any:
    """The int32 at an address that is a multiple of 4; later loads see what was stored before it was."""
    return np.int64(_load(address))  # type: ignore[call-arg]


@kernel()
def store_release(address: int, value: int) -> None:
    """Store an int32 at an address that is a multiple of 4, after all stores before it."""
    _store(address, np.int32(value))  # type: ignore[call-arg]


@intrinsic
def _load(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        return builder.load_atomic(builder.inttoptr(args[0], ir.IntType(32).as_pointer()), "acquire", 4)

    return types.int32(types.int64), generate


@intrinsic
def _store(typing: Any, address: Any, value: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        builder.store_atomic(args[1], builder.inttoptr(args[0], args[1].type.as_pointer()), "release", 4)
        return context.get_dummy_value()

    return types.void(types.int64, types.int32), generate
