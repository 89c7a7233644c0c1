"""float32 and bfloat16 in compiled loops: kernels that compute in float32 and store the dtype of their array.

Numba has no bfloat16, so kernels receive such tensors as uint16, the upper halves of float32 numbers.
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
"""Number of elements below which one thread finishes before others have woken up."""


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """View a tensor as a kernel argument without a copy: float32, or uint16 for bfloat16."""
    tensor = tensor.detach()
    return (tensor.view(torch.uint16) if tensor.dtype == torch.bfloat16 else tensor).numpy()


def num_chunks(num_numbers: int) -> int:
    """Number of chunks of a kernel's rows: one per thread, or one if there is little work."""
    return 1 if num_numbers < SMALL_WORK else int(numba.get_num_threads())


def runs_compiled(*tensors: Tensor) -> bool:
    """Whether compiled kernels can process these tensors; otherwise plain torch is used.

    Plain torch is used on other devices, for float64, under `torch.autocast`, and while torch traces a model for
    export.
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
    """In a kernel: load an array element as float32."""
    raise TypeError("only for compiled code")


def store(array: Any, value: Any) -> Any:
    """In a kernel: convert a float32 to the dtype of `array`, unchanged or rounded to bfloat16 (ties to even)."""
    raise TypeError("only for compiled code")


@_numba.overload(load, inline="always")
def _load(number):  # type: ignore[no-untyped-def]  # Numba compares signatures, including annotations
    if isinstance(number, types.Float):
        return lambda number: number
    return lambda number: _from_bits(np.uint32(number) << np.uint32(16))


@_numba.overload(store, inline="always")
def _store(array, value):  # type: ignore[no-untyped-def]
    if isinstance(array.dtype, types.Float):
        return lambda array, value: value
    return lambda array, value: nearest_bf16(_bits(value))
