"""Row-wise Adagrad: one accumulator per row, the running sum of the mean squared gradient.

    accumulator += mean(g ** 2)
    w           -= lr * g / (sqrt(accumulator) + eps)

This is FBGEMM's `EXACT_ROWWISE_ADAGRAD` and TorchRec's `RowWiseAdagrad`. Its quality is close to Adagrad's, with 1/dim
of the state.
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

__all__ = ["RowWiseAdagrad", "RowWiseAdagradConfig"]


class RowWiseAdagradConfig(SparseOptimizerConfig):
    """Adagrad with one accumulator per row."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    lr: float = Field(default=0.05, gt=0)  # best of {0.01, 0.02, 0.05, 0.1} after one pass over a Criteo sample
    """Learning rate."""
    eps: float = Field(default=1e-8, ge=0)  # FBGEMM's default
    """Added to the square root of the accumulator."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Initial value of accumulators; larger values make the first steps smaller."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> RowWiseAdagrad:
        """See `SparseOptimizerConfig.build`."""
        return RowWiseAdagrad(configs, embedding_dim)


@kernel(inline=True)
def _update_row(w: Float32s, g: Float32s, states: Float32s, row: int, numbers: Float32s, table: int) -> None:
    lr, eps = numbers[table, 0], numbers[table, 1]
    dim = len(w)
    squares = np.float32(0.0)
    for d in range(dim):
        squares += g[d] * g[d]
    accumulator = states[row, 0] + squares / np.float32(dim)
    states[row, 0] = accumulator
    # Rows without any gradient so far must not divide by zero when eps = 0.
    rate = lr / (np.sqrt(accumulator) + eps) if accumulator > 0 else np.float32(0.0)
    for d in range(dim):
        w[d] -= rate * g[d]


class RowWiseAdagrad(SparseOptimizer):
    """Row-wise Adagrad."""

    kind = "rowwise_adagrad"
    slots = (Slot("accumulator", per_element=False, initial="initial_accumulator", is_sum=True),)
    update = row_kernel(_update_row)

    @staticmethod
    def numbers(config: RowWiseAdagradConfig, step: int) -> tuple[float, ...]:
        """See `SparseOptimizer.numbers`."""
        return config.lr, config.eps

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseOptimizer.update_tensors`."""
        lr, eps = numbers
        accumulator = state + (g * g).sum(dim=1, keepdim=True) / g.shape[1]
        rate = lr / (accumulator.sqrt() + eps)
        return w - torch.where(accumulator > 0, rate, torch.zeros_like(rate)) * g, accumulator
