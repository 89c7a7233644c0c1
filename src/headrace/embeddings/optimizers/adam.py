"""Lazy Adam: moments change only for rows with a gradient, the bias correction counts all steps.

    m  = beta1 * m + (1 - beta1) * g
    v  = beta2 * v + (1 - beta2) * g ** 2
    w -= lr * sqrt(1 - beta2 ** step) / (1 - beta1 ** step) * m / (sqrt(v) + eps)

As `torch.optim.SparseAdam`.
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

__all__ = ["Adam", "AdamConfig"]


class AdamConfig(Config):
    """Adam whose moments stand still for rows without a gradient; two floats of state per element."""

    kind: Literal["adam"] = "adam"
    lr: float = Field(default=1e-3, gt=0)  # torch.optim.SparseAdam's defaults
    """Learning rate."""
    beta1: float = Field(default=0.9, ge=0, lt=1)
    """Decay of the mean of gradients."""
    beta2: float = Field(default=0.999, ge=0, lt=1)
    """Decay of the mean of squared gradients."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the second moment."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2, added to the gradient of rows when they are updated."""


@kernel(parallel=True)
def _apply(
    weights: Float32s,
    first: Float32s,
    second: Float32s,
    rows: Int64s,
    spaces: Int32s,
    gradients: Float32s,
    hyper: Float32s,
    rates: Float32s,
) -> None:
    for u in numba.prange(len(rows)):
        row = rows[u]
        if row != 0:
            space = spaces[u]
            eps, weight_decay = hyper[space, 0], hyper[space, 1]
            beta1, beta2 = hyper[space, 2], hyper[space, 3]
            for d in range(weights.shape[1]):
                g = gradients[u, d] + weight_decay * weights[row, d]
                m = first[row, d] + (np.float32(1.0) - beta1) * (g - first[row, d])
                v = second[row, d] + (np.float32(1.0) - beta2) * (g * g - second[row, d])
                first[row, d], second[row, d] = m, v
                weights[row, d] -= rates[space] * m / (np.sqrt(v) + eps)


class Adam:
    """See `SparseOptimizer`."""

    kind = "adam"

    def __init__(self, configs: Sequence[AdamConfig], embedding_dim: int) -> None:
        self.slot_widths = {"first_moment": embedding_dim, "second_moment": embedding_dim}
        self.slot_values = {name: np.zeros(len(configs), dtype=np.float32) for name in self.slot_widths}
        self._configs = tuple(configs)
        self._hyper = hyper_parameters(configs, "eps", "weight_decay", "beta1", "beta2")

    def apply(
        self, weights: Float32s, slots: Slots, rows: Int64s, spaces: Int32s, gradients: Float32s, step: int
    ) -> None:
        """See `SparseOptimizer.apply`."""
        corrections = [np.sqrt(1 - c.beta2**step) / (1 - c.beta1**step) for c in self._configs]
        rates = np.array([c.lr * x for c, x in zip(self._configs, corrections, strict=True)], dtype=np.float32)
        moments = slots["first_moment"], slots["second_moment"]
        _apply(weights, *moments, rows, spaces, gradients, self._hyper, rates)
