"""Adagrad: one accumulator per element, the running sum of the squared gradient.

accumulator += g ** 2
w           -= lr * g / (sqrt(accumulator) + eps)
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

__all__ = ["Adagrad", "AdagradConfig"]


class AdagradConfig(Config):
    """Adagrad with one accumulator per element."""

    kind: Literal["adagrad"] = "adagrad"
    lr: float = Field(default=0.05, gt=0)  # as for row-wise Adagrad
    """Learning rate."""
    eps: float = Field(default=1e-10, ge=0)  # torch.optim.Adagrad's default
    """Added to the root of the accumulator."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Where accumulators start; more makes first steps smaller."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2, added to the gradient of rows when they are updated."""


@kernel(parallel=True)
def _apply(
    weights: Float32s, accumulators: Float32s, rows: Int64s, spaces: Int32s, gradients: Float32s, hyper: Float32s
) -> None:
    for u in numba.prange(len(rows)):
        row = rows[u]
        if row != 0:
            space = spaces[u]
            lr, eps, weight_decay = hyper[space, 0], hyper[space, 1], hyper[space, 2]
            for d in range(weights.shape[1]):
                g = gradients[u, d] + weight_decay * weights[row, d]
                accumulator = accumulators[row, d] + g * g
                accumulators[row, d] = accumulator
                # An element that never had a gradient has nothing to divide by, also with eps = 0.
                if accumulator > 0:
                    weights[row, d] -= lr * g / (np.sqrt(accumulator) + eps)


class Adagrad:
    """See `SparseOptimizer`; the same numbers as `torch.optim.Adagrad` with sparse gradients."""

    kind = "adagrad"

    def __init__(self, configs: Sequence[AdagradConfig], embedding_dim: int) -> None:
        self.slot_widths = {"accumulator": embedding_dim}
        self.slot_values = {"accumulator": hyper_parameters(configs, "initial_accumulator")[:, 0].copy()}
        self._hyper = hyper_parameters(configs, "lr", "eps", "weight_decay")

    def apply(
        self, weights: Float32s, slots: Slots, rows: Int64s, spaces: Int32s, gradients: Float32s, step: int
    ) -> None:
        """See `SparseOptimizer.apply`."""
        _apply(weights, slots["accumulator"], rows, spaces, gradients, self._hyper)
