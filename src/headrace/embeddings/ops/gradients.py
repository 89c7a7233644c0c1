"""Gradients of bags and sequences, summed per unique key in an order that does not depend on the number of threads.

Legend: N ids, B rows, F features, U unique keys, V unique rows of a group, D dimension.

Rows of an inverse-keyed group are first summed into its unique rows. Then a thread processes the bags of a table in
batch order and adds their gradients to accumulators, one per key, that stay in its cache: two nanoseconds per 16
floats. Sorting occurrences by key first, to sum each key in registers, was slower (it needs a random write per id and
reads gradients out of order).
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from headrace.buffers import empty
from headrace.compiling import kernel
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.ops.tasks import deal_tasks
from headrace.embeddings.ops.unique import TableLayout
from headrace.tensors import BatchKeys

__all__ = ["POOL_MAX", "POOL_MEAN", "POOL_SUM", "BagGradients", "flat", "sum_bags", "sum_sequence", "sum_unique_rows"]

POOL_SUM, POOL_MEAN, POOL_MAX = 0, 1, 2

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
AHEAD = 16  # bags; hardware prefetchers do not follow strides larger than a page
U64 = np.uint64  # unsigned positions, so that Numba does not check for negative indices


@dataclass(frozen=True, eq=False)
class BagGradients:
    """Locations of bag gradients: the gradient of bag k of feature f starts at `bases[f] + k * strides[f]`.

    Attributes:
        rows: float32, gradients of rows, for features of plain groups.
        unique_rows: float32, gradients of unique rows, for features of inverse-keyed groups.
        is_unique: bool [F], whether a feature is in `unique_rows`.
        bases: int64 [F], position of each feature's first bag.
        strides: int64 [F], distance between bags of a feature.
        dim: Dimension D.
    """

    rows: Float32s
    unique_rows: Float32s
    is_unique: npt.NDArray[np.bool_]
    bases: Int64s
    strides: Int64s
    dim: int


def flat(array: Float32s) -> tuple[Float32s, int, int]:
    """View an array [rows, columns, D] as flat floats; also returns the strides of rows and columns in floats.

    D must be contiguous; rows and columns may be part of a larger buffer.
    """
    assert array.dtype == np.float32, f"expected float32, given {array.dtype}"
    if array.size == 0:
        return np.empty(0, dtype=np.float32), 0, 0
    assert array.strides[2] == 4 or array.shape[2] == 1, "the last dimension must be contiguous"
    row, column = (stride // 4 for stride in array.strides[:2])
    assert row >= 0, "rows must lie in ascending order"
    assert column >= 0, "columns must lie in ascending order"
    length = (array.shape[0] - 1) * row + (array.shape[1] - 1) * column + array.shape[2]
    return np.lib.stride_tricks.as_strided(array, (length,), (4,)), row, column


@kernel()
def _rows_by_unique(inverse: Int32s, num_unique: int) -> tuple[Int64s, Int32s]:
    """Rows sorted by unique row (a counting sort, so ascending within each), and the start of each unique row."""
    starts = np.zeros(num_unique + 1, dtype=np.int64)
    for b in range(len(inverse)):
        starts[inverse[b] + 1] += 1
    for v in range(num_unique):
        starts[v + 1] += starts[v]
    places, order = starts[:-1].copy(), np.empty(len(inverse), dtype=np.int32)
    for b in range(len(inverse)):
        order[places[inverse[b]]] = b
        places[inverse[b]] += 1
    return starts, order


@kernel(parallel=True)
def _sum_rows(
    grads: Float32s, row: int, column: int, positions: Int64s, starts: Int64s, order: Int32s, out: Float32s
) -> None:
    num_features, dim = out.shape[1], out.shape[2]
    for v in numba.prange(out.shape[0]):
        out[v] = np.float32(0.0)
        for o in range(starts[v], starts[v + 1]):
            for f in range(num_features):
                at = U64(order[o] * row + positions[f] * column)
                for d in range(dim):
                    out[v, f, d] += grads[at + U64(d)]


def sum_unique_rows(grads: Float32s, positions: Int64s, inverse: Int32s, out: Float32s) -> None:
    """Sum gradients of rows into gradients of unique rows, in the order of rows.

    Args:
        grads: Gradients of rows, float32 [B, columns, D].
        positions: Columns of the group's features, int64 [features of the group].
        inverse: Unique row of each row, int32 [B].
        out: Output, float32 [V, features of the group, D].
    """
    starts, order = _rows_by_unique(inverse, out.shape[0])
    _sum_rows(*flat(grads), positions, starts, order, out)


@kernel()
def _add_feature(
    grads: Float32s,
    base: int,
    stride: int,
    firsts: Int64s,
    lasts: Int64s,
    first_bag: int,
    num_bags: int,
    weights: Float32s,
    is_mean: bool,
    inverse: Int32s,
    part: int,
    num_parts: int,
    out: Float32s,
) -> None:
    dim = out.shape[1]
    for k in range(num_bags):
        first, last = firsts[first_bag + k], lasts[first_bag + k]
        at = U64(base + k * stride)
        prefetch(grads.ctypes.data + 4 * (base + (k + AHEAD) * stride))
        divisor = np.float32(last - first) if is_mean else np.float32(1.0)
        for i in range(first, last):
            u = inverse[i]
            if num_parts > 1 and u % num_parts != part:
                continue
            scale = (weights[i] if len(weights) > 0 else np.float32(1.0)) / divisor
            for d in range(dim):
                out[u, d] += scale * grads[at + U64(d)]


@kernel()
def _add_max_feature(
    grads: Float32s,
    base: int,
    stride: int,
    first_bag: int,
    num_bags: int,
    winners: Int32s,
    inverse: Int32s,
    part: int,
    num_parts: int,
    out: Float32s,
) -> None:
    for k in range(num_bags):
        at = U64(base + k * stride)
        for d in range(out.shape[1]):
            winner = winners[first_bag + k, d]
            if winner >= 0 and inverse[winner] % num_parts == part:
                out[inverse[winner], d] += grads[at + U64(d)]


@kernel(parallel=True)
def _sum_bags(
    task_starts: Int64s,
    tables: Int64s,
    parts: Int64s,
    nums_parts: Int64s,
    feature_starts: Int64s,
    features: Int64s,
    poolings: Int64s,
    rows: Float32s,
    unique_rows: Float32s,
    is_unique: npt.NDArray[np.bool_],
    bases: Int64s,
    strides: Int64s,
    firsts: Int64s,
    lasts: Int64s,
    bag_starts: Int64s,
    nums_bags: Int64s,
    weights: Float32s,
    winners: Int32s,
    inverse: Int32s,
    key_starts: Int64s,
    out: Float32s,
) -> None:
    for thread in numba.prange(len(task_starts) - 1):
        for t in range(task_starts[thread], task_starts[thread + 1]):
            table, part, num_parts = tables[t], parts[t], nums_parts[t]
            for u in range(key_starts[table], key_starts[table + 1]):
                if u % num_parts == part:
                    out[u] = np.float32(0.0)
            for j in range(feature_starts[table], feature_starts[table + 1]):
                f = features[j]
                grads = unique_rows if is_unique[f] else rows
                bags = bag_starts[f], nums_bags[f]
                if poolings[f] == POOL_MAX:
                    _add_max_feature(
                        grads, bases[f], strides[f], bags[0], bags[1], winners, inverse, part, num_parts, out
                    )
                else:
                    _add_feature(
                        grads,
                        bases[f],
                        strides[f],
                        firsts,
                        lasts,
                        bags[0],
                        bags[1],
                        weights,
                        poolings[f] == POOL_MEAN,
                        inverse,
                        part,
                        num_parts,
                        out,
                    )


def sum_bags(layout: TableLayout, poolings: Int64s, found: BatchKeys, grads: BagGradients, winners: Int32s) -> Float32s:
    """Sum the gradients of all bags per unique key, float32 [U, D], feature by feature in the order of bags.

    Args:
        layout: The pooled features, by table.
        poolings: Pooling of each feature, int64 [F].
        found: Ids and unique keys of these features, and possibly of others, whose gradients are zero.
        grads: Gradients of the bags.
        winners: int32 [bags, D], positions of the ids selected by max pooling, or -1; [0, D] without max pooling.
    """
    ids = found.ids
    out: Float32s = empty((len(found.keys), grads.dim)).numpy()
    work = (ids.value_lasts - ids.value_firsts + ids.num_bags)[layout.features]
    ends = np.concatenate([[0], np.cumsum(work)])[layout.feature_starts]
    _sum_bags(
        *deal_tasks(np.diff(ends), split=True),
        layout.feature_starts,
        layout.features,
        poolings,
        grads.rows,
        grads.unique_rows,
        grads.is_unique,
        grads.bases,
        grads.strides,
        ids.firsts,
        ids.lasts,
        ids.bag_starts,
        ids.num_bags,
        ids.weights,
        winners,
        found.inverse,
        found.key_starts,
        out,
    )
    return out


@kernel(parallel=True)
def _sum_sequence(grads: Float32s, keys: Int32s, num_parts: int, out: Float32s) -> None:
    for part in numba.prange(num_parts):
        for i in range(len(keys)):
            if keys[i] % num_parts == part:
                for d in range(out.shape[1]):
                    out[keys[i], d] += grads[i, d]


def sum_sequence(grads: Float32s, keys: Int32s, num_keys: int) -> Float32s:
    """Sum gradients of unpooled ids per unique key, float32 [U, D].

    Args:
        grads: Gradients of ids, float32 [n, D], contiguous.
        keys: Key of each id, int32 [n].
        num_keys: Number U of keys.
    """
    out = np.zeros((num_keys, grads.shape[1]), dtype=np.float32)
    _sum_sequence(grads, keys, numba.get_num_threads(), out)
    return out
