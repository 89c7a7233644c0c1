"""`RowReader`: what a reader of a table group knows beside its rows, to answer for any id as the trainer does."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import name_seeds
from headrace.embeddings.shards.plan import ShardingPlan
from headrace.embeddings.storage.first_values import FirstValues
from headrace.embeddings.storage.host import gather_rows
from headrace.embeddings.storage.row_formats import FORMATS, storage_dtype, stored_width
from headrace.embeddings.tables.budgeted_table_group import SHARED as SHARED_NAME
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError
from headrace.publishing.versioned_index import FIRST_VALUES, SHARED, ZEROS, locate
from headrace.publishing.versioned_rows import RowArrays

__all__ = ["RowReader"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]

QUOTIENT = "/quotient"
"""Ends the name of a table whose rows are factors of vectors, see `tables.lifecycle.qr`."""


class RowReader:
    """Reads rows of a table group as `EmbeddingStore.read` does without counts.

    Args:
        headers: The headers of its parts at a version.

    Raises:
        CheckpointError: A table has properties that are unknown.

    Attributes:
        embedding_dim: Dimension of rows.
        width, dtype: Numbers of a stored row, and their dtype.
        identity: What is the same in all versions whose rows can be kept together.
        table_names, num_embeddings: Name and size of each table that keys name.
        has_factors: Whether the row of a key is the product of two stored ones.
    """

    def __init__(self, headers: Sequence[TableGroupHeader]) -> None:
        header = headers[0]
        shape = [dict(header.partition or {}).get(key) for key in ("count", "owners")]
        self.identity = header.tables, header.embedding_dim, header.seed, header.retention is None, shape
        names = [table["name"] for table in header.tables]
        self.embedding_dim, self._row_format = header.embedding_dim, header.tables[0]["rows"]
        if self._row_format not in FORMATS:
            raise CheckpointError(
                f"table {names[0]}: has rows of format {self._row_format}, expected one of {', '.join(FORMATS)}"
            )
        self.width, self.dtype = stored_width(self._row_format, self.embedding_dim), storage_dtype(self._row_format)
        scales = [table["init_scale"] for table in header.tables]
        self._first_values = FirstValues(names, scales, self._row_format, seed=header.seed)
        self.has_factors = names[0].endswith(QUOTIENT)
        self._has_shared = names[-1].endswith(SHARED_NAME)
        num_tables = len(names) // (2 if self._has_shared or self.has_factors else 1)
        rows = np.array([table["num_embeddings"] for table in header.tables[-num_tables:]], dtype=np.int64)
        self.table_names: tuple[str, ...] = tuple(name.removesuffix(QUOTIENT) for name in names[:num_tables])
        self.num_embeddings: tuple[int, ...] = tuple(rows.tolist())
        self._divisors: Int64s = rows if self.has_factors else np.empty(0, np.int64)
        self._plan = _partitions(header, num_tables)
        count = 1 if self._plan is None else self._plan.partition_count
        self._shared_sizes: Int64s = rows // count if self._has_shared else np.zeros(num_tables, np.int64)
        self._salts = name_seeds(header.seed, names[:num_tables], "shared")
        self._missing = np.array(_read_by_missing(header), np.int32)
        if header.retention is not None and not self.has_factors:
            self._missing[:num_tables] = np.where(self._shared_sizes > 0, SHARED, ZEROS)

    def is_like(self, other: RowReader) -> bool:
        """Whether ids without a row read the same with both."""
        return np.array_equal(self._missing, other._missing)

    def read(self, arrays: RowArrays, version: int, keys: Keys) -> Float32s:
        """Rows of keys [U] at a version, float32 [U, D]; thread-safe."""
        if not self.has_factors:
            return self._read(arrays, version, keys)
        divisors, shift = self._divisors[keys.tables], np.int32(len(self._divisors))
        quotients = Keys(keys.tables, keys.ids // divisors, keys.counts)
        remainders = Keys(keys.tables + shift, keys.ids % divisors, keys.counts)
        rows: Float32s = self._read(arrays, version, quotients) * self._read(arrays, version, remainders)
        return rows

    def _read(self, arrays: RowArrays, version: int, keys: Keys) -> Float32s:
        num_keys = len(keys)
        places, ids = np.empty(num_keys, np.int64), np.empty(num_keys, np.int64)
        tables, partitions = np.empty(num_keys, np.int32), np.zeros(num_keys, np.int32)
        if self._plan is not None and self._has_shared:
            partitions = self._plan.partitions_of(keys.tables, keys.ids)
        where = (partitions, self._missing, self._shared_sizes, self._salts)
        key_tables, key_ids = np.ascontiguousarray(keys.tables), np.ascontiguousarray(keys.ids)
        locate(arrays.slots, arrays.records, version, key_tables, key_ids, *where, places, tables, ids)
        first, out = self._first_values, np.empty((num_keys, self.embedding_dim), np.float32)
        gather_rows(arrays.weights, places, tables, ids, first.seeds, first.scales, FORMATS[self._row_format], out)
        return out


def _read_by_missing(header: TableGroupHeader) -> list[int]:
    """For each table, what ids without a row read if there is no budget."""
    counts = header.admission_counts or [1] * len(header.tables)
    return [
        ZEROS if table["kind"] == "collisionless" and count > 0 else FIRST_VALUES
        for table, count in zip(header.tables, counts, strict=True)
    ]


def _partitions(header: TableGroupHeader, num_tables: int) -> ShardingPlan | None:
    if header.partition is None or header.partition["count"] == 1:
        return None
    return ShardingPlan(1, tuple(header.partition["owners"][:num_tables]), header.partition["count"])
