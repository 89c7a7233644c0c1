"""FTRL-Proximal: follow the regularized leader, with a learning rate per element and L1 that gives exact zeros.

    sigma = (sqrt(n + g ** 2) - sqrt(n)) / lr
    z    += g - sigma * w
    n    += g ** 2
    w     = 0                                                       where |z| <= l1
            -(z - sign(z) * l1) / ((beta + sqrt(n)) / lr + l2)      elsewhere

McMahan et al., "Ad Click Prediction: a View from the Trenches", KDD 2013, Algorithm 1 (its alpha is `lr`). There rows
begin at zero. A row that begins elsewhere gets, at its first update, the z of which its first values are the solution,
so that it moves from where it began.
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

__all__ = ["FTRL", "FTRLConfig"]


class FTRLConfig(SparseOptimizerConfig):
    """FTRL-Proximal; two floats of state per element."""

    kind: Literal["ftrl"] = "ftrl"
    lr: float = Field(default=0.1, gt=0)  # alpha; the paper: depends on the data, best values vary
    """Learning rate."""
    beta: float = Field(default=1.0, ge=0)  # the paper: 1 is usually good enough
    """Added to the root of n; smaller makes first steps larger."""
    l1: float = Field(default=0.0, ge=0)
    """Elements whose z stays within it are exactly zero."""
    l2: float = Field(default=0.0, ge=0)
    """Pulls elements to zero in proportion."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Where n starts."""


@kernel(parallel=True)
def _apply(
    weights: npt.NDArray[Any],
    linear: Float32s,
    accumulators: Float32s,
    rows: Int64s,
    spaces: Int32s,
    gradients: Float32s,
    common: Float32s,
    hyper: Float32s,
    row_format: int,
    seed: np.uint64,
) -> None:
    dim = weights.shape[1]
    weights_at, linear_at, accumulators_at = weights.ctypes.data, linear.ctypes.data, accumulators.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
        bits = w.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, weights.shape[1] * weights.itemsize, rows, u)
            prefetch_row(linear_at, linear.shape[1] * linear.itemsize, rows, u)
            prefetch_row(accumulators_at, accumulators.shape[1] * accumulators.itemsize, rows, u)
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
            lr, beta, l1, l2, first = hyper[space]
            for d in range(dim):
                n, z = accumulators[row, d], linear[row, d]
                if z == 0 and n == first and w[d] != 0:  # the first update
                    z = -w[d] * ((beta + np.sqrt(n)) / lr + l2) - np.copysign(l1, w[d])
                root = np.sqrt(n + g[d] * g[d])
                z += g[d] - (root - np.sqrt(n)) / lr * w[d]
                accumulators[row, d], linear[row, d] = n + g[d] * g[d], z
                pull = (beta + root) / lr + l2
                w[d] = -(z - np.copysign(l1, z)) / pull if abs(z) > l1 and pull > 0 else np.float32(0.0)
            if row_format == FP32:
                for d in range(dim):
                    weights[row, d] = w[d]
            else:
                round_row(weights, row, row_format, w, bits, seed, row)


class FTRL:
    """See `SparseOptimizer`."""

    kind = "ftrl"

    def __init__(self, configs: Sequence[FTRLConfig], embedding_dim: int) -> None:
        self.slot_widths = {"linear": embedding_dim, "accumulator": embedding_dim}
        self.slot_values = {
            "linear": np.zeros(len(configs), dtype=np.float32),
            "accumulator": hyper_parameters(configs, "initial_accumulator")[:, 0].copy(),
        }
        self._common = common_parameters(configs)
        self._hyper = hyper_parameters(configs, "lr", "beta", "l1", "l2", "initial_accumulator")

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
        state = slots["linear"], slots["accumulator"]
        _apply(weights, *state, rows, spaces, gradients, self._common, self._hyper, *rounding)
