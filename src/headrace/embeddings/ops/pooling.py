"""Differentiable pooling of unique rows into bags.

Legend: N ids, B rows, F features, U unique keys, V unique rows of a group, D dimension.

The rows are not tensors of the autograd graph, because their gradient is sparse: the backward of an operation passes it
to the part of the lookup. An empty tensor, the anchor, makes autograd call this backward.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.lookup import LookupPart
from headrace.embeddings.ops.gradients import (
    POOL_MAX,
    POOL_MEAN,
    BagGradients,
    flat,
    sum_bags,
    sum_sequence,
    sum_unique_rows,
)
from headrace.tensors.jagged_ids import BagGroup, JaggedIds

__all__ = ["bag_positions", "gather_sequence", "pool_rows", "pool_unique_rows"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
U64 = np.uint64

BLOCK = 8  # bags pooled feature by feature, so that ids and bounds are read a cache line at a time
EVERY_BAG = np.empty(0, dtype=np.int64)  # bag k goes to row k


@kernel(parallel=True)
def _pool(
    rows: Float32s,
    inverse: Int32s,
    firsts: Int64s,
    lasts: Int64s,
    bag_starts: Int64s,
    num_bags: int,
    weights: Float32s,
    poolings: Int64s,
    targets: Int64s,
    out: Float32s,
    row_stride: int,
    column_stride: int,
    columns: Int64s,
) -> None:
    """Sum or average rows [U, D] in the order of each list; writes zeros for bags of max features."""
    dim = rows.shape[1]
    for block in numba.prange((num_bags + BLOCK - 1) // BLOCK):
        for f in range(len(bag_starts)):
            for k in range(block * BLOCK, min((block + 1) * BLOCK, num_bags)):
                target = targets[k] if len(targets) > 0 else k
                if target < 0:  # a unique row that does not occur in the batch
                    continue
                first, last = firsts[bag_starts[f] + k], lasts[bag_starts[f] + k]
                at = U64(target * row_stride + columns[f] * column_stride)
                if first == last or poolings[f] == POOL_MAX:
                    for d in range(dim):
                        out[at + U64(d)] = 0.0
                    continue
                divisor = np.float32(last - first) if poolings[f] == POOL_MEAN else np.float32(1.0)
                for i in range(first, last):
                    u = inverse[i]
                    scale = (weights[i] if len(weights) > 0 else np.float32(1.0)) / divisor
                    if i == first:
                        for d in range(dim):
                            out[at + U64(d)] = scale * rows[u, d]
                    else:
                        for d in range(dim):
                            out[at + U64(d)] += scale * rows[u, d]


@kernel(parallel=True)
def _pool_max(
    rows: Float32s,
    inverse: Int32s,
    firsts: Int64s,
    lasts: Int64s,
    bag_starts: Int64s,
    num_bags: int,
    poolings: Int64s,
    targets: Int64s,
    out: Float32s,
    row_stride: int,
    column_stride: int,
    columns: Int64s,
    winners: Int32s,
) -> None:
    """Element-wise maxima of the bags of max features, and the positions of the selected ids, or -1."""
    dim = rows.shape[1]
    for k in numba.prange(num_bags):
        target = targets[k] if len(targets) > 0 else k
        for f in range(len(bag_starts)):
            if poolings[f] != POOL_MAX or target < 0:
                continue
            bag = bag_starts[f] + k
            at = U64(target * row_stride + columns[f] * column_stride)
            for d in range(dim):
                winners[bag, d] = -1
            for i in range(firsts[bag], lasts[bag]):
                u = inverse[i]
                for d in range(dim):
                    if winners[bag, d] < 0 or rows[u, d] > out[at + U64(d)]:
                        out[at + U64(d)] = rows[u, d]
                        winners[bag, d] = i


@kernel(parallel=True)
def _repeat_rows(
    inverse: Int32s, targets: Int64s, columns: Int64s, out: Float32s, row_stride: int, column_stride: int, dim: int
) -> None:
    """Copy each row's features from the row for which its unique row was pooled."""
    for b in numba.prange(len(inverse)):
        source = targets[inverse[b]]
        if source == b:
            continue
        for f in range(len(columns)):
            start = U64(source * row_stride + columns[f] * column_stride)
            to = U64(b * row_stride + columns[f] * column_stride)
            for d in range(dim):
                out[to + U64(d)] = out[start + U64(d)]


