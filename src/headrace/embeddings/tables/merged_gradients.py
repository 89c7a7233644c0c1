"""`MergedGradients`: the gradients of a step with one per row, also for rows that several ids share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.prefetch import prefetch_row
from headrace.embeddings.tables.metadata import RowMetadata
from headrace.embeddings.tables.shared_rows import SharedRows

__all__ = ["MergedGradients", "merge_gradients"]

CHUNK = 512  # keys per task of a thread
MAX_FREQUENCY = 2**31 - 1

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]
Records = npt.NDArray[np.void]


@dataclass(frozen=True, eq=False)
class MergedGradients:
    """What an optimizer applies in a step.

    Attributes:
        rows: int64 [U]; 0 where the gradient is part of that of an earlier key with the same row.
        keys: Keys [U] of the rows, see `SharedRows.locate`; the counts are those of the keys that were given.
        gradients: float32 [U, D] of the rows, an array or a tensor. An array is the one that was given, with sums in a
            few places until `restore`.
        norms: float32 [U], L2 norm of the gradient of each key.
        new: int64, positions of rows that were never updated before.
        sums: int64 [S], positions of the sums in `gradients`.
        given: float32 [S, D], what was given at these positions.
    """

    rows: Int64s
    keys: Keys
    gradients: Any
    norms: Float32s
    new: Int64s
    sums: Int64s
    given: Float32s

    def restore(self) -> None:
        """Make the array of gradients what it was; `gradients` is not valid any more."""
        if len(self.sums):
            self.gradients[self.sums] = self.given


def merge_gradients(
    keys: Keys, rows: Int64s, gradients: Any, shared: SharedRows, metadata: RowMetadata, *, version: int
) -> MergedGradients:
    """Sum the gradients of keys that share a row, in the order of the keys, and record the update of the rows.

    An array is read once and not copied: sums are written over the first gradient of each shared row.

    Args:
        keys: Unique keys, with their counts.
        rows: int64 [U], row of each key, its own or a shared one; 0 for none. Becomes `MergedGradients.rows`.
        gradients: float32 [U, D], an array or a tensor.
        shared: The shared rows.
        metadata: Metadata of all rows.
        version: Version of the update.
    """
    if isinstance(gradients, Tensor):
        return _merge_tensor(keys, rows, gradients, shared, metadata, version)
    num_keys, dim = gradients.shape
    if not gradients.flags.writeable:
        gradients = gradients.copy()
    norms = np.empty(num_keys, dtype=np.float32)
    tables, ids = np.empty(num_keys, dtype=np.int32), np.empty(num_keys, dtype=np.int64)
    is_new = np.empty(num_keys, dtype=np.bool_)
    most = min(num_keys, shared.num_rows)
    sums, given = np.empty(most, dtype=np.int64), np.empty((most, dim), dtype=np.float32)
    num_new, num_sums = _merge(
        keys.tables,
        keys.ids,
        keys.counts,
        gradients,
        shared.first_rows,
        shared.first_ids,
        shared.places,
        metadata.records,
        version,
        rows,
        tables,
        ids,
        norms,
        is_new,
        sums,
        given,
    )
    new = np.flatnonzero(is_new) if num_new else np.empty(0, dtype=np.int64)
    return MergedGradients(
        rows, Keys(tables, ids, keys.counts), gradients, norms, new, sums[:num_sums], given[:num_sums]
    )


def _merge_tensor(
    keys: Keys, rows: Int64s, gradients: Tensor, shared: SharedRows, metadata: RowMetadata, version: int
) -> MergedGradients:
    norms: Float32s = gradients.norm(dim=1).cpu().numpy()
    rows[rows <= shared.num_rows] = 0
    located, counts = shared.locate(keys, rows), keys.counts.copy()
    firsts = np.empty(len(rows), dtype=np.int64)
    _find_firsts(rows, shared.num_rows, shared.places, firsts)
    merged = np.flatnonzero(firsts >= 0)
    if len(merged):
        places, sources = (torch.from_numpy(each).to(gradients.device) for each in (firsts[merged], merged))
        gradients = gradients.clone().index_add_(0, places, gradients[sources])
        np.add.at(counts, firsts[merged], keys.counts[merged])
        rows[merged] = 0
    new = metadata.mark_updated(rows, counts, version=version)
    nothing = np.empty(0, dtype=np.int64), np.empty((0, 0), dtype=np.float32)
    return MergedGradients(rows, located, gradients, norms, new, *nothing)


@kernel(parallel=True)
def _merge(
    tables: Int32s,
    ids: Int64s,
    counts: Int32s,
    gradients: Float32s,
    first_rows: Int64s,
    first_ids: Int64s,
    places: Int32s,
    records: Records,
    version: int,
    rows: Int64s,
    row_tables: Int32s,
    row_ids: Int64s,
    norms: Float32s,
    is_new: Bools,
    sums: Int64s,
    given: Float32s,
) -> tuple[int, int]:
    """See `merge_gradients`; returns the number of new rows, and of sums. Shared rows follow in one thread, so that
    sums do not depend on the number of threads."""
    num_shared = len(places) - 1
    num_new = 0
    records_at = records.ctypes.data
    for chunk in numba.prange((len(rows) + CHUNK - 1) // CHUNK):
        num_here = 0
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(rows))):
            prefetch_row(records_at, records.itemsize, rows, u)
            squares = np.float32(0.0)
            for d in range(gradients.shape[1]):
                squares += gradients[u, d] * gradients[u, d]
            norms[u] = np.sqrt(squares)
            row_tables[u], row_ids[u], is_new[u] = tables[u], ids[u], False
            if rows[u] > num_shared:
                if records[rows[u]].version == 0:
                    is_new[u] = True
                    num_here += 1
                _mark(records, rows[u], counts[u], version)
        num_new += num_here
    num_sums = 0
    for u in range(len(rows)):
        row, table = rows[u], tables[u]
        if row == 0 or row > num_shared:
            continue
        if places[row] == 0:
            sums[num_sums] = u
            for d in range(gradients.shape[1]):
                given[num_sums, d] = gradients[u, d]
            num_sums += 1
            places[row] = num_sums
            row_tables[u], row_ids[u] = len(first_rows) + table, row - first_rows[table] + first_ids[table]
            if records[row].version == 0:
                is_new[u] = True
                num_new += 1
        else:
            first = sums[places[row] - 1]
            for d in range(gradients.shape[1]):
                gradients[first, d] += gradients[u, d]
            rows[u] = 0
        _mark(records, row, counts[u], version)
    for i in range(num_sums):
        places[rows[sums[i]]] = 0
    return num_new, num_sums


@kernel(inline=True)
def _mark(records: Records, row: int, count: int, version: int) -> None:
    """Record an update of a row by an id seen `count` times."""
    records[row].version = version
    records[row].frequency = min(np.int64(records[row].frequency) + count, np.int64(MAX_FREQUENCY))


@kernel()
def _find_firsts(rows: Int64s, num_shared: int, places: Int32s, firsts: Int64s) -> None:
    """For each key whose shared row an earlier key has, the place of that key, otherwise -1."""
    for u in range(len(rows)):
        firsts[u] = -1
        if 0 < rows[u] <= num_shared:
            place = places[rows[u]]
            if place == 0:
                places[rows[u]] = u + 1
            else:
                firsts[u] = place - 1
    for u in range(len(rows)):
        if 0 < rows[u] <= num_shared:
            places[rows[u]] = 0
