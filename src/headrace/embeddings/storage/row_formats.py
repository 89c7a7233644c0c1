"""Storage formats of rows: fp32, or bf16, fp16 and int8 with less memory and stochastic rounding.

Rounded to nearest, small updates are lost in 16 or 8 bits. Rounded up or down at random, with probabilities by
distance, they are right on average (Zhang, Yang and Yuen, "Training with low-precision embedding tables", 2018). The
random bits are a function of (seed, step, table, id, position) only, so they are the same for any number of threads and
shards, in any order of admission, and after a resume.

| format | bits kept of fp32's 24 | greatest number | smallest step | bytes of a row |
|---|---|---|---|---|
| bf16 | 8 | 3.4e38 | 1.2e-38 (normal) | 2 D |
| fp16 | 11 | 65504, beyond it is clamped | 6e-8 | 2 D |
| int8 | 7 of the row's greatest number | 3.4e38, beyond 127 x 2^121 clamped | 1.2e-38 | D + 1 |

bf16 and fp16 rows are stored as uint16 bit patterns; kernels widen a row to fp32 when they read it. An int8 row is D
numbers from -127 to 127 and the exponent of their common scale, a power of two (a shared exponent, as in the formats of
the OCP Microscaling specification, 2023)::

    n[0] ... n[D-1] e         values n[d] * 2^e

The scale is the smallest with which the row's greatest number fits, and is chosen anew by each update. Because scales
are powers of two, numbers that an update leaves alone are kept exactly unless the scale grows. A row with an infinite
number or a NaN becomes a row of NaNs.
"""

from __future__ import annotations

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from numba.extending import register_jitable
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64

__all__ = [
    "BF16",
    "FORMATS",
    "FP16",
    "FP32",
    "INT8",
    "TENSOR_DTYPES",
    "RowFormat",
    "as_tensor",
    "nearest_bf16",
    "round_row",
    "storage_dtype",
    "stored_bytes",
    "stored_width",
    "to_float32",
    "widen_row",
]

RowFormat = Literal["fp32", "bf16", "fp16", "int8"]
FP32, BF16, FP16, INT8 = 0, 1, 2, 3
FORMATS: dict[str, int] = {"fp32": FP32, "bf16": BF16, "fp16": FP16, "int8": INT8}
TENSOR_DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16, "int8": torch.int8}

LEAST_EXPONENT, GREATEST_EXPONENT = -126, 121
"""Of int8 rows: 2^-126 is the smallest normal float32, and 127 x 2^121 is finite."""
NAN_EXPONENT = -128

Float32s = npt.NDArray[np.float32]
Uint32s = npt.NDArray[np.uint32]
Rows = npt.NDArray[Any]

U32, U64 = np.uint32, np.uint64
GOLDEN = U64(0x9E3779B97F4A7C15)
# fp16's exponent has 5 bits and bias 15, fp32's 8 and 127: times 2^112, the same bits mean the same number, also for
# subnormals.
WIDEN, NARROW = np.float32(2.0**112), np.float32(2.0**-112)
UNIT = np.float32(2.0**-16)


def storage_dtype(row_format: str) -> type[np.float32] | type[np.uint16] | type[np.int8]:
    """NumPy dtype of rows in a format."""
    if row_format == "int8":
        return np.int8
    return np.float32 if row_format == "fp32" else np.uint16


def stored_width(row_format: str, embedding_dim: int) -> int:
    """Stored numbers of a row: those of the row, and the exponent of an int8 row."""
    return embedding_dim + (row_format == "int8")


def stored_bytes(row_format: str, embedding_dim: int) -> int:
    """Bytes of a row without optimizer state."""
    return stored_width(row_format, embedding_dim) * np.dtype(storage_dtype(row_format)).itemsize


def as_tensor(rows: Rows, row_format: str) -> Tensor:
    """View rows as a tensor of their format's dtype; int8 rows [R, D + 1] with their exponents."""
    return torch.from_numpy(rows).view(TENSOR_DTYPES[row_format])


def to_float32(stored: Tensor, row_format: str) -> Tensor:
    """Widen rows of `as_tensor` to float32 [R, D], on their device."""
    if row_format != "int8":
        return stored.float()
    exponents = stored[:, -1:].int()
    scales = ((exponents.clamp(min=LEAST_EXPONENT) + 127) << 23).view(torch.float32)
    scales = torch.where(exponents == NAN_EXPONENT, torch.full_like(scales, torch.nan), scales)
    return stored[:, :-1].float() * scales


