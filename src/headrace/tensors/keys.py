"""Unique keys of a batch: which rows of which tables its ids are, each once, and where each id finds its own.

Two rows, features `item` and `history` share the table `items`, `user` has its own::

                 row 0     row 1                    tables = [items, items, items, users, users]
    item          [7]       [9]         keys        ids    = [    7,     9,     5,     1,     2]
    history     [9, 5]       []         ----->      counts = [    1,     2,     1,     1,     1]
    user          [1]       [2]                     inverse = [0, 1,   1, 2,   3, 4], one entry per id
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from headrace.tensors.jagged_ids import Group, JaggedIds

__all__ = ["BatchKeys", "KeyFinder", "Keys"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(eq=False)
class Keys:
    """Unique keys: what a store is asked for.

    Attributes:
        tables: int32 [U], the number of each key's table, ascending.
        ids: int64 [U], different within a table. In a direct or hashed table this is the row within the table, in a
            collisionless table the id itself.
        counts: int32 [U], how often the key occurs in the batch; zeros where no update follows.
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
        """Some of them."""
        return Keys(self.tables[places], self.ids[places], self.counts[places])

    def unseen(self) -> Keys:
        """The same keys, to be read without an update."""
        return Keys(self.tables, self.ids, np.zeros(len(self.ids), dtype=np.int32))


@dataclass(frozen=True, eq=False)
class BatchKeys:
    """The unique keys of some features of a batch. Arrays are on the host, wherever the batch is.

    Attributes:
        feature_names: The features, F of them; they are numbered in this order.
        ids: Their ids.
        keys: The unique keys, U of them, grouped by table, and within a table in the order of first occurrence
            (feature by feature, row by row).
        inverse: int32 [N], the key of each id that a row of the batch has; undefined for others.
        key_starts: int64 [T + 1], where each table's keys begin.
    """

    feature_names: tuple[str, ...]
    ids: JaggedIds
    keys: Keys
    inverse: Int32s
    key_starts: Int64s

    @property
    def num_bytes(self) -> int:
        """Bytes held beside the batch's own tensors."""
        return self.ids.num_bytes + self.keys.num_bytes + self.inverse.nbytes + self.key_starts.nbytes


class KeyFinder(Protocol):
    """Finds the unique keys of a batch: an immutable, hashable value, of which equal ones find equal keys.

    `headrace.embeddings.KeyLayout` is one; `EmbeddingBags.key_layout` is that of a module.

    Attributes:
        feature_names: The features whose ids it knows.
    """

    @property
    def feature_names(self) -> tuple[str, ...]: ...

    def find(self, sparse: Sequence[Group], feature_names: tuple[str, ...]) -> BatchKeys:
        """The unique keys of some of its features.

        Args:
            sparse: Groups of a batch, which may hold other features, too.
            feature_names: In the order of the attribute.

        Raises:
            ConfigError: A feature is not in the batch.
            DataError: An id can be no row of its table.
        """
