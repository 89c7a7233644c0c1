"""A stack of linear layers with ReLU as one node of the autograd graph.

    h_0 = x,  h_l = max(h_{l-1} W_l^T + b_l, 0)

Forward does one product and one pass over its result per layer; backward does one pass (mask and bias gradient) and two
products. Nothing is cast twice, and activations use pooled memory. With bfloat16, products take bfloat16 and accumulate
in float32; weights, biases and their gradients stay float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from headrace.buffers import empty
from headrace.models.elementwise import add_bias_relu, cast, mask_relu
from headrace.models.products import full_rate

__all__ = ["fused_mlp", "weight_gradient"]


class _FusedMLP(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weights: Sequence[Tensor], *parameters: Tensor) -> Tensor:
        h = cast(x, weights[0].dtype).contiguous()
        activations = [h]
        with full_rate():
            for weight, bias in zip(weights, parameters[1::2], strict=True):
                h = torch.mm(h, weight.t(), out=empty((len(h), len(weight)), weight.dtype))
                add_bias_relu(h, bias)
                activations.append(h)
        ctx.save_for_backward(*activations, *weights)
        ctx.x_dtype = x.dtype
        return h

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        num_layers = len(ctx.saved_tensors) // 2
        activations, weights = ctx.saved_tensors[: num_layers + 1], ctx.saved_tensors[num_layers + 1 :]
        gradients: list[Tensor | None] = []
        x_grad: Tensor | None = empty(grad.shape, grad.dtype).copy_(grad)  # autograd may also pass it to others
        with full_rate():
            for layer in reversed(range(num_layers)):
                masked = x_grad
                assert masked is not None
                bias_grad = mask_relu(masked, activations[layer + 1])
                gradients = [weight_gradient(masked, activations[layer]), bias_grad, *gradients]
                x_grad = None
                if layer > 0 or ctx.needs_input_grad[0]:
                    out = empty(activations[layer].shape, masked.dtype)
                    x_grad = torch.mm(masked, weights[layer], out=out)
        return (None if x_grad is None else x_grad.to(ctx.x_dtype), None, *gradients)


def fused_mlp(x_BN: Tensor, weights: Sequence[Tensor], parameters: Sequence[Tensor]) -> Tensor:
    """Apply the layers.

    Args:
        x_BN: float32 or bfloat16.
        weights: Weights of the layers in the compute dtype; the parameters themselves for float32.
        parameters: weight_1, bias_1, weight_2, ...: the float32 parameters that receive gradients.

    Returns:
        [B, width of the last layer] in the dtype of `weights`.
    """
    return _FusedMLP.apply(x_BN, weights, *parameters)  # type: ignore[no-any-return, no-untyped-call]


def weight_gradient(grad_BN: Tensor, x_BK: Tensor) -> Tensor:
    """Compute grad^T x as float32 [N, K]; sums over the batch are float32, even for bfloat16 arguments."""
    out = torch.empty(grad_BN.shape[1], x_BK.shape[1], dtype=x_BK.dtype)
    return torch.mm(grad_BN.t(), x_BK, out=out).float()
