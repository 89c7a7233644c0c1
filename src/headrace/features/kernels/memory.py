"""Reads memory by address in compiled code: Arrow buffers without a Python object per column."""

from typing import Any

import numpy as np
from numba import carray  # type: ignore[attr-defined]
from numba.core import types
from numba.extending import intrinsic

from headrace.compiling import kernel

__all__ = [
    "at_f32",
    "at_f64",
    "at_i8",
    "at_i16",
    "at_i32",
    "at_i64",
    "at_u8",
    "at_u16",
    "at_u32",
    "at_u64",
    "is_set",
    "unowned",
]


@intrinsic
def _pointer_intrinsic(typing_context: Any, address: Any) -> Any:
    """An integer address as a void pointer."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


_pointer: Any = _pointer_intrinsic  # called with the address alone, unlike the signature above


@kernel()
def at_i8(address: Any, size: Any) -> Any:
    """`size` int8 values at an address; the functions below do the same for their types."""
    return carray(_pointer(address), size, np.int8)


@kernel()
def at_i16(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.int16)


@kernel()
def at_i32(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.int32)


@kernel()
def at_i64(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.int64)


@kernel()
def at_u8(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.uint8)


@kernel()
def at_u16(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.uint16)


@kernel()
def at_u32(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.uint32)


@kernel()
def at_u64(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.uint64)


@kernel()
def at_f32(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.float32)


@kernel()
def at_f64(address: Any, size: Any) -> Any:
    return carray(_pointer(address), size, np.float64)


@kernel()
def unowned(array: Any) -> Any:
    """A view without reference counting, valid while the array lives, as for function arguments.

    Each slice of an ordinary array updates an atomic reference count. With a dozen slices per block that took a third
    of the time of dense columns.
    """
    return carray(_pointer(array.ctypes.data), array.shape, array.dtype)


@kernel()
def is_set(bits: Any, index: Any) -> Any:
    """Whether a bit of an Arrow bitmap (least significant bit first) is set."""
    return bool((bits[index >> 3] >> (index & 7)) & 1)
