"""Lazy Adam: moments change only for rows with a gradient; the bias correction counts all steps.

    m  = beta1 * m + (1 - beta1) * g
    v  = beta2 * v + (1 - beta2) * g ** 2
    w -= lr * sqrt(1 - beta2 ** step) / (1 - beta1 ** step) * m / (sqrt(v) + eps)

This is the algorithm of `torch.optim.SparseAdam`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.optimizers.base import Float32s, Slot, SparseOptimizer, SparseOptimizerConfig, row_kernel

__all__ = ["Adam", "AdamConfig"]


class AdamConfig(SparseOptimizerConfig):
    """Lazy Adam: moments of rows without a gradient do not change; two floats of state per element."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)  # torch.optim.SparseAdam's defaults
    """Learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> Adam:
        """See `SparseOptimizerConfig.build`."""
        return Adam(configs, embedding_dim)


@kernel(inline=True)
def _update_row(w: Float32s, g: Float32s, states: Float32s, row: int, numbers: Float32s, table: int) -> None:
    rate, eps, beta1, beta2 = numbers[table, 0], numbers[table, 1], numbers[table, 2], numbers[table, 3]
    first, second = states[row, : len(w)], states[row, len(w) :]
    for d in range(len(w)):
        m = first[d] + (np.float32(1.0) - beta1) * (g[d] - first[d])
        v = second[d] + (np.float32(1.0) - beta2) * (g[d] * g[d] - second[d])
        first[d], second[d] = m, v
        w[d] -= rate * m / (np.sqrt(v) + eps)


class Adam(SparseOptimizer):
    """Lazy Adam."""

    kind = "adam"
    slots = (Slot("first_moment"), Slot("second_moment"))
    update = row_kernel(_update_row)

    @staticmethod
    def numbers(config: AdamConfig, step: int) -> tuple[float, ...]:
        """See `SparseOptimizer.numbers`; the learning rate includes the step's bias correction."""
        correction = math.sqrt(1 - config.beta2**step) / (1 - config.beta1**step)
        return config.lr * correction, config.eps, config.beta1, config.beta2

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseOptimizer.update_tensors`."""
        rate, eps, beta1, beta2 = numbers
        first, second = state.chunk(2, dim=1)
        m = first + (1 - beta1) * (g - first)
        v = second + (1 - beta2) * (g * g - second)
        return w - rate * m / (v.sqrt() + eps), torch.cat([m, v], dim=1)