@kernel()
def _first_rows(inverse: Int32s, num_unique: int) -> Int64s:
    """The first row of each unique row, -1 if it does not occur."""
    found = np.full(num_unique, -1, dtype=np.int64)
    for b in range(len(inverse) - 1, -1, -1):
        found[inverse[b]] = b
    return found


@kernel()
def _positions(firsts: Int64s, lasts: Int64s) -> tuple[Int64s, Int64s]:
    """Positions of all ids of some bags, bag by bag, and the start of each bag."""
    offsets = np.zeros(len(firsts) + 1, dtype=np.int64)
    for k in range(len(firsts)):
        offsets[k + 1] = offsets[k] + lasts[k] - firsts[k]
    positions = np.empty(offsets[-1], dtype=np.int64)
    for k in range(len(firsts)):
        for i in range(lasts[k] - firsts[k]):
            positions[offsets[k] + i] = firsts[k] + i
    return positions, offsets


def _pool_group(
    part: LookupPart, bags: BagGroup, targets: Int64s, columns: Int64s, out: Float32s, winners: Int32s
) -> None:
    """Pool the bags of one group of a part into rows `targets` and some columns of `out` [rows, columns, D]."""
    ids = part.found.ids
    where = (part.rows(), part.found.inverse, ids.firsts, ids.lasts, ids.bag_starts[bags.features], bags.num_bags)
    poolings = part.features.poolings[bags.features]
    flat_out, row_stride, column_stride = flat(out)
    _pool(*where, ids.weights, poolings, targets, flat_out, row_stride, column_stride, columns)
    if (poolings == POOL_MAX).any():
        _pool_max(*where, poolings, targets, flat_out, row_stride, column_stride, columns, winners)


def _winners(part: LookupPart, dim: int) -> Int32s:
    has_max = bool((part.features.poolings == POOL_MAX).any())
    return np.full((len(part.found.ids.firsts) if has_max else 0, dim), -1, dtype=np.int32)


class _PoolRows(torch.autograd.Function):
    """One output for all parts of a lookup, so that its gradient can be read without a copy."""

    @staticmethod
    def forward(ctx: Any, anchor: Tensor, parts: Sequence[LookupPart], out_BFD: Float32s) -> Tensor:
        ctx.parts, ctx.winners = parts, []
        for part in parts:
            winners = _winners(part, out_BFD.shape[2])
            ctx.winners.append(winners)
            for group in part.groups():
                columns = part.features.positions[group.features]
                if group.inverse is None:
                    _pool_group(part, group, EVERY_BAG, columns, out_BFD, winners)
                    continue
                targets = _first_rows(group.inverse, group.num_bags)
                _pool_group(part, group, targets, columns, out_BFD, winners)
                _repeat_rows(group.inverse, targets, columns, *flat(out_BFD), out_BFD.shape[2])
        return torch.from_numpy(out_BFD)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads_BFD = _readable(grad_outputs[0])
        for part, winners in zip(ctx.parts, ctx.winners, strict=True):
            grads = _bag_gradients(part, grads_BFD)
            part.add_gradient(sum_bags(part.layout(), part.features.poolings, part.found, grads, winners))
        return None, None, None


class _PoolUniqueRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, part: LookupPart, names: Sequence[str] | None) -> tuple[Tensor, ...]:
        dim = part.rows().shape[1]
        winners = _winners(part, dim)
        outs = []
        for group in part.groups(names):
            out = np.zeros((group.num_bags, len(group.features), dim), dtype=np.float32)
            _pool_group(part, group, EVERY_BAG, np.arange(len(group.features)), out, winners)
            outs.append(torch.from_numpy(out))
        ctx.part, ctx.names, ctx.winners = part, names, winners
        return tuple(outs)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        part: LookupPart = ctx.part
        buffer = np.concatenate([grad.contiguous().numpy().reshape(-1) for grad in grad_outputs])
        dim = grad_outputs[0].shape[2]
        num_features = len(part.features.names)
        bases, strides = np.zeros((2, num_features), dtype=np.int64)
        begin = 0
        for group in part.groups(ctx.names):
            width = len(group.features)
            bases[group.features] = begin + np.arange(width) * dim
            strides[group.features] = width * dim
            begin += group.num_bags * width * dim
        grads = BagGradients(buffer, buffer, np.zeros(num_features, dtype=bool), bases, strides, dim)
        layout = part.layout(ctx.names)
        part.add_gradient(sum_bags(layout, part.features.poolings, part.found, grads, ctx.winners))
        return None, None, None


