"""Computation on unique rows of a batch, and expansion to all rows as the last step.

A module that processes a group of features row by row (a history encoder, an attention's keys) runs on the unique rows
of an inverse-keyed group; `expand` then maps the result to all rows. A plain group has no `inverse`, and every row
counts as unique, so models need only one implementation. After RecD (arXiv 2211.05239), "deduplicated compute".
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
    """Expand unique rows to the rows of the batch. Differentiable; the backward sums per unique row, in row order.

    Args:
        unique_UX: [U, ...]; float32 on the CPU, for the ordered sum.
        inverse: int32 [B], unique row of each row of the batch; None if each row has its own.

    Returns:
        [B, ...].
    """
    if inverse is None:
        return unique_UX
    if unique_UX.device.type != "cpu" or unique_UX.dtype != torch.float32:
        return unique_UX.index_select(0, inverse)
    return _Expand.apply(unique_UX, inverse)  # type: ignore[no-untyped-call, no-any-return]


def pool_expanded(bags: EmbeddingBags, lookup: Lookup, features: Sequence[str]) -> Tensor:
    """Pooled embeddings of some features, in their order, float32 [B, F, dim]."""
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
