"""`StoredColumns`: the columns of a log over all files, with their stored types and common type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import combinations
from typing import Self

import pyarrow as pa

from headrace.logs.common_types import common_type
from headrace.logs.footers import Footer
from headrace.messages import one_line

__all__ = ["StoredColumn", "StoredColumns"]


@dataclass(frozen=True)
class StoredColumn:
    """A column of a log.

    Attributes:
        name: Name of the column.
        files: First file of each stored type, in file order.
    """

    name: str
    files: Mapping[pa.DataType, str]

    @cached_property
    def kind(self) -> pa.DataType | None:
        """The common type of all files, see `headrace.logs.common_types`; None if there is none."""
        return common_type(self.files)

    def conflict(self) -> str:
        """A line about types without a common type, naming a file of each."""
        pairs = combinations(self.files.items(), 2)
        (one, path), (other, other_path) = next(pair for pair in pairs if common_type([pair[0][0], pair[1][0]]) is None)
        return (
            f"{other_path}: column {one_line(self.name)} is stored as {other}, but as {one} in {path}; "
            f"rewrite one of them, because there is no common type"
        )


@dataclass(frozen=True)
class StoredColumns:
    """The columns of a log.

    Attributes:
        columns: Columns by name, in file order.
        repeated: Duplicate names, with the first file that has them; these are not in `columns`.
    """

    columns: Mapping[str, StoredColumn]
    repeated: Mapping[str, str]

    @classmethod
    def of(cls, footers: Iterable[Footer]) -> Self:
        """Collect the columns of some files, from their footers."""
        found: dict[str, dict[pa.DataType, str]] = {}
        repeated: dict[str, str] = {}
        before: pa.Schema | None = None
        for footer in footers:
            for name in footer.repeated:
                repeated.setdefault(name, footer.file.path)
            if before is not None and footer.schema.equals(before):
                continue  # the usual case
            before = footer.schema
            for field in footer.schema:
                found.setdefault(field.name, {}).setdefault(field.type, footer.file.path)
        columns = {name: StoredColumn(name, files) for name, files in found.items() if name not in repeated}
        return cls(columns, repeated)

    def also(self, others: StoredColumns) -> StoredColumns:
        """Add the types that these columns have in other files."""
        repeated = {**self.repeated, **{n: path for n, path in others.repeated.items() if n in self.columns}}
        columns = {
            name: StoredColumn(name, {**(others.columns[name].files if name in others.columns else {}), **column.files})
            for name, column in self.columns.items()
            if name not in repeated
        }
        return StoredColumns(columns, repeated)

    @property
    def names(self) -> frozenset[str]:
        """All names, including duplicates."""
        return frozenset(self.columns) | frozenset(self.repeated)

    @cached_property
    def joined(self) -> pa.Schema:
        """The columns with a common type."""
        return pa.schema([(column.name, column.kind) for column in self.columns.values() if column.kind is not None])

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Reasons why columns are not in `joined`, by name."""
        reasons = {
            name: f"{path}: more than one column is named {one_line(name)}" for name, path in self.repeated.items()
        }
        return reasons | {column.name: column.conflict() for column in self.columns.values() if column.kind is None}
