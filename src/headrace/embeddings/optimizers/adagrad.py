"""Adagrad: one accumulator per element, the running sum of the squared gradient.

accumulator += g ** 2
w           -= lr * g / (sqrt(accumulator) + eps)
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

__all__ = ["Adagrad", "AdagradConfig"]


class AdagradConfig(SparseOptimizerConfig):
    """Adagrad with one accumulator per element."""

    kind: Literal["adagrad"] = "adagrad"
    lr: float = Field(default=0.05, gt=0)  # as for row-wise Adagrad
    """Learning rate."""
    eps: float = Field(default=1e-10, ge=0)  # torch.optim.Adagrad's default
    """Added to the root of the accumulator."""
    initial_accumulator: float = Field(default=0.0, ge=0)
    """Where accumulators start; more makes first steps smaller."""


@kernel(parallel=True)
def _apply(
    weights: npt.NDArray[Any],
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
    weights_at, accumulators_at = weights.ctypes.data, accumulators.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
        bits = w.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, weights.shape[1] * weights.itemsize, rows, u)
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
            lr, eps = hyper[space, 0], hyper[space, 1]
            for d in range(dim):
                accumulator = accumulators[row, d] + g[d] * g[d]
                accumulators[row, d] = accumulator
                # An element that never had a gradient has nothing to divide by, also with eps = 0.
                if accumulator > 0:
                    w[d] -= lr * g[d] / (np.sqrt(accumulator) + eps)
            if row_format == FP32:
                for d in range(dim):
                    weights[row, d] = w[d]
            else:
                round_row(weights, row, row_format, w, bits, seed, row)


class Adagrad:
    """See `SparseOptimizer`; the same numbers as `torch.optim.Adagrad` with sparse gradients."""

    kind = "adagrad"

    def __init__(self, configs: Sequence[AdagradConfig], embedding_dim: int) -> None:
        self.slot_widths = {"accumulator": embedding_dim}
        self.slot_values = {"accumulator": hyper_parameters(configs, "initial_accumulator")[:, 0].copy()}
        self._common = common_parameters(configs)
        self._hyper = hyper_parameters(configs, "lr", "eps")

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
        _apply(weights, slots["accumulator"], rows, spaces, gradients, self._common, self._hyper, *rounding)
