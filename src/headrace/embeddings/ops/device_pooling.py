"""Pooling with torch operations, for rows on a device. Same results as `pooling`, with gradients by torch's autograd.

Legend: B rows, F features, U unique keys, V unique rows of a group, D dimension.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from headrace.embeddings.lookup import LookupPart
from headrace.embeddings.ops.gradients import POOL_MAX, POOL_MEAN, POOL_SUM
from headrace.embeddings.ops.pooling import bag_positions

__all__ = ["gather_sequence_on_device", "pool_rows_on_device", "pool_unique_rows_on_device"]

Int64s = npt.NDArray[np.int64]

MODES = {POOL_SUM: "sum", POOL_MEAN: "mean", POOL_MAX: "max"}


def pool_rows_on_device(parts: Sequence[LookupPart]) -> Tensor:
    """Pooled bags of all parts of a lookup, float32 [B, F, D] on the rows' device."""
    columns: dict[int, Tensor] = {}
    for part in parts:
        for group, pooled in zip(part.groups(), pool_unique_rows_on_device(part), strict=True):
            if group.inverse is not None:
                inverse = torch.from_numpy(group.inverse).to(pooled.device)
                pooled = pooled.index_select(0, inverse)
            positions = part.features.positions[group.features].tolist()
            columns |= dict(zip(positions, pooled.unbind(1), strict=True))
    return torch.stack([columns[position] for position in sorted(columns)], dim=1)


def pool_unique_rows_on_device(part: LookupPart, names: Sequence[str] | None = None) -> tuple[Tensor, ...]:
    """Pooled bags of each group of `part.groups(names)`, float32 [V, features of the group, D]."""
    outs = []
    for group in part.groups(names):
        columns: dict[int, Tensor] = {}
        poolings = part.features.poolings[group.features]
        for pooling in np.unique(poolings).tolist():
            chosen = np.flatnonzero(poolings == pooling)
            pooled = _pool(part, group.features[chosen], group.num_bags, pooling)
            columns |= dict(zip(chosen.tolist(), pooled.unbind(0), strict=True))
        outs.append(torch.stack([columns[column] for column in sorted(columns)], dim=1))
    return tuple(outs)


def gather_sequence_on_device(part: LookupPart, feature: int) -> tuple[Tensor, Tensor]:
    """Unpooled rows of a feature's ids, float32 [n, D], and offsets int64 [bags + 1], on the device."""
    positions, offsets = bag_positions(part.found.ids, np.array([feature]))
    rows = part.leaf()
    keys = torch.from_numpy(part.found.inverse[positions]).to(rows.device)
    return rows.index_select(0, keys), torch.from_numpy(offsets).to(rows.device)


def _pool(part: LookupPart, features: Int64s, num_bags: int, pooling: int) -> Tensor:
    """Pool features that have the same pooling, float32 [features, bags of each, D]."""
    ids, rows = part.found.ids, part.leaf()
    positions, offsets = bag_positions(ids, features)
    keys = torch.from_numpy(part.found.inverse[positions]).to(rows.device)
    starts = torch.from_numpy(offsets).to(rows.device)
    if len(ids.weights) == 0 or pooling == POOL_MAX:
        pooled = embedding_bag(keys, rows, starts.to(keys.dtype), mode=MODES[pooling], include_last_offset=True)
    else:
        weights = torch.from_numpy(ids.weights[positions]).to(rows.device)
        if pooling == POOL_MEAN:  # divided by the number of ids, not by the sum of weights
            lengths = starts.diff()
            weights = weights / lengths.repeat_interleave(lengths)
        pooled = embedding_bag(
            keys, rows, starts.to(keys.dtype), mode="sum", per_sample_weights=weights, include_last_offset=True
        )
    return pooled.view(len(features), num_bags, -1)
