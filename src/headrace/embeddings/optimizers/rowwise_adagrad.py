"""Row-wise Adagrad: one accumulator per row, the running sum of the mean squared gradient.

    accumulator += mean(g ** 2)
    w           -= lr * g / (sqrt(accumulator) + eps)

As FBGEMM's `EXACT_ROWWISE_ADAGRAD` and TorchRec's `RowWiseAdagrad`: nearly Adagrad's quality for 1/dim of its memory.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numba
import numpy as np
from pydantic import Field

from headrace.compiling import kernel
from headrace.config import Config
from headrace.embeddings.optimizers.base import Float32s, Int32s, Int64s, Slots, hyper_parameters

__all__ = ["RowWiseAdagrad", "RowWiseAdagradConfig"]


class RowWiseAdagradConfig(Config):
    """Adagrad with one accumulator per row."""

    kind: Literal["rowwise_adagrad"] = "rowwise_adagrad"
    lr: float = Field(default=0.05, gt=0)  # best of {0.01, 0.02, 0.05, 0.1} after one pass over a Criteo sample
    """Learning rate."""
    eps: float = Field(default=1e-8, ge=0)  # FBGEMM's default
    """Added to the root of the accumulator."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Where accumulators start; more makes first steps smaller."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2, added to the gradient of rows when they are updated."""


@kernel(parallel=True)
def _apply(
    weights: Float32s, accumulators: Float32s, rows: Int64s, spaces: Int32s, gradients: Float32s, hyper: Float32s
) -> None:
    dim = weights.shape[1]
    for u in numba.prange(len(rows)):
        row = rows[u]
        if row != 0:
            space = spaces[u]
            lr, eps, weight_decay = hyper[space, 0], hyper[space, 1], hyper[space, 2]
            squares = np.float32(0.0)
            for d in range(dim):
                g = gradients[u, d] + weight_decay * weights[row, d]
                squares += g * g
            accumulator = accumulators[row, 0] + squares / np.float32(dim)
            accumulators[row, 0] = accumulator
            # A row that never had a gradient has nothing to divide by, also with eps = 0.
            rate = lr / (np.sqrt(accumulator) + eps) if accumulator > 0 else np.float32(0.0)
            for d in range(dim):
                weights[row, d] -= rate * (gradients[u, d] + weight_decay * weights[row, d])


class RowWiseAdagrad:
    """See `SparseOptimizer`."""

    kind = "rowwise_adagrad"

    def __init__(self, configs: Sequence[RowWiseAdagradConfig], embedding_dim: int) -> None:
        self.slot_widths = {"accumulator": 1}
        self.slot_values = {"accumulator": hyper_parameters(configs, "initial_accumulator")[:, 0].copy()}
        self._hyper = hyper_parameters(configs, "lr", "eps", "weight_decay")

    def apply(
        self, weights: Float32s, slots: Slots, rows: Int64s, spaces: Int32s, gradients: Float32s, step: int
    ) -> None:
        """See `SparseOptimizer.apply`."""
        _apply(weights, slots["accumulator"], rows, spaces, gradients, self._hyper)
