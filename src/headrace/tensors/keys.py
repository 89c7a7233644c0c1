"""Unique keys of a batch: which rows of which tables its ids are, each once, and where each id finds its own.

Two rows, features `item` and `history` share the table `items`, `user` has its own::

                 row 0     row 1                    tables = [items, items, items, users, users]
    item          [7]       [9]         keys        ids    = [    7,     9,     5,     1,     2]
    history     [9, 5]       []         ----->      counts = [    1,     2,     1,     1,     1]
    user          [1]       [2]                     inverse = [0, 1,   1, 2,   3, 4], one entry per id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.tensors.jagged_ids import Group, JaggedIds

__all__ = ["BatchKeys", "KeyFinder", "Keys"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(eq=False)
class Keys:
    """Unique keys of a batch: the argument of reads and updates of an embedding store.

    Attributes:
        tables: int32 [U], the number of each key's table, ascending.
        ids: int64 [U], different within a table. In a direct or hashed table this is the row within the table, in a
            collisionless table the id itself.
        counts: int32 [U], occurrences of each key in the batch; zeros if no update follows.
    """

    tables: Int32s
    ids: Int64s
    counts: Int32s

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Bytes held by the arrays."""
        return self.tables.nbytes + self.ids.nbytes + self.counts.nbytes

    def take(self, places: Int64s) -> Keys:
        """The keys at some positions."""
        return Keys(self.tables[places], self.ids[places], self.counts[places])

    def unseen(self) -> Keys:
        """The same keys with zero counts, for reads without an update."""
        return Keys(self.tables, self.ids, np.zeros(len(self.ids), dtype=np.int32))


@dataclass(frozen=True, eq=False)
class BatchKeys:
    """The unique keys of some features of a batch. Arrays are always on the host.

    Attributes:
        feature_names: Names of the F features, which are numbered in this order.
        ids: Ids of the features.
        keys: The unique keys, U of them, grouped by table, and within a table in the order of first occurrence
            (feature by feature, row by row).
        inverse: int32 [N], key of each id that occurs in the batch; undefined for others.
        key_starts: int64 [T + 1], where each table's keys begin.
        is_counted: Whether an update counts the keys; not by a micro-batch after the first, because the counts are
            those in the whole batch.
    """

    feature_names: tuple[str, ...]
    ids: JaggedIds
    keys: Keys
    inverse: Int32s
    key_starts: Int64s
    is_counted: bool = True

    @property
    def num_bytes(self) -> int:
        """Bytes that do not share memory with the batch."""
        return self.ids.num_bytes + self.keys.num_bytes + self.inverse.nbytes + self.key_starts.nbytes

    def split(self, parts: Sequence[Int64s]) -> list[BatchKeys]:
        """The keys of micro-batches: all keys of the batch, with their counts in it, which only the first brings.

        Args:
            parts: For each micro-batch, its rows int64 [n].
        """
        return [
            replace(self, ids=self.ids.take(rows), is_counted=self.is_counted and number == 0)
            for number, rows in enumerate(parts)
        ]


class KeyFinder(Protocol):
    """Finds the unique keys of a batch. An immutable, hashable value; equal finders find equal keys.

    Implemented by `headrace.embeddings.KeyLayout`; `EmbeddingBags.key_layout` is the layout of a module.

    Attributes:
        feature_names: Names of the supported features.
    """

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def find(self, sparse: Sequence[Group], feature_names: tuple[str, ...]) -> BatchKeys:
        """Find the unique keys of some of the features.

        Args:
            sparse: Groups of a batch, which may have other features too.
            feature_names: Features, in the order of the attribute.

        Raises:
            ConfigError: A feature is not in the batch.
            DataError: An id is out of range of its table.
        """
