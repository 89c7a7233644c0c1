"""`SharedRows`: the rows that ids without a row of their own read and train, a few per table, found by a hash."""

from __future__ import annotations

from collections.abc import Sequence

import numba
import numpy as np
import numpy.typing as npt

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
        places: int32 [1 + num_rows], zeros; scratch memory for a number per shared row.
    """

    def __init__(self, names: Sequence[str], sizes: Int64s, *, seed: int, partition: int = 0) -> None:
        ends = 1 + np.cumsum(sizes)
        self.sizes: Int64s = sizes
        self.first_ids: Int64s = partition * sizes
        self.first_rows: Int64s = ends - sizes
        self.num_rows = int(sizes.sum())
        self.salts: Uint64s = name_seeds(seed, list(names), "shared")
        self.places: Int32s = np.zeros(1 + self.num_rows, dtype=np.int32)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays that grow with the number of rows."""
        return self.places.nbytes

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of shared rows [R], as they appear outside."""
        tables = np.searchsorted(self.first_rows + self.sizes, rows, side="right")
        ids = rows - self.first_rows[tables] + self.first_ids[tables]
        return (tables + len(self.sizes)).astype(np.int32), ids

    def find(self, keys: Keys, rows: Int64s, records: Records) -> int:
        """Fill in the shared rows of keys [U] whose row is 0, `NEW` for those that were never updated; returns their
        number."""
        return _find(keys.tables, keys.ids, self.first_rows, self.sizes, self.salts, records, rows)

    def fill_in(self, keys: Keys, rows: Int64s) -> None:
        """Fill in the shared rows of keys [U] whose row is 0; it stays 0 if the table has none."""
        _fill_in(keys.tables, keys.ids, self.first_rows, self.sizes, self.salts, rows)

    def sources(self, keys: Keys, occurrences: Float32s, records: Records) -> tuple[Int64s, Float32s, int]:
        """The shared rows of keys [A], and how much of their state is due to a key.

        Gradients that point the same way add up before they are squared, so an id with a tenth of the occurrences of a
        row has a hundredth of a sum of squares. The part that is due to other ids stays behind: with all of it, an
        Adagrad row that many ids have trained would hardly learn any more.

        Args:
            keys: Keys [A] of tables with shared rows.
            occurrences: float32 [A], how often each occurred.
            records: Metadata of all rows.

        Returns:
            Rows int64 [A], 0 where the shared row was never updated; float32 [A], the part of sums over its updates;
            and the number of zeros.
        """
        rows, shares = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.float32)
        where = self.first_rows, self.sizes, self.salts
        return rows, shares, _find_sources(keys.tables, keys.ids, occurrences, *where, records, rows, shares)

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


def split_rows(total: int, weights: Sequence[float]) -> Int64s:
    """Split `total` rows between T tables in proportion to weights, int64 [T]; one each, and the rest rounded down."""
    shares = np.array(weights, dtype=np.float64) / sum(weights)
    rows: Int64s = 1 + np.floor(shares * max(0, total - len(weights))).astype(np.int64)
    return rows


@kernel()
def shared_row(table: int, key: int, first_rows: Int64s, sizes: Int64s, salts: Uint64s) -> int:
    """The shared row of an id; 0 if its table has none."""
    if sizes[table] <= 1:
        return first_rows[table] if sizes[table] == 1 else np.int64(0)  # type: ignore[return-value]
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


@kernel()
def _fill_in(tables: Int32s, ids: Int64s, first_rows: Int64s, sizes: Int64s, salts: Uint64s, rows: Int64s) -> None:
    for u in range(len(ids)):
        if rows[u] == 0:
            rows[u] = shared_row(tables[u], ids[u], first_rows, sizes, salts)


@kernel()
def _find_sources(
    tables: Int32s,
    ids: Int64s,
    occurrences: Float32s,
    first_rows: Int64s,
    sizes: Int64s,
    salts: Uint64s,
    records: Records,
    rows: Int64s,
    shares: Float32s,
) -> int:
    num_unwritten = 0
    for a in range(len(ids)):
        rows[a] = shared_row(tables[a], ids[a], first_rows, sizes, salts)
        frequency = max(np.int64(1), np.int64(records[rows[a]].frequency))
        share = np.float32(min(1.0, np.float64(occurrences[a]) / np.float64(frequency)))
        shares[a] = share * share
        if records[rows[a]].version == 0:
            rows[a] = 0
            num_unwritten += 1
    return num_unwritten


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
