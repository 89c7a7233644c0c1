"""The cross layers of DCN-v2 as one node of the autograd graph.

    x_{l+1} = x0 * (W_l x_l + b_l) + x_l          W_l = U_l V_l with a rank, else full

Each layer consists of its matrix products and one pass over their result. Wang et al., "DCN V2: Improved Deep & Cross
Network", 2021. Legend: B rows, X features.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.models.elementwise import cast
from headrace.models.fused_mlp import weight_gradient
from headrace.models.layers import linear
from headrace.models.numbers import array_of, load, num_chunks, runs_compiled, store
from headrace.models.products import DTYPES, Precision, full_rate

__all__ = ["CrossNetwork"]

Array = npt.NDArray[Any]
Factors = tuple[Tensor, ...]
"""Weights of a layer in order of application: (W,) or (V, U)."""


@kernel(parallel=True, fastmath=True)
def _forward(x0: Array, x: Array, bias: Array, u: Array, out: Array, chunks: int) -> None:
    num_rows, width = x0.shape
    for chunk in numba.prange(chunks):
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            x0_row, x_row, u_row, out_row = x0[b], x[b], u[b], out[b]
            for n in range(width):
                u_row[n] = store(u_row, load(u_row[n]) + bias[n])
            for n in range(width):
                out_row[n] = store(out_row, load(x0_row[n]) * load(u_row[n]) + load(x_row[n]))


@kernel(parallel=True, fastmath=True)
def _backward(
    grad: Array, below: Array, x0: Array, u: Array, x0_grad: Array, u_grad: Array, sums: Array, chunks: int
) -> None:
    num_rows, width = x0.shape
    for chunk in numba.prange(chunks):
        part = np.zeros(width, np.float32)
        for b in range(chunk * num_rows // chunks, (chunk + 1) * num_rows // chunks):
            # One loop per output array: with more, LLVM cannot prove that they do not overlap.
            grad_row, x0_row, u_row = grad[b], x0[b], u[b]
            x0_grad_row, u_grad_row, below_row = x0_grad[b], u_grad[b], below[b]
            for n in range(width):
                grad_row[n] = store(grad_row, load(grad_row[n]) + load(below_row[n]))
            for n in range(width):
                x0_grad_row[n] = store(x0_grad_row, load(x0_grad_row[n]) + load(grad_row[n]) * load(u_row[n]))
            for n in range(width):
                u_grad_row[n] = store(u_grad_row, load(grad_row[n]) * load(x0_row[n]))
            for n in range(width):
                part[n] += load(u_grad_row[n])
        for n in range(width):
            sums[chunk, n] = part[n]


class _FusedCross(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x0: Tensor, factors: Sequence[Factors], *parameters: Tensor) -> Tensor:
        dtype, ctx.x_dtype = factors[0][0].dtype, x0.dtype
        x0 = cast(x0, dtype).contiguous()
        x, saved = x0, [x0]
        biases = parameters[len(factors[0]) :: len(factors[0]) + 1]
        with full_rate():
            for weights, bias in zip(factors, biases, strict=True):
                inputs = [x]
                for weight in weights:
                    inputs.append(torch.mm(inputs[-1], weight.t(), out=empty((len(x0), len(weight)), dtype)))
                u, out = inputs.pop(), empty(x0.shape, dtype)
                given = [array_of(tensor) for tensor in (x0, x, bias)]
                _forward(given[0], given[1], given[2], array_of(u), array_of(out), num_chunks(x0.numel()))
                saved += [*inputs, u, *weights]
                x = out
        ctx.save_for_backward(*saved)
        ctx.depth = len(factors[0])
        return x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        depth, (x0, *saved) = ctx.depth, ctx.saved_tensors
        stride = 2 * depth + 1
        layers = [saved[at : at + stride] for at in range(0, len(saved), stride)]
        grad = empty(x0.shape, x0.dtype).copy_(grad)
        below = empty(x0.shape, x0.dtype).zero_()  # the gradient of x_l through W_l, not yet added to `grad`
        x0_grad = empty(x0.shape, x0.dtype).zero_()
        chunks = num_chunks(x0.numel())
        gradients: list[Tensor] = []
        with full_rate():
            for inputs_u_weights in reversed(layers):
                inputs, u, weights = (
                    inputs_u_weights[:depth],
                    inputs_u_weights[depth],
                    inputs_u_weights[depth + 1 :],
                )
                u_grad, sums = empty(x0.shape, x0.dtype), np.empty((chunks, x0.shape[1]), np.float32)
                given = [array_of(tensor) for tensor in (grad, below, x0, u)]
                _backward(given[0], given[1], given[2], given[3], array_of(x0_grad), array_of(u_grad), sums, chunks)
                of_layer = [torch.from_numpy(sums.sum(0))]
                below = u_grad
                for value, weight in zip(reversed(inputs), reversed(weights), strict=True):
                    of_layer.insert(0, weight_gradient(below, value))
                    below = torch.mm(below, weight, out=empty(value.shape, value.dtype))
                gradients = of_layer + gradients
        x0_grad.add_(grad).add_(below)
        return (x0_grad.to(ctx.x_dtype), None, *gradients)


class CrossNetwork(nn.Module):
    """Cross layers: [B, X] -> [B, X]; layer l adds feature crosses of order l + 1.

    Attributes:
        precision: Precision of its products; see `headrace.models.layers.set_precision`.
    """

    precision: Precision = "fp32"

    def __init__(self, num_features: int, num_layers: int, rank: int | None, generator: torch.Generator) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_cross_matrix(num_features, rank, generator) for _ in range(num_layers))

    def forward(self, x0_BX: Tensor) -> Tensor:
        """Apply the layers; returns float32 or bfloat16 according to `precision`."""
        layers: list[list[Any]] = [
            list(layer) if isinstance(layer, nn.Sequential) else [layer] for layer in self.layers
        ]
        parameters = [parameter for layer in layers for part in layer for parameter in part.parameters()]
        if not runs_compiled(x0_BX, parameters[0]):
            x0_BX = x_BX = x0_BX.to(parameters[0].dtype)
            for layer in self.layers:
                x_BX = torch.addcmul(x_BX, x0_BX, layer(x_BX))
            return x_BX
        dtype = DTYPES[self.precision]
        factors = [tuple(part.weight_as(dtype) for part in layer) for layer in layers]
        return _FusedCross.apply(x0_BX, factors, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def _cross_matrix(num_features: int, rank: int | None, generator: torch.Generator) -> nn.Module:
    if rank is None:
        return linear(num_features, num_features, generator)
    down = linear(num_features, rank, generator, bias=False)
    return nn.Sequential(down, linear(rank, num_features, generator))
