"""Where each unique key occurs in a batch, so that gradients can be summed key by key, in a fixed order, in parallel.

Legend: N ids, B rows, F features, U unique keys, D dimension; a *bag* is one feature of one row, number `b * F + f`.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import SpaceLayout, UniqueIds

__all__ = ["POOL_MAX", "POOL_MEAN", "POOL_SUM", "JaggedIds", "Occurrences", "find_occurrences"]

POOL_SUM, POOL_MEAN, POOL_MAX = 0, 1, 2

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class JaggedIds:
    """The ids of one batch, all groups in one, as arrays.

    Attributes:
        values: int64 [N].
        offsets: int64 [columns * stride + 1].
        stride: Rows B.
        columns: int64 [F], which column each feature of the bags is.
        weights: float32 [N], or [0] for all ones.
    """

    values: Int64s
    offsets: Int64s
    stride: int
    columns: Int64s
    weights: Float32s


@dataclass(frozen=True, eq=False)
class Occurrences:
    """Occurrences of each key: key u has those from `starts[u]` to `starts[u + 1]`, in the order of the batch.

    Attributes:
        starts: int64 [U + 1].
        bags: int32 [N].
        values: int32 [N], positions among the ids.
        scales: float32 [N], weight of the id divided by the bag's length where the pooling is mean.
    """

    starts: Int64s
    bags: Int32s
    values: Int32s
    scales: Float32s


@kernel(parallel=True)
def _group(
    offsets: Int64s,
    stride: int,
    columns: Int64s,
    weights: Float32s,
    feature_starts: Int64s,
    features: Int64s,
    poolings: Int64s,
    inverse: Int32s,
    key_starts: Int64s,
    next_place: Int64s,
    bags: Int32s,
    values: Int32s,
    scales: Float32s,
) -> None:
    num_features = len(columns)
    for s in numba.prange(len(key_starts) - 1):
        for j in range(feature_starts[s], feature_starts[s + 1]):
            f = features[j]
            for b in range(stride):
                first, last = offsets[columns[f] * stride + b], offsets[columns[f] * stride + b + 1]
                divisor = np.float32(last - first) if poolings[f] == POOL_MEAN else np.float32(1.0)
                for i in range(first, last):
                    place = next_place[inverse[i]]
                    next_place[inverse[i]] = place + 1
                    bags[place] = b * num_features + f
                    values[place] = i
                    scales[place] = (weights[i] if len(weights) > 0 else np.float32(1.0)) / divisor


def find_occurrences(layout: SpaceLayout, poolings: Int64s, ids: JaggedIds, unique: UniqueIds) -> Occurrences:
    """A counting sort of the batch's ids by key, spaces in parallel."""
    starts = np.zeros(len(unique.keys) + 1, dtype=np.int64)
    np.cumsum(unique.keys.counts, out=starts[1:])
    num_values = int(starts[-1])
    found = Occurrences(
        starts,
        np.empty(num_values, dtype=np.int32),
        np.empty(num_values, dtype=np.int32),
        np.empty(num_values, dtype=np.float32),
    )
    _group(
        ids.offsets,
        ids.stride,
        ids.columns,
        ids.weights,
        layout.feature_starts,
        layout.features,
        poolings,
        unique.inverse,
        unique.key_starts,
        starts[:-1].copy(),
        found.bags,
        found.values,
        found.scales,
    )
    return found
