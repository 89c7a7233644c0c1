"""Lazy Adam: moments change only for rows with a gradient, the bias correction counts all steps.

    m  = beta1 * m + (1 - beta1) * g
    v  = beta2 * v + (1 - beta2) * g ** 2
    w -= lr * sqrt(1 - beta2 ** step) / (1 - beta1 ** step) * m / (sqrt(v) + eps)

As `torch.optim.SparseAdam`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numba
import numpy as np
import numpy.typing as npt
from pydantic import Field

from headrace.compiling import kernel
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.optimizers.base import (
    CHUNK,
    Float32s,
    Int32s,
    Int64s,
    Rounding,
    Slots,
    SparseOptimizerConfig,
    common_parameters,
    decay_weights,
    hyper_parameters,
    take_gradient,
)
from headrace.embeddings.storage.row_formats import FP32, round_row, widen_row

__all__ = ["Adam", "AdamConfig"]


class AdamConfig(SparseOptimizerConfig):
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


@kernel(parallel=True)
def _apply(
    weights: npt.NDArray[Any],
    first: Float32s,
    second: Float32s,
    rows: Int64s,
    spaces: Int32s,
    gradients: Float32s,
    common: Float32s,
    hyper: Float32s,
    rates: Float32s,
    row_format: int,
    seed: np.uint64,
) -> None:
    dim = weights.shape[1]
    weights_at, first_at, second_at = weights.ctypes.data, first.ctypes.data, second.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
        bits = w.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, weights.shape[1] * weights.itemsize, rows, u)
            prefetch_row(first_at, first.shape[1] * first.itemsize, rows, u)
            prefetch_row(second_at, second.shape[1] * second.itemsize, rows, u)
            row, space = rows[u], spaces[u]
            if row == 0:
                continue
            if row_format == FP32:
                for d in range(dim):
                    w[d] = weights[row, d]
            else:
                widen_row(weights, row, row_format, w, bits)
            take_gradient(gradients, u, w, common, space, g)
            decay_weights(w, common, space)
            eps, beta1, beta2 = hyper[space, 0], hyper[space, 1], hyper[space, 2]
            for d in range(dim):
                m = first[row, d] + (np.float32(1.0) - beta1) * (g[d] - first[row, d])
                v = second[row, d] + (np.float32(1.0) - beta2) * (g[d] * g[d] - second[row, d])
                first[row, d], second[row, d] = m, v
                w[d] -= rates[space] * m / (np.sqrt(v) + eps)
            if row_format == FP32:
                for d in range(dim):
                    weights[row, d] = w[d]
            else:
                round_row(weights, row, row_format, w, bits, seed, row)


class Adam:
    """See `SparseOptimizer`."""

    kind = "adam"

    def __init__(self, configs: Sequence[AdamConfig], embedding_dim: int) -> None:
        self.slot_widths = {"first_moment": embedding_dim, "second_moment": embedding_dim}
        self.slot_values = {name: np.zeros(len(configs), dtype=np.float32) for name in self.slot_widths}
        self._configs = tuple(configs)
        self._common = common_parameters(configs)
        self._hyper = hyper_parameters(configs, "eps", "beta1", "beta2")

    def apply(
        self,
        weights: npt.NDArray[Any],
        slots: Slots,
        rows: Int64s,
        spaces: Int32s,
        gradients: Float32s,
        step: int,
        rounding: Rounding,
    ) -> None:
        """See `SparseOptimizer.apply`."""
        corrections = [np.sqrt(1 - c.beta2**step) / (1 - c.beta1**step) for c in self._configs]
        rates = np.array([c.lr * x for c, x in zip(self._configs, corrections, strict=True)], dtype=np.float32)
        moments = slots["first_moment"], slots["second_moment"]
        _apply(weights, *moments, rows, spaces, gradients, self._common, self._hyper, rates, *rounding)
