"""float32 and bfloat16 in compiled loops: one kernel for both, computing in float32 and storing what its array holds.

Numba has no bfloat16. A kernel gets such a tensor as uint16, the upper halves of float32 numbers.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from llvmlite import ir  # type: ignore[import-untyped]
from numba import extending, types
from torch import Tensor

from headrace.embeddings.storage.row_formats import nearest_bf16

__all__ = ["array_of", "load", "num_chunks", "runs_compiled", "store"]

_numba: Any = extending

SMALL_WORK = 1 << 15
"""Numbers below which one thread is done before others have woken up."""


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """A tensor as kernels take it, without a copy: float32, or uint16 for bfloat16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def num_chunks(num_numbers: int) -> int:
    """Into how many parts a kernel divides its rows: one a thread, or one if there is little to do."""
    return 1 if num_numbers < SMALL_WORK else int(numba.get_num_threads())


def runs_compiled(*tensors: Tensor) -> bool:
    """Whether compiled kernels may work on these tensors; else plain torch does.

    That is so on other devices, in float64, under `torch.autocast`, and while torch traces a model to export it.
    """
    return (
        all(t.is_cpu and t.dtype in (torch.float32, torch.bfloat16) and t.numel() for t in tensors)
        and not torch.compiler.is_compiling()
        and not torch.is_autocast_enabled("cpu")
    )


@_numba.intrinsic  # type: ignore[untyped-decorator]
def _bits(typing_context: Any, number: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.IntType(32))

    return types.uint32(types.float32), code


@_numba.intrinsic  # type: ignore[untyped-decorator]
def _from_bits(typing_context: Any, bits: Any) -> Any:
    def code(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.bitcast(arguments[0], ir.FloatType())

    return types.float32(types.uint32), code


def load(number: Any) -> Any:
    """In a kernel: an element of an array as float32."""
    raise TypeError("only for compiled code")


def store(array: Any, value: Any) -> Any:
    """In a kernel: a float32 as `array` holds it: as it is, or rounded to bfloat16, ties to even."""
    raise TypeError("only for compiled code")


@_numba.overload(load, inline="always")
def _load(number):  # type: ignore[no-untyped-def]  # Numba compares signatures, annotations included
    if isinstance(number, types.Float):
        return lambda number: number
    return lambda number: _from_bits(np.uint32(number) << np.uint32(16))


@_numba.overload(store, inline="always")
def _store(array, value):  # type: ignore[no-untyped-def]
    if isinstance(array.dtype, types.Float):
        return lambda array, value: value
    return lambda array, value: nearest_bf16(_bits(value))
