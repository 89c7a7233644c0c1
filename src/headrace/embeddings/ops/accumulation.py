"""Merges keys and gradients of several lookups, such as micro-batches or feature groups, for one push."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.ops.unique import EXACT, TableLayout, unique_keys
from headrace.tensors import Keys
from headrace.tensors.jagged_ids import JaggedIds

__all__ = ["KeyGradients", "clip_norm", "merge_keys"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]

Gradients = Any  # float32 [U, D], an array, or a tensor where rows are on a device
KeyGradients = tuple[Keys, Gradients]
"""Unique keys and their gradients float32 [U, D]."""


@kernel()
def _add_rows(gradients: Float32s, where: Int32s, out: Float32s) -> None:
    for u in range(len(where)):
        for d in range(out.shape[1]):
            out[where[u], d] += gradients[u, d]


@kernel(parallel=True)
def _square_rows(gradients: Float32s, out: npt.NDArray[np.float64]) -> None:
    for u in numba.prange(len(gradients)):
        squares = 0.0
        for d in range(gradients.shape[1]):
            squares += np.float64(gradients[u, d]) * np.float64(gradients[u, d])
        out[u] = squares


def clip_norm(gradients: Gradients, max_norm: float) -> None:
    """Scale gradients float32 [U, D] in place so that their overall L2 norm is at most `max_norm`."""
    if isinstance(gradients, Tensor):
        gradients *= (max_norm / gradients.double().norm()).clamp(max=1.0).float()
        return
    squares = np.empty(len(gradients), dtype=np.float64)
    _square_rows(gradients, squares)
    norm = float(np.sqrt(squares.sum()))
    if norm > max_norm:
        gradients *= np.float32(max_norm / norm)


def merge_keys(parts: Sequence[KeyGradients]) -> KeyGradients:
    """Merge the keys of several parts and sum their gradients, in the order of the parts.

    Keys of each part, and of the result, are grouped by table in ascending order.
    """
    if len(parts) == 1:
        return parts[0]
    if all(keys.ids is parts[0][0].ids and keys.tables is parts[0][0].tables for keys, _ in parts):
        return _on_top(parts)
    if _share_no_table(parts) and isinstance(parts[0][1], np.ndarray):
        return _side_by_side(parts)
    num_tables = 1 + max((int(keys.tables[-1]) for keys, _ in parts if len(keys)), default=-1)
    bounds = [np.searchsorted(keys.tables, np.arange(num_tables + 1)).astype(np.int64) for keys, _ in parts]
    ids = _of_tables(parts, bounds, num_tables)
    unique = unique_keys(_exact_layout(num_tables), ids)
    keys = unique.keys
    first = parts[0][1]
    shape = len(keys), first.shape[1]
    gradients: Gradients = np.zeros(shape, np.float32) if isinstance(first, np.ndarray) else first.new_zeros(shape)
    keys.counts[:] = 0
    taken = ids.value_firsts.copy()  # end of the ids of each table that previous parts used
    for (part, gradient), bound in zip(parts, bounds, strict=True):
        lengths = np.diff(bound)
        places = np.repeat(taken - bound[:-1], lengths) + np.arange(len(part))
        where = unique.inverse[places]  # unique, so that torch also adds in the order of the parts
        keys.counts[where] += part.counts
        if isinstance(gradients, np.ndarray):
            _add_rows(gradient, where, gradients)
        else:
            gradients.index_add_(0, torch.from_numpy(where).to(gradients.device), gradient)
        taken += lengths
    return keys, gradients


def _on_top(parts: Sequence[KeyGradients]) -> KeyGradients:
    """Sum parts with the same keys, such as those of `BatchKeys.split`; the result has the keys of the first if only
    they have counts."""
    (keys, gradients), *others = parts
    for _, gradient in others:
        gradients += gradient
    more = [other.counts for other, _ in others if other.counts.any()]
    return (Keys(keys.tables, keys.ids, sum(more, keys.counts)) if more else keys), gradients


def _share_no_table(parts: Sequence[KeyGradients]) -> bool:
    """Whether every table occurs in one part only, as with the feature groups of a batch."""
    seen: set[int] = set()
    for keys, _ in parts:
        tables = set(keys.tables[np.flatnonzero(np.diff(keys.tables, prepend=-1))].tolist())
        if not seen.isdisjoint(tables):
            return False
        seen |= tables
    return True


def _side_by_side(parts: Sequence[KeyGradients]) -> KeyGradients:
    """Concatenate parts that share no table, so that no two keys are equal.

    Searching for equal keys takes about twenty times as long as these copies.
    """
    runs: list[tuple[int, int, int, int]] = []  # table, part, from, to
    for number, (keys, _) in enumerate(parts):
        if not len(keys):
            continue
        starts = np.flatnonzero(np.diff(keys.tables, prepend=-1)).tolist()
        ends = [*starts[1:], len(keys)]
        runs += [(int(keys.tables[at]), number, at, end) for at, end in zip(starts, ends, strict=True)]
    total, dim = sum(len(keys) for keys, _ in parts), parts[0][1].shape[1]
    keys = Keys(np.empty(total, np.int32), np.empty(total, np.int64), np.empty(total, np.int32))
    gradients = np.empty((total, dim), np.float32)
    first = 0
    for _, number, at, end in sorted(runs):
        (source, gradient), last = parts[number], first + end - at
        keys.tables[first:last], keys.ids[first:last] = source.tables[at:end], source.ids[at:end]
        keys.counts[first:last], gradients[first:last] = source.counts[at:end], gradient[at:end]
        first = last
    return keys, gradients


def _of_tables(parts: Sequence[KeyGradients], bounds: Sequence[Int64s], num_tables: int) -> JaggedIds:
    """The ids of all parts, table by table, with each table as a feature of the search for unique ids."""
    values = [
        keys.ids[bound[table] : bound[table + 1]]
        for table in range(num_tables)
        for (keys, _), bound in zip(parts, bounds, strict=True)
    ]
    ends = np.cumsum(np.sum([np.diff(bound) for bound in bounds], axis=0)).astype(np.int64)
    firsts = np.concatenate([[0], ends[:-1]]).astype(np.int64) if num_tables else ends
    none = np.empty(0, dtype=np.int64)
    return JaggedIds(
        np.concatenate(values) if values else none,
        np.empty(0, dtype=np.float32),
        np.empty(0, dtype=np.int32),
        firsts,
        ends,
        np.arange(num_tables),
        np.ones(num_tables, dtype=np.int64),
        firsts,
        ends,
        (),
        1,
    )


def _exact_layout(num_tables: int) -> TableLayout:
    return TableLayout(
        kinds=np.full(num_tables, EXACT, dtype=np.int64),
        sizes=np.zeros(num_tables, dtype=np.int64),
        salts=np.zeros(num_tables, dtype=np.uint64),
        feature_starts=np.arange(num_tables + 1, dtype=np.int64),
        features=np.arange(num_tables, dtype=np.int64),
    )