class _GatherSequence(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, anchor: Tensor, part: LookupPart, keys: Int32s) -> Tensor:
        ctx.part, ctx.keys = part, keys
        return torch.from_numpy(part.rows()[keys])

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor | None, ...]:
        grads = grad_outputs[0].contiguous().numpy()
        ctx.part.add_gradient(sum_sequence(grads, ctx.keys, len(ctx.part.found.keys)))
        return None, None, None


def pool_rows(parts: Sequence[LookupPart], out: Tensor) -> Tensor:
    """Pool the bags of all parts of a lookup into `out`, float32 [B, F, D], D contiguous.

    The result shares the memory of `out` and is differentiable. Each part writes the columns of its features. An
    empty list gives zeros. Sums run in the order of each list.
    """
    pooled: Tensor = _PoolRows.apply(_anchor(parts), parts, out.numpy())  # type: ignore[no-untyped-call]
    return pooled


def pool_unique_rows(part: LookupPart, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
    """Pooled bags of each group of `part.groups(names)`, float32 [V, features of the group, D]; differentiable."""
    pooled: tuple[Tensor, ...] = _PoolUniqueRows.apply(_anchor([part]), part, names)  # type: ignore[no-untyped-call]
    return pooled


def gather_sequence(part: LookupPart, feature: int) -> tuple[Tensor, Tensor]:
    """Unpooled rows of a feature's ids, float32 [n, D], differentiable, and offsets int64 [bags + 1]."""
    positions, offsets = bag_positions(part.found.ids, np.array([feature]))
    keys = part.found.inverse[positions]
    rows: Tensor = _GatherSequence.apply(_anchor([part]), part, keys)  # type: ignore[no-untyped-call]
    return rows, torch.from_numpy(offsets)


def bag_positions(ids: JaggedIds, features: Int64s) -> tuple[Int64s, Int64s]:
    """Positions int64 [n] of all ids of some features, bag by bag, and offsets int64 [bags + 1] into them."""
    bags = np.concatenate([ids.bag_starts[f] + np.arange(ids.num_bags[f]) for f in features])
    return _positions(ids.firsts[bags], ids.lasts[bags])


def _anchor(parts: Sequence[LookupPart]) -> Tensor:
    return torch.empty(0, requires_grad=any(part.requires_grad for part in parts))


def _readable(grads: Tensor) -> Float32s:
    """Gradients [B, F, D], without a copy if D is contiguous and strides are not negative."""
    array: Float32s = grads.numpy()
    if array.shape[2] > 1 and array.strides[2] != 4:
        array = np.ascontiguousarray(array)
    return array


def _bag_gradients(part: LookupPart, grads_BFD: Float32s) -> BagGradients:
    """Locations of the gradients of a part's bags, after summing those of unique rows."""
    rows, row_stride, column_stride = flat(grads_BFD)
    dim, positions = grads_BFD.shape[2], part.features.positions
    is_unique = np.zeros(len(positions), dtype=bool)
    bases, strides = positions * column_stride, np.full(len(positions), row_stride)
    shared = [group for group in part.groups() if group.inverse is not None]
    unique_rows = np.empty(sum(group.num_bags * len(group.features) for group in shared) * dim, dtype=np.float32)
    begin = 0
    for group in shared:
        width, features = len(group.features), group.features
        size = group.num_bags * width * dim
        assert group.inverse is not None, "chosen above"
        sums = unique_rows[begin : begin + size].reshape(group.num_bags, width, dim)
        sum_unique_rows(grads_BFD, positions[features], group.inverse, sums)
        is_unique[features], bases[features], strides[features] = True, begin + np.arange(width) * dim, width * dim
        begin += size
    return BagGradients(rows, unique_rows, is_unique, bases, strides, dim)
