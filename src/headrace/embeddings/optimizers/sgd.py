"""SGD on the rows that have a gradient: `w -= lr * (g + weight_decay * w)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numba
from pydantic import Field

from headrace.compiling import kernel
from headrace.config import Config
from headrace.embeddings.optimizers.base import Float32s, Int32s, Int64s, Slots, hyper_parameters

__all__ = ["SGD", "SGDConfig"]


class SGDConfig(Config):
    """Plain stochastic gradient descent; no state per row."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)  # the facebookresearch DLRM scripts use 0.1
    """Learning rate."""
    weight_decay: float = Field(default=0.0, ge=0)
    """L2, applied to rows when they are updated."""


@kernel(parallel=True)
def _apply(weights: Float32s, rows: Int64s, spaces: Int32s, gradients: Float32s, hyper: Float32s) -> None:
    for u in numba.prange(len(rows)):
        row = rows[u]
        if row != 0:
            lr, weight_decay = hyper[spaces[u], 0], hyper[spaces[u], 1]
            for d in range(weights.shape[1]):
                weights[row, d] -= lr * (gradients[u, d] + weight_decay * weights[row, d])


class SGD:
    """See `SparseOptimizer`; the same numbers as `torch.optim.SGD` where every row has a gradient."""

    kind = "sgd"

    def __init__(self, configs: Sequence[SGDConfig], embedding_dim: int) -> None:
        self.slot_widths: dict[str, int] = {}
        self.slot_values: dict[str, Float32s] = {}
        self._hyper = hyper_parameters(configs, "lr", "weight_decay")

    def apply(
        self, weights: Float32s, slots: Slots, rows: Int64s, spaces: Int32s, gradients: Float32s, step: int
    ) -> None:
        """See `SparseOptimizer.apply`."""
        _apply(weights, rows, spaces, gradients, self._hyper)
