"""Adagrad: one accumulator per element, the running sum of the squared gradient.

accumulator += g ** 2
w           -= lr * g / (sqrt(accumulator) + eps)
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.optimizers.base import Float32s, Slot, SparseOptimizer, SparseOptimizerConfig, row_kernel

__all__ = ["Adagrad", "AdagradConfig"]


class AdagradConfig(SparseOptimizerConfig):
    """Adagrad with one accumulator per element."""

    kind: Literal["adagrad"] = "adagrad"
    lr: float = Field(default=0.05, gt=0)  # as for row-wise Adagrad
    """Learning rate."""
    eps: float = Field(default=1e-10, ge=0)  # torch.optim.Adagrad's default
    """Added to the square root of the accumulator."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Initial value of accumulators; larger values make the first steps smaller."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> Adagrad:
        """See `SparseOptimizerConfig.build`."""
        return Adagrad(configs, embedding_dim)


@kernel(inline=True)
def _update_row(w: Float32s, g: Float32s, states: Float32s, row: int, numbers: Float32s, table: int) -> None:
    lr, eps = numbers[table, 0], numbers[table, 1]
    for d in range(len(w)):
        accumulator = states[row, d] + g[d] * g[d]
        states[row, d] = accumulator
        # Elements without any gradient so far must not divide by zero when eps = 0.
        if accumulator > 0:
            w[d] -= lr * g[d] / (np.sqrt(accumulator) + eps)


class Adagrad(SparseOptimizer):
    """Adagrad; results equal those of `torch.optim.Adagrad` with sparse gradients."""

    kind = "adagrad"
    slots = (Slot("accumulator", initial="initial_accumulator", is_sum=True),)
    update = row_kernel(_update_row)

    @staticmethod
    def numbers(config: AdagradConfig, step: int) -> tuple[float, ...]:
        """See `SparseOptimizer.numbers`."""
        return config.lr, config.eps

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseOptimizer.update_tensors`."""
        lr, eps = numbers
        accumulator = state + g * g
        change = lr * g / (accumulator.sqrt() + eps)
        return torch.where(accumulator > 0, w - change, w), accumulator
