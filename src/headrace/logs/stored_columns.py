"""The columns of a log over all of its files: which there are, as which types, and the type that holds them all."""

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
        name: Of the column.
        files: The first file of each type it is stored as, in the order of the files.
    """

    name: str
    files: Mapping[pa.DataType, str]

    @cached_property
    def kind(self) -> pa.DataType | None:
        """The common type of all files; None if there is none, see `headrace.logs.common_types`."""
        return common_type(self.files)

    def conflict(self) -> str:
        """One line on types that have no common type, naming a file of each."""
        pairs = combinations(self.files.items(), 2)
        (one, path), (other, other_path) = next(pair for pair in pairs if common_type([pair[0][0], pair[1][0]]) is None)
        return (
            f"{other_path}: column {one_line(self.name)} is stored as {other}, but as {one} in {path}; "
            f"rewrite one of them, no type holds both"
        )


@dataclass(frozen=True)
class StoredColumns:
    """The columns of a log.

    Attributes:
        columns: By name, in the order of the files.
        repeated: The first file in which several columns have the name, by name; these are not in `columns`.
    """

    columns: Mapping[str, StoredColumn]
    repeated: Mapping[str, str]

    @classmethod
    def of(cls, footers: Iterable[Footer]) -> Self:
        """Those of some files; looks at footers only."""
        found: dict[str, dict[pa.DataType, str]] = {}
        repeated: dict[str, str] = {}
        before: pa.Schema | None = None
        for footer in footers:
            for name in footer.repeated:
                repeated.setdefault(name, footer.file.path)
            if before is not None and footer.schema.equals(before):
                continue  # as most files of most logs
            before = footer.schema
            for field in footer.schema:
                found.setdefault(field.name, {}).setdefault(field.type, footer.file.path)
        columns = {name: StoredColumn(name, files) for name, files in found.items() if name not in repeated}
        return cls(columns, repeated)

    def also(self, others: StoredColumns) -> StoredColumns:
        """These columns, with the types they have in other files too."""
        repeated = {**self.repeated, **{n: path for n, path in others.repeated.items() if n in self.columns}}
        columns = {
            name: StoredColumn(name, {**(others.columns[name].files if name in others.columns else {}), **column.files})
            for name, column in self.columns.items()
            if name not in repeated
        }
        return StoredColumns(columns, repeated)

    @property
    def names(self) -> frozenset[str]:
        """All names, those of several columns too."""
        return frozenset(self.columns) | frozenset(self.repeated)

    @cached_property
    def joined(self) -> pa.Schema:
        """The columns that have a common type, each with it."""
        return pa.schema([(column.name, column.kind) for column in self.columns.values() if column.kind is not None])

    @cached_property
    def left_out(self) -> dict[str, str]:
        """Why columns are not in `joined`, by name."""
        reasons = {
            name: f"{path}: more than one column is named {one_line(name)}" for name, path in self.repeated.items()
        }
        return reasons | {column.name: column.conflict() for column in self.columns.values() if column.kind is None}
