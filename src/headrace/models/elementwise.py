"""Fused elementwise operations between matrix products: bias with ReLU, ReLU mask with column sums, casts."""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.models.numbers import array_of, load, num_chunks, store

__all__ = ["add_bias_relu", "cast", "mask_relu"]

Array = npt.NDArray[Any]


@kernel(parallel=True, fastmath=True)
def _add_bias_relu(y: Array, bias: Array, chunks: int) -> None:
    num_rows, width = y.shape
    for chunk in numba.prange(chunks):
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            row = y[b]
            for n in range(width):
                row[n] = store(row, max(load(row[n]) + bias[n], np.float32(0.0)))


@kernel(parallel=True, fastmath=True)
def _mask_relu(grad: Array, y: Array, sums: Array, chunks: int) -> None:
    num_rows, width = y.shape
    for chunk in numba.prange(chunks):
        part = np.zeros(width, np.float32)
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            grad_row, y_row = grad[b], y[b]
            for n in range(width):
                number = load(grad_row[n]) if load(y_row[n]) > 0 else np.float32(0.0)
                grad_row[n] = store(grad_row, number)
                part[n] += number
        for n in range(width):
            sums[chunk, n] = part[n]


def add_bias_relu(y_BN: Tensor, bias_N: Tensor) -> None:
    """Compute y = max(y + bias, 0) in place; y is float32 or bfloat16, the bias float32."""
    _add_bias_relu(array_of(y_BN), array_of(bias_N), num_chunks(y_BN.numel()))


def mask_relu(grad_BN: Tensor, y_BN: Tensor) -> Tensor:
    """Apply the backward of a ReLU with output y to a gradient in place; returns the column sums.

    Sums are float32 [N], computed per thread, so they are deterministic for a given number of threads.
    """
    chunks = num_chunks(y_BN.numel())
    sums = np.empty((chunks, y_BN.shape[1]), np.float32)
    _mask_relu(array_of(grad_BN), array_of(y_BN), sums, chunks)
    return torch.from_numpy(sums.sum(0))


def cast(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Cast x to `dtype` in pooled memory; returns x itself if it already has this dtype."""
    return x if x.dtype == dtype else empty(x.shape, dtype).copy_(x)
