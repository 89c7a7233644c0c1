"""`RowCopy`: the rows of a store, kept up to date by its changes alone."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy.typing as npt

from headrace.embeddings.changes.log import RowBlock

__all__ = ["RowCopy"]


class RowCopy:
    """What a consumer has that applies the changes of a store in their order.

    Attributes:
        rows: The columns of each row, by (table, id).
        version: Version of the last block; 0 before the first.
        num_tombstones: Tombstones so far, also of ids without a row in the copy.
    """

    def __init__(self) -> None:
        self.rows: dict[tuple[int, int], dict[str, npt.NDArray[Any]]] = {}
        self.version = 0
        self.num_tombstones = 0

    def apply(self, blocks: Iterable[RowBlock]) -> None:
        """Apply blocks of changes."""
        for block in blocks:
            self.version = block.version
            self.num_tombstones += len(block.ids) * block.is_tombstones
            for place, pair in enumerate(zip(block.tables.tolist(), block.ids.tolist(), strict=True)):
                if block.is_tombstones:
                    self.rows.pop(pair, None)
                else:
                    self.rows[pair] = {name: column[place] for name, column in block.columns.items()}

    def bits(self, *names: str) -> dict[tuple[int, int], bytes]:
        """The bytes of some columns of each row, by (table, id)."""
        return {pair: b"".join(row[name].tobytes() for name in names) for pair, row in self.rows.items()}
