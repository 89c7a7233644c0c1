"""`ChangedIds`: which ids read other rows at a version than at an earlier one, for those who keep copies of rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["ChangedIds"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@dataclass(frozen=True, eq=False)
class ChangedIds:
    """Ids of a table group whose rows may differ between two versions; all other rows are equal.

    Attributes:
        tables: int32 [R], table of each id.
        ids: int64 [R]; an id that changed in several versions may be there several times.
        whole: int32, ascending: tables of which any id may have changed, for instance because ids share rows.
    """

    tables: Int32s
    ids: Int64s
    whole: Int32s

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return self.tables.nbytes + self.ids.nbytes + self.whole.nbytes

    @classmethod
    def joined(cls, parts: Sequence[ChangedIds]) -> ChangedIds:
        """What changed in any of several steps, or in any of several parts."""
        return cls(
            np.concatenate([np.empty(0, np.int32), *(part.tables for part in parts)]),
            np.concatenate([np.empty(0, np.int64), *(part.ids for part in parts)]),
            np.unique(np.concatenate([np.empty(0, np.int32), *(part.whole for part in parts)])),
        )

    @classmethod
    def of_rows(cls, tables: Int32s, ids: Int64s, num_tables: int, *, are_factors: bool) -> ChangedIds:
        """The ids that read some rows that changed.

        Args:
            tables, ids: Keys of the rows. A table from `num_tables` on has rows that ids of a table share.
            num_tables: Number of tables that keys name.
            are_factors: Whether a row is a factor of the rows of many ids.
        """
        tables, ids = np.ascontiguousarray(tables, np.int32), np.ascontiguousarray(ids, np.int64)
        is_own = np.zeros(len(tables), bool) if are_factors else tables < num_tables
        shared = np.unique(tables[~is_own] % np.int32(num_tables))
        return cls(tables[is_own], ids[is_own], shared.astype(np.int32))
