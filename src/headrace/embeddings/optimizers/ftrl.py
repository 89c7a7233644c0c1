"""FTRL-Proximal: follow the regularized leader, with a learning rate per element, and L1 for exact zeros.

    sigma = (sqrt(n + g ** 2) - sqrt(n)) / lr
    z    += g - sigma * w
    n    += g ** 2
    w     = 0                                                       where |z| <= l1
            -(z - sign(z) * l1) / ((beta + sqrt(n)) / lr + l2)      elsewhere

McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, Algorithm 1 (its alpha is `lr`). In the
paper, rows start at zero. For a row with other initial values, the first update sets z so that the initial values are
its solution; the row then moves from there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.optimizers.base import Float32s, Slot, SparseOptimizer, SparseOptimizerConfig, row_kernel
from headrace.errors import ConfigError

__all__ = ["FTRL", "FTRLConfig"]


class FTRLConfig(SparseOptimizerConfig):
    """FTRL-Proximal; two floats of state per element."""

    kind: Literal["ftrl"] = "ftrl"
    lr: float = Field(default=0.1, gt=0)  # alpha; the paper: depends on the data, best values vary
    """Learning rate."""
    beta: float = Field(default=1.0, ge=0)  # the paper: 1 is usually good enough
    """Added to the square root of n; smaller values make the first steps larger."""
    l1: float = Field(default=0.0, ge=0)
    """L1 regularization; elements with |z| <= l1 are exactly zero."""
    l2: float = Field(default=0.0, ge=0)
    """L2 regularization."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Initial value of n."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> FTRL:
        """See `SparseOptimizerConfig.build`."""
        return FTRL(configs, embedding_dim)

    def with_lr_factor(self, factor: float) -> Self:
        """See `SparseOptimizerConfig.with_lr_factor`; a row is its state divided by sqrt(n) / lr, so it would jump.

        Raises:
            ConfigError: Always.
        """
        raise ConfigError(
            f"optimizer {self.kind}: rows are computed anew from all gradients with the current learning rate, so they "
            "would jump with it; expected another optimizer with a learning-rate schedule"
        )


@kernel(inline=True)
def _update_row(w: Float32s, g: Float32s, states: Float32s, row: int, numbers: Float32s, table: int) -> None:
    lr, beta, l1, l2, initial = (
        numbers[table, 0],
        numbers[table, 1],
        numbers[table, 2],
        numbers[table, 3],
        numbers[table, 4],
    )
    linear, accumulators = states[row, : len(w)], states[row, len(w) :]
    for d in range(len(w)):
        n, z, x = accumulators[d], linear[d], w[d]  # read outside of branches, so that the loop is vectorized
        if z == 0 and n == initial and x != 0:  # the first update
            z = -x * ((beta + np.sqrt(n)) / lr + l2) - np.copysign(l1, x)
        root = np.sqrt(n + g[d] * g[d])
        z += g[d] - (root - np.sqrt(n)) / lr * x
        accumulators[d], linear[d] = n + g[d] * g[d], z
        pull = (beta + root) / lr + l2
        w[d] = -(z - np.copysign(l1, z)) / pull if abs(z) > l1 and pull > 0 else np.float32(0.0)


class FTRL(SparseOptimizer):
    """FTRL-Proximal."""

    kind = "ftrl"
    slots = (Slot("linear"), Slot("accumulator", initial="initial_accumulator"))
    update = row_kernel(_update_row)

    @staticmethod
    def numbers(config: FTRLConfig, step: int) -> tuple[float, ...]:
        """See `SparseOptimizer.numbers`."""
        return config.lr, config.beta, config.l1, config.l2, config.initial_accumulator

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseOptimizer.update_tensors`."""
        lr, beta, l1, l2, initial = numbers
        z, n = state.chunk(2, dim=1)
        is_first = (z == 0) & (n == initial) & (w != 0)
        z = torch.where(is_first, -w * ((beta + n.sqrt()) / lr + l2) - torch.copysign(l1, w), z)
        root = (n + g * g).sqrt()
        z = z + g - (root - n.sqrt()) / lr * w
        pull = (beta + root) / lr + l2
        moved = -(z - torch.copysign(l1, z)) / pull
        w = torch.where((z.abs() > l1) & (pull > 0), moved, torch.zeros_like(w))
        return w, torch.cat([z, n + g * g], dim=1)
