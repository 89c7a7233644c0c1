"""`SharedRows`: the rows that ids without a row of their own read and train, a few per table, found by a hash."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64, multiply_shift, name_seeds
from headrace.embeddings.storage.protocol import NEW

__all__ = ["PLACE_BYTES", "SharedRows", "split_rows"]

PLACE_BYTES = 4
"""Bytes per shared row beside the row itself."""

CHUNK = 512  # keys per task of a thread

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint64s = npt.NDArray[np.uint64]
Records = npt.NDArray[np.void]


class SharedRows:
    """Shared rows of T tables, numbered from 1.

    Outside they are rows of T further tables: those of table t are rows of the direct table T + t. The n shared rows of
    partition p are its rows p n to (p + 1) n - 1.

    Not thread-safe, except that several threads may `locate` at once.

    Args:
        names: Names of the tables.
        sizes: Number of shared rows of each table; 0 if its ids without a row read zeros.
        seed: Seed of the hash.
        partition: Number of the partition whose rows they are.

    Attributes:
        first_rows: int64 [T], first shared row of each table.
        first_ids: int64 [T], number of that row outside.
        num_rows: Number of all shared rows.
    """

    def __init__(self, names: Sequence[str], sizes: Int64s, *, seed: int, partition: int = 0) -> None:
        ends = 1 + np.cumsum(sizes)
        self.sizes: Int64s = sizes
        self.first_ids: Int64s = partition * sizes
        self.first_rows: Int64s = ends - sizes
        self.num_rows = int(sizes.sum())
        self.salts: Uint64s = name_seeds(seed, list(names), "shared")
        self._places: Int32s = np.zeros(1 + self.num_rows, dtype=np.int32)  # scratch of `merge`

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that grow with the number of rows."""
        return self._places.nbytes

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of shared rows [R], as they appear outside."""
        tables = np.searchsorted(self.first_rows + self.sizes, rows, side="right")
        ids = rows - self.first_rows[tables] + self.first_ids[tables]
        return (tables + len(self.sizes)).astype(np.int32), ids

    def find(self, keys: Keys, rows: Int64s, records: Records) -> int:
        """Fill in the shared rows of keys [U] whose row is 0, `NEW` for those that were never updated; returns their
        number."""
        return _find(keys.tables, keys.ids, self.first_rows, self.sizes, self.salts, records, rows)

    def locate(self, keys: Keys, rows: Int64s) -> Keys:
        """Fill in the shared rows of keys [U] whose row is 0.

        Args:
            keys: Unique keys.
            rows: int64 [U], the rows of the keys' own; 0 becomes the shared row, or stays 0 if the table has none.

        Returns:
            The keys of the rows: for a shared row its own key, see the class; the counts are those of `keys`.
        """
        tables, ids = np.empty(len(rows), dtype=np.int32), np.empty(len(rows), dtype=np.int64)
        where = self.first_rows, self.first_ids, self.sizes, self.salts
        _locate(keys.tables, keys.ids, *where, rows, tables, ids)
        return Keys(tables, ids, keys.counts)

    def merge(self, keys: Keys, rows: Int64s, gradients: Any) -> tuple[Keys, Any]:
        """Sum the gradients and counts of keys that share a row, in the order of the keys.

        Args:
            keys: Keys [U] of the rows.
            rows: int64 [U]; all but the first occurrence of a shared row become 0.
            gradients: float32 [U, D], an array or a tensor; stays as it is.

        Returns:
            Keys and gradients, valid where rows are not 0.
        """
        firsts = np.empty(len(rows), dtype=np.int64)
        num_merged = _find_firsts(rows, self.num_rows, self._places, firsts)
        if not num_merged:
            return keys, gradients
        merged = np.flatnonzero(firsts >= 0)
        counts = keys.counts.copy()
        if isinstance(gradients, np.ndarray):
            gradients = gradients.copy()
            _add_to_firsts(gradients, firsts, gradients, counts)
        else:
            places, sources = (torch.from_numpy(each).to(gradients.device) for each in (firsts[merged], merged))
            gradients = gradients.clone().index_add_(0, places, gradients[sources])
            np.add.at(counts, firsts[merged], keys.counts[merged])
        rows[merged] = 0
        return Keys(keys.tables, keys.ids, counts), gradients


def split_rows(total: int, weights: Sequence[float]) -> Int64s:
    """Split `total` rows between T tables in proportion to weights, int64 [T]; one each, and the rest rounded down."""
    shares = np.array(weights, dtype=np.float64) / sum(weights)
    rows: Int64s = 1 + np.floor(shares * max(0, total - len(weights))).astype(np.int64)
    return rows


@kernel()
def shared_row(table: int, key: int, first_rows: Int64s, sizes: Int64s, salts: Uint64s) -> int:
    """The shared row of an id; 0 if its table has none."""
    if sizes[table] == 0:
        return np.int64(0)  # type: ignore[return-value]
    hashed = mix64(np.uint64(key) ^ salts[table])
    return first_rows[table] + np.int64(multiply_shift(hashed, np.uint64(sizes[table])))  # type: ignore[no-any-return]


@kernel()
def _find(
    tables: Int32s, ids: Int64s, first_rows: Int64s, sizes: Int64s, salts: Uint64s, records: Records, rows: Int64s
) -> int:
    num_new = 0
    for u in range(len(ids)):
        if rows[u] == 0:
            rows[u] = shared_row(tables[u], ids[u], first_rows, sizes, salts)
            if rows[u] != 0 and records[rows[u]].version == 0:
                rows[u] = NEW
                num_new += 1
    return num_new


@kernel(parallel=True)
def _locate(
    tables: Int32s,
    ids: Int64s,
    first_rows: Int64s,
    first_ids: Int64s,
    sizes: Int64s,
    salts: Uint64s,
    rows: Int64s,
    row_tables: Int32s,
    row_ids: Int64s,
) -> None:
    num_tables = len(sizes)
    for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
        for u in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids))):
            table = tables[u]
            row_tables[u], row_ids[u] = table, ids[u]
            if rows[u] == 0 and sizes[table] > 0:
                rows[u] = shared_row(table, ids[u], first_rows, sizes, salts)
                row_ids[u] = rows[u] - first_rows[table] + first_ids[table]
                row_tables[u] = num_tables + table


@kernel()
def _find_firsts(rows: Int64s, num_shared: int, places: Int32s, firsts: Int64s) -> int:
    """For each key whose shared row an earlier key has, the place of that key, otherwise -1; returns their number."""
    num_merged = 0
    for u in range(len(rows)):
        firsts[u] = -1
        if 0 < rows[u] <= num_shared:
            place = places[rows[u]]
            if place == 0:
                places[rows[u]] = u + 1
            else:
                firsts[u] = place - 1
                num_merged += 1
    for u in range(len(rows)):
        if 0 < rows[u] <= num_shared:
            places[rows[u]] = 0
    return num_merged


@kernel()
def _add_to_firsts(gradients: Float32s, firsts: Int64s, out: Float32s, counts: Int32s) -> None:
    for u in range(len(firsts)):
        if firsts[u] >= 0:
            counts[firsts[u]] += counts[u]
            for d in range(out.shape[1]):
                out[firsts[u], d] += gradients[u, d]
