"""What is computed once per unique row of a batch, and its expansion to all rows, which comes last.

A module that works row by row on a group of features (an encoder of histories, an attention's keys) runs on the unique
rows of an inverse-keyed group; `expand` then gives each row of the batch its own. A plain group has no `inverse` and
every row is unique, so models are written once. After RecD (arXiv 2211.05239), "deduplicated compute".
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from headrace.embeddings import EmbeddingBags, Lookup
from headrace.embeddings.ops.gradients import sum_unique_rows

__all__ = ["expand", "pool_expanded"]


def expand(unique_UX: Tensor, inverse: Tensor | None) -> Tensor:
    """Rows of the batch from unique rows; differentiable, the backward is a sum per unique row in the order of rows.

    Args:
        unique_UX: [U, ...], on the CPU float32 for the ordered sum.
        inverse: int32 [B], which unique row each row of the batch has; None if each row has its own.

    Returns:
        [B, ...].
    """
    if inverse is None:
        return unique_UX
    if unique_UX.device.type != "cpu" or unique_UX.dtype != torch.float32:
        return unique_UX.index_select(0, inverse)
    return _Expand.apply(unique_UX, inverse)  # type: ignore[no-untyped-call, no-any-return]


def pool_expanded(bags: EmbeddingBags, lookup: Lookup, features: Sequence[str]) -> Tensor:
    """Pooled embeddings float32 [B, F, dim] of some features, in their order."""
    groups = bags.pool_unique(lookup, features)
    parts = [expand(group.pooled, group.inverse) for group in groups]
    names = [name for group in groups for name in group.feature_names]
    pooled = parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)
    order = [names.index(name) for name in features]
    return pooled if order == list(range(len(order))) else pooled[:, order]


class _Expand(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, unique_UX: Tensor, inverse: Tensor) -> Tensor:
        ctx.inverse, ctx.shape = inverse, unique_UX.shape
        return unique_UX.index_select(0, inverse)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = grad_outputs[0].contiguous()
        num_unique = ctx.shape[0]
        sums = np.empty((num_unique, 1, int(np.prod(ctx.shape[1:]))), dtype=np.float32)
        column = np.zeros(1, dtype=np.int64)
        sum_unique_rows(grads.view(len(grads), 1, -1).numpy(), column, ctx.inverse.numpy(), sums)
        return torch.from_numpy(sums).view(ctx.shape), None