@register_jitable(inline="always")
def nearest_bf16(bits: Any) -> Any:
    """In a kernel: round fp32 bits, uint32, to the nearest bf16 bits, uint16, ties to even.

    A NaN stays a NaN if its lower 16 bits are zero, as in all NaNs that processors produce.
    """
    return np.uint16((bits + U32(0x7FFF) + ((bits >> U32(16)) & U32(1))) >> U32(16))


@kernel()
def widen_row(weights: Rows, row: int, row_format: int, out: Float32s, bits: Uint32s) -> None:
    """Widen a bf16, fp16 or int8 row to float32 [dim].

    Kernels copy fp32 rows themselves, because a call costs as much as a row. For the same reason `bits`, which is
    `out.view(np.uint32)`, is created once for many rows.
    """
    if row_format == BF16:
        for d in range(len(out)):
            bits[d] = U32(weights[row, d]) << U32(16)
        return
    if row_format == INT8:
        exponent = np.int32(weights[row, len(out)])
        bits[0] = U32(0x7FC00000) if exponent == NAN_EXPONENT else U32(exponent + 127) << U32(23)
        scale = out[0]
        for d in range(len(out)):
            out[d] = scale * np.float32(weights[row, d])
        return
    for d in range(len(out)):
        half = U32(weights[row, d])
        bits[d] = (half & U32(0x7FFF)) << U32(13)
        out[d] = out[d] * WIDEN
        bits[d] |= (half & U32(0x8000)) << U32(16)


@kernel()
def round_row(
    weights: Rows, row: int, row_format: int, values: Float32s, bits: Uint32s, seed: np.uint64, counter: int | np.uint64
) -> None:
    """Round float32 [dim] into a bf16, fp16 or int8 row; overwrites `values`.

    Args:
        weights: Array of all rows.
        row: Number of the row.
        row_format: BF16, FP16 or INT8.
        values: Values to round.
        bits: `values.view(np.uint32)`.
        seed: Seed of the random bits, a well-mixed function of table group and step.
        counter: Random stream within the seed, a function of the row's key.
    """
    state = mix64(seed + U64(counter) * GOLDEN)
    random = U64(0)
    inverse = np.float32(1.0)
    if row_format == INT8:
        exponent = _exponent_of(bits)
        weights[row, len(values)] = exponent
        if exponent == NAN_EXPONENT:
            return
        first = bits[0]
        bits[0] = U32(127 - exponent) << U32(23)
        inverse = values[0]
        bits[0] = first
    for d in range(len(values)):
        if d % 4 == 0:
            random = mix64(state + U64(d + 1) * GOLDEN)
        chance = U32(random & U64(0xFFFF))
        random >>= U64(16)
        if row_format == INT8:
            number = np.floor(inverse * values[d] + UNIT * np.float32(chance))
            weights[row, d] = np.int32(min(max(number, np.float32(-127.0)), np.float32(127.0)))
        elif row_format == BF16:
            weights[row, d] = _to_bf16(bits[d], chance)
        else:
            sign = (bits[d] >> U32(16)) & U32(0x8000)
            values[d] = abs(values[d]) * NARROW
            weights[row, d] = sign | _to_fp16(bits[d], chance & U32(0x1FFF))


@kernel()
def _exponent_of(bits: Uint32s) -> int:
    """Exponent of the smallest scale with which the row of these fp32 bits fits into -127 to 127."""
    greatest = U32(0)
    for d in range(len(bits)):
        greatest = max(greatest, bits[d] & U32(0x7FFFFFFF))
    if greatest >= U32(0x7F800000):
        return NAN_EXPONENT
    # With f * 2^x the greatest number and 1 <= f < 2, it is f * 64 steps of 2^(x - 6).
    exponent = int(greatest >> U32(23)) - 133 + int((greatest & U32(0x7FFFFF)) > U32(0x7E0000))
    return min(max(exponent, LEAST_EXPONENT), GREATEST_EXPONENT)


@kernel()
def _to_bf16(bits: np.uint32, chance: np.uint32) -> np.uint32:
    """The upper half, incremented with a probability given by the lower half; finite values stay finite."""
    exponent = U32(0x7F800000)
    if bits & exponent == exponent:  # infinities and NaNs stay so
        return U32((bits >> U32(16)) | (U32(1) if bits & U32(0x7FFFFF) != U32(0) else U32(0)))
    sum_ = U32(bits + chance)
    return U32((bits if sum_ & exponent == exponent else sum_) >> U32(16))


@kernel()
def _to_fp16(narrowed: np.uint32, chance: np.uint32) -> np.uint32:
    """Round the bits of |x| 2^-112 with 13 random bits, clamped to 65504 (0x7BFF); NaNs stay NaNs."""
    if narrowed > U32(0x7F800000):
        return U32(0x7E00)
    return U32(min(U32(narrowed + chance) >> U32(13), U32(0x7BFF)))
