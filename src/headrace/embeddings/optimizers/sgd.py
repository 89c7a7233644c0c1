"""SGD on the rows that have a gradient: `w -= lr * (g + weight_decay * w)`."""

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

__all__ = ["SGD", "SGDConfig"]


class SGDConfig(SparseOptimizerConfig):
    """Plain stochastic gradient descent; no state per row."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)  # the facebookresearch DLRM scripts use 0.1
    """Learning rate."""


@kernel(parallel=True)
def _apply(
    weights: npt.NDArray[Any],
    rows: Int64s,
    spaces: Int32s,
    gradients: Float32s,
    common: Float32s,
    hyper: Float32s,
    row_format: int,
    seed: np.uint64,
) -> None:
    dim = weights.shape[1]
    weights_at = weights.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        w, g = np.empty(dim, dtype=np.float32), np.empty(dim, dtype=np.float32)
        bits = w.view(np.uint32)
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(weights_at, weights.shape[1] * weights.itemsize, rows, u)
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
            lr = hyper[space, 0]
            for d in range(len(w)):
                w[d] -= lr * g[d]
            if row_format == FP32:
                for d in range(dim):
                    weights[row, d] = w[d]
            else:
                round_row(weights, row, row_format, w, bits, seed, row)


class SGD:
    """See `SparseOptimizer`; the same numbers as `torch.optim.SGD` where every row has a gradient."""

    kind = "sgd"

    def __init__(self, configs: Sequence[SGDConfig], embedding_dim: int) -> None:
        self.slot_widths: dict[str, int] = {}
        self.slot_values: dict[str, Float32s] = {}
        self._common = common_parameters(configs)
        self._hyper = hyper_parameters(configs, "lr")

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
        _apply(weights, rows, spaces, gradients, self._common, self._hyper, *rounding)
