"""Software prefetching of memory, which hides the latency of about 100 ns of a random row."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from headrace.compiling import kernel

__all__ = ["AHEAD", "prefetch", "prefetch_row"]

AHEAD = 8  # rows; prefetching this far ahead made updates of random rows four times as fast
LINE_BYTES = 64


@kernel()
def prefetch(address: int) -> None:
    """Prefetch the cache line at an address (`array.ctypes.data` plus bytes); any address is allowed."""
    _prefetch(address)  # type: ignore[call-arg]


@kernel()
def prefetch_row(address: int, width_bytes: int, rows: npt.NDArray[np.int64], u: int) -> None:
    """Prefetch the row that is used `AHEAD` rows after `rows[u]`, of an array at `address` with `width_bytes` per
    row."""
    if u + AHEAD < len(rows):
        begin = address + rows[u + AHEAD] * width_bytes
        for line in range(0, width_bytes, LINE_BYTES):
            prefetch(begin + line)


@intrinsic
def _prefetch(typing: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        i32, byte = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [byte, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")  # type: ignore[no-untyped-call]
        # For reading, to be kept in all levels of cache, data.
        builder.call(function, [builder.inttoptr(args[0], byte), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate
