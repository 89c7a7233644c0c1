"""Counts the bad rows of a log by column and reason, without stopping."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.casting import Mask
from headrace.logs.columns import Checked, ColumnCheck, column_check, lengths_differ
from headrace.logs.raw_rows import shown
from headrace.logs.schema import Schema

__all__ = ["BadRows", "RowChecks"]

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class BadRows:
    """Bad rows with the same reason; a row with several problems counts for the first.

    Attributes:
        column: The column.
        reason: What is wrong.
        count: Number of rows.
        file: File of the first bad row.
        row_group: Row group of the first bad row.
        row: Position of the first bad row in its file.
        given: Its value, shortened.
    """

    column: str
    reason: str
    count: int
    file: str
    row_group: int
    row: int
    given: str

    def to_dict(self) -> dict[str, Any]:
        """The attributes as plain values."""
        return dict(vars(self))


class RowChecks:
    """Applies the checks of a schema to raw batches and counts bad rows."""

    def __init__(self, schema: Schema, stored: pa.Schema) -> None:
        """Check rows by `schema`; `stored` has the column types in the log."""
        self._checks: dict[str, ColumnCheck] = {
            name: column_check(schema, name, stored.field(name).type)[1]
            for name in schema.columns
            if name in stored.names
        }
        self._weighted = [(c.name, c.weights) for c in schema.id_lists if c.weights in self._checks]
        self._found: dict[tuple[str, str], BadRows] = {}

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns to check."""
        return tuple(self._checks)

    @property
    def together(self) -> dict[str, str]:
        """Columns to check together with another one."""
        return {ids: str(weights) for ids, weights in self._weighted}

    @property
    def found(self) -> list[BadRows]:
        """Bad rows so far, most frequent first."""
        return sorted(self._found.values(), key=lambda bad: (-bad.count, bad.column, bad.reason))

    @property
    def num_bad(self) -> int:
        """Bad rows so far, each counted once."""
        return sum(bad.count for bad in self._found.values())

    def check_column(self, name: str, array: pa.Array) -> Checked:
        """Check a column of a batch. Thread-safe."""
        return self._checks[name](array)

    def add(
        self,
        raw: pa.RecordBatch,
        checked: dict[str, Checked],
        counted: Mask,
        *,
        file: str,
        group_ends: Rows,
        first_row: int,
    ) -> None:
        """Count the bad rows of a batch.

        Args:
            raw: The batch.
            checked: Results of `check_column` by column.
            counted: bool [rows], rows that are already bad because of other columns; updated.
            file: File of the batch.
            group_ends: int64 [row groups], cumulative number of rows at the end of each row group.
            first_row: Position of the batch in the file.
        """
        problems: list[tuple[str, str, Mask]] = [
            (name, reason, mask) for name, result in checked.items() for mask, reason in result.problems
        ]
        for ids, weights in self._weighted:
            if ids not in checked:
                continue
            differ = lengths_differ(checked[ids].values, checked[str(weights)].values)
            if differ is not None:
                problems.append((str(weights), f"more or fewer weights than ids in {ids}", differ))
        for column, reason, mask in problems:
            fresh = mask & ~counted
            count = int(np.count_nonzero(fresh))
            if count == 0:
                continue
            counted |= fresh
            known = self._found.get((column, reason))
            if known is None:
                row = int(np.argmax(fresh))
                given = shown(raw.column(column).slice(row, 1))
                row_group = int(np.searchsorted(group_ends, first_row + row, side="right"))
                known = BadRows(column, reason, 0, file, row_group, first_row + row, given)
            self._found[column, reason] = BadRows(**(known.to_dict() | {"count": known.count + count}))
