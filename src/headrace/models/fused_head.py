"""A linear layer with few outputs, such as logits, on one or more separate inputs.

    y_BL = sum over parts p of x_p W_p^T, + b

A GEMM with one column cannot be vectorised along it; here the loops vectorise along the inputs. Products and sums are
float32 for any input dtype, so logits keep full precision after bfloat16 layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.models.numbers import array_of, load, num_chunks, store

__all__ = ["fused_head"]

Array = npt.NDArray[Any]


@kernel(parallel=True, fastmath=True)
def _forward(x: Array, weight: Array, out: Array, chunks: int) -> None:
    num_rows, width = x.shape
    for chunk in numba.prange(chunks):
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            x_row = x[b]
            for label in range(len(weight)):
                total, weights = np.float32(0.0), weight[label]
                for k in range(width):
                    total += load(x_row[k]) * weights[k]
                out[b, label] += total


@kernel(parallel=True, fastmath=True)
def _backward(x: Array, weight: Array, grad: Array, x_grad: Array, weight_grads: Array, chunks: int) -> None:
    num_rows, width = x.shape
    for chunk in numba.prange(chunks):
        sums = np.zeros((len(weight), width), np.float32)
        x_sums = np.zeros(width, np.float32)
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            x_row, x_grad_row = x[b], x_grad[b]
            for k in range(width):
                x_sums[k] = 0.0
            for label in range(len(weight)):
                g, weights, label_sums = grad[b, label], weight[label], sums[label]
                for k in range(width):
                    label_sums[k] += g * load(x_row[k])
                    x_sums[k] += g * weights[k]
            for k in range(width):
                x_grad_row[k] = store(x_grad_row, x_sums[k])
        for label in range(len(weight)):  # an array assignment takes seconds to compile
            for k in range(width):
                weight_grads[chunk, label, k] = sums[label, k]


class _FusedHead(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, bias: Tensor, *parts: Tensor) -> Tensor:
        parts = tuple(part.contiguous() for part in parts)
        ctx.save_for_backward(weight, *parts)
        out = bias.detach().expand(len(parts[0]), -1).clone(memory_format=torch.contiguous_format)
        for part, columns in zip(parts, _columns(weight, parts), strict=True):
            _forward(array_of(part), columns, out.numpy(), num_chunks(part.numel()))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        weight, *parts = ctx.saved_tensors
        grad = grad.contiguous()
        weight_grads, part_grads = [], []
        for part, columns in zip(parts, _columns(weight, parts), strict=True):
            part_grad, chunks = empty(part.shape, part.dtype), num_chunks(part.numel())
            sums = np.empty((chunks, *columns.shape), np.float32)
            _backward(array_of(part), columns, grad.numpy(), array_of(part_grad), sums, chunks)
            weight_grads.append(sums.sum(0))
            part_grads.append(part_grad)
        return torch.from_numpy(np.concatenate(weight_grads, axis=1)), grad.sum(0), *part_grads


def fused_head(parts: Sequence[Tensor], weight_LK: Tensor, bias_L: Tensor) -> Tensor:
    """Apply the layer to the concatenation of the parts.

    Args:
        parts: Each [B, width], float32 or bfloat16; widths add up to K.
        weight_LK: float32.
        bias_L: float32.

    Returns:
        float32 [B, L].
    """
    return _FusedHead.apply(weight_LK, bias_L, *parts)  # type: ignore[no-any-return, no-untyped-call]


def _columns(weight: Tensor, parts: Sequence[Tensor]) -> list[Array]:
    """The weight columns of each part, contiguous."""
    pieces = torch.split(weight.detach(), [part.shape[1] for part in parts], dim=1)
    return [piece.contiguous().numpy() for piece in pieces]
