"""Pooling of unique rows into bags, and its backward: a sum per unique row, in an order no thread count can change.

Legend: N ids, B rows, F features, U unique keys, D dimension; bag `b * F + f` is feature f of row b.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.keys import SpaceLayout, UniqueIds
from headrace.embeddings.occurrences import POOL_MAX, POOL_MEAN, JaggedIds, Occurrences, find_occurrences

__all__ = ["gather_sequence", "pool_bags"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

CHUNKS_PER_THREAD = 4  # parts of the backward sum; more than threads, so that a slow thread does not hold up the rest


@kernel(parallel=True)
def _pool(
    rows: Float32s,
    inverse: Int32s,
    offsets: Int64s,
    stride: int,
    columns: Int64s,
    weights: Float32s,
    poolings: Int64s,
    out: Float32s,
) -> None:
    """Sums or means of rows [U, D] into out [B, F, D], in the order of each list; leaves max features at zero."""
    num_features, dim = len(columns), rows.shape[1]
    for b in numba.prange(stride):
        for f in range(num_features):
            first, last = offsets[columns[f] * stride + b], offsets[columns[f] * stride + b + 1]
            for d in range(dim):
                out[b, f, d] = 0.0
            if poolings[f] == POOL_MAX:
                continue
            divisor = np.float32(last - first) if poolings[f] == POOL_MEAN else np.float32(1.0)
            for i in range(first, last):
                u = inverse[i]
                scale = (weights[i] if len(weights) > 0 else np.float32(1.0)) / divisor
                for d in range(dim):
                    out[b, f, d] += scale * rows[u, d]


@kernel(parallel=True)
def _pool_max(
    rows: Float32s,
    inverse: Int32s,
    offsets: Int64s,
    stride: int,
    columns: Int64s,
    poolings: Int64s,
    out: Float32s,
    winners: Int32s,
) -> None:
    """Element-wise maxima of max features into out [B, F, D]; winners int32 [B * F, D] are positions of ids, or -1."""
    num_features, dim = len(columns), rows.shape[1]
    for b in numba.prange(stride):
        for f in range(num_features):
            if poolings[f] == POOL_MAX:
                bag = b * num_features + f
                for d in range(dim):
                    winners[bag, d] = -1
                for i in range(offsets[columns[f] * stride + b], offsets[columns[f] * stride + b + 1]):
                    for d in range(dim):
                        if winners[bag, d] < 0 or rows[inverse[i], d] > out[b, f, d]:
                            out[b, f, d] = rows[inverse[i], d]
                            winners[bag, d] = i


@kernel(parallel=True)
def _sum_per_key(
    grads: Float32s,
    starts: Int64s,
    bags: Int32s,
    values: Int32s,
    scales: Float32s,
    poolings: Int64s,
    winners: Int32s,
    chunks: Int64s,
    out: Float32s,
) -> None:
    """out[u] = sum of the gradients [B * F, D] of the bags it went into; each key wholly within one chunk of keys."""
    dim = out.shape[1]
    for c in numba.prange(len(chunks) - 1):
        for u in range(chunks[c], chunks[c + 1]):
            for d in range(dim):
                out[u, d] = 0.0
            for o in range(starts[u], starts[u + 1]):
                bag = bags[o]
                if poolings[bag % len(poolings)] == POOL_MAX:
                    for d in range(dim):
                        if winners[bag, d] == values[o]:
                            out[u, d] += grads[bag, d]
                else:
                    scale = scales[o]
                    for d in range(dim):
                        out[u, d] += scale * grads[bag, d]


@kernel()
def _add_per_value(grads: Float32s, inverse: Int32s, first: int, out: Float32s) -> None:
    for i in range(grads.shape[0]):
        for d in range(grads.shape[1]):
            out[inverse[first + i], d] += grads[i, d]


class _PoolBags(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, rows_UD: Tensor, layout: SpaceLayout, poolings: Int64s, ids: JaggedIds, unique: UniqueIds
    ) -> Tensor:
        rows = rows_UD.detach().numpy()
        num_features = len(ids.columns)
        out = np.empty((ids.stride, num_features, rows.shape[1]), dtype=np.float32)
        where = (unique.inverse, ids.offsets, ids.stride, ids.columns)
        _pool(rows, *where, ids.weights, poolings, out)
        has_max = bool((poolings == POOL_MAX).any())
        winners = np.empty((ids.stride * num_features if has_max else 0, rows.shape[1]), dtype=np.int32)
        if has_max:
            _pool_max(rows, *where, poolings, out, winners)
        ctx.parts = layout, poolings, ids, unique, winners
        return torch.from_numpy(out)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        layout, poolings, ids, unique, winners = ctx.parts
        grads_BFD = grad_outputs[0].contiguous()
        found: Occurrences = find_occurrences(layout, poolings, ids, unique)
        dim = grads_BFD.shape[-1]
        out = np.empty((len(unique.keys), dim), dtype=np.float32)
        _sum_per_key(
            grads_BFD.view(-1, dim).numpy(),
            found.starts,
            found.bags,
            found.values,
            found.scales,
            poolings,
            winners,
            _even_chunks(found.starts),
            out,
        )
        return torch.from_numpy(out), None, None, None, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows_UD: Tensor, inverse: Int32s, first: int, last: int) -> Tensor:
        ctx.parts = inverse, first, rows_UD.shape
        return torch.from_numpy(rows_UD.detach().numpy()[inverse[first:last]])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        inverse, first, shape = ctx.parts
        out = np.zeros(shape, dtype=np.float32)
        _add_per_value(grad_outputs[0].contiguous().numpy(), inverse, first, out)
        return torch.from_numpy(out), None, None, None


def pool_bags(rows_UD: Tensor, layout: SpaceLayout, poolings: Int64s, ids: JaggedIds, unique: UniqueIds) -> Tensor:
    """Pools unique rows float32 [U, D] into float32 [B, F, D]; differentiable in `rows_UD`.

    An empty list gives zeros. Sums run in the order of each list, and backward in the order of the batch.
    """
    pooled: Tensor = _PoolBags.apply(rows_UD, layout, poolings, ids, unique)  # type: ignore[no-untyped-call]
    return pooled


def gather_sequence(rows_UD: Tensor, inverse: Int32s, first: int, last: int) -> Tensor:
    """The rows of ids `first` to `last` of the batch one by one, float32 [last - first, D]; differentiable."""
    gathered: Tensor = _GatherSequence.apply(rows_UD, inverse, first, last)  # type: ignore[no-untyped-call]
    return gathered


def _even_chunks(starts: Int64s) -> Int64s:
    """Bounds of runs of keys with about the same number of occurrences: hot ids come first, so keys are no measure."""
    num_chunks = CHUNKS_PER_THREAD * numba.get_num_threads()
    targets = np.arange(num_chunks + 1) * (starts[-1] / num_chunks)
    bounds: Int64s = np.searchsorted(starts, targets).astype(np.int64)
    bounds[0], bounds[-1] = 0, len(starts) - 1
    return bounds
