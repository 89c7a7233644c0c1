"""SGD for rows with a gradient: `w -= lr * (g + weight_decay * w)`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from pydantic import Field
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.optimizers.base import Float32s, SparseOptimizer, SparseOptimizerConfig, row_kernel

__all__ = ["SGD", "SGDConfig"]


class SGDConfig(SparseOptimizerConfig):
    """Plain stochastic gradient descent; no state per row."""

    kind: Literal["sgd"] = "sgd"
    lr: float = Field(default=0.1, gt=0)  # the facebookresearch DLRM scripts use 0.1
    """Learning rate."""

    @classmethod
    def build(cls, configs: Sequence[Any], embedding_dim: int) -> SGD:
        """See `SparseOptimizerConfig.build`."""
        return SGD(configs, embedding_dim)


@kernel(inline=True)
def _update_row(w: Float32s, g: Float32s, states: Float32s, row: int, numbers: Float32s, table: int) -> None:
    lr = numbers[table, 0]
    for d in range(len(w)):
        w[d] -= lr * g[d]


class SGD(SparseOptimizer):
    """SGD; results equal those of `torch.optim.SGD` if every row has a gradient."""

    kind = "sgd"
    update = row_kernel(_update_row)

    @staticmethod
    def numbers(config: SGDConfig, step: int) -> tuple[float, ...]:
        """See `SparseOptimizer.numbers`."""
        return (config.lr,)

    @staticmethod
    def update_tensors(w: Tensor, g: Tensor, state: Tensor, *numbers: Tensor) -> tuple[Tensor, Tensor]:
        """See `SparseOptimizer.update_tensors`."""
        (lr,) = numbers
        return w - lr * g, state
