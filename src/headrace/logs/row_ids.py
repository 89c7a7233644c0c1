"""`RowIds`: the source of row ids: a column of the log, a column of its clustered copy, or file and position."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import DataError
from headrace.logs.footers import Footer
from headrace.logs.nested.layout import SOURCES_KEY
from headrace.logs.schema import Schema
from headrace.logs.source import FILE_ROW_BITS, ORIGINAL_ROW, split_row_id

__all__ = ["RowIds"]


@dataclass(frozen=True)
class RowIds:
    """How rows of some files are identified.

    A row has the same id in every layout of its log. Clustering keeps a row id column; for a log without one, it adds a
    column with the ids derived from the original files.

    Attributes:
        schema: Schema of the log; its `row_id` is None if the files have no such column.
        column: Column of a clustered copy with the original ids; None if ids come from the schema's column or from file
            and position.
        files: Names of the (original) files by their numbers in the ids.
    """

    schema: Schema
    column: str | None = None
    files: Mapping[int, str] = field(default_factory=dict)

    @classmethod
    def of(cls, footers: Mapping[int, Footer], schema: Schema, *, optional: Collection[str] = ()) -> Self:
        """Determine the source of ids from the files.

        Args:
            footers: Footers of the files, by number.
            schema: Schema of the log.
            optional: Columns that may be missing, possibly the schema's row id.

        Raises:
            DataError: Only some of the files are clustered copies.
        """
        # A schema may also name the column of a clustered copy; the plain log has the same ids without it.
        replaceable = schema.row_id == ORIGINAL_ROW or schema.row_id in optional
        name = schema.row_id
        if name is not None and (not replaceable or all(footer.has_column(name) for footer in footers.values())):
            return cls(schema)
        schema = schema.model_copy(update={"row_id": None})
        copies = [footer for footer in footers.values() if _is_copy(footer)]
        if not copies:
            return cls(schema, files={number: footer.file.shown_path for number, footer in footers.items()})
        for footer in footers.values():
            if not _is_copy(footer):
                raise DataError(
                    f"{footer.file.shown_path}: no column {ORIGINAL_ROW}, which {copies[0].file.path} has; "
                    "read the clustered copy or the log itself, not files of both"
                )
        return cls(schema, ORIGINAL_ROW, {n: name for footer in copies for n, name in _sources_of(footer).items()})

    @property
    def are_places(self) -> bool:
        """Whether an id consists of a file number and a position in that file."""
        return self.schema.row_id is None

    def take(
        self, rows: pa.RecordBatch, file_number: int, positions: npt.NDArray[np.int64], *, where: str
    ) -> npt.NDArray[np.int64]:
        """The ids of rows of a file, int64 [rows], unless the schema names their column.

        Args:
            rows: Rows with the id column of a clustered copy.
            file_number: Number of the file.
            positions: int64 [rows], positions in the file.
            where: Location for error messages.

        Raises:
            DataError: The column of a clustered copy is not int64 or has nulls.
        """
        if self.column is None:
            return positions | np.int64(file_number << FILE_ROW_BITS)
        ids = rows.column(self.column)
        if ids.null_count or ids.type != pa.int64():
            raise DataError(
                f"{where}, column {self.column}: {ids.type} with {ids.null_count} nulls, expected int64 without nulls"
            )
        return np.asarray(ids, dtype=np.int64)

    def locate(self, row_id: int) -> str:
        """Describe the file and row of an id, for error messages; only the id if it is not derived from a position."""
        number, row = split_row_id(row_id)
        if not self.are_places or number not in self.files:
            return f"row id {row_id}"
        return f"{self.files[number]}, row {row}"

    def places(self, row_ids: npt.NDArray[np.int64]) -> tuple[pa.DictionaryArray, pa.Array]:
        """File names and row positions of ids."""
        numbers, rows = split_row_id(row_ids)
        known = np.array(sorted(self.files), dtype=np.int64)
        missing = ~np.isin(numbers, known)
        index = np.where(missing, 0, np.searchsorted(known, numbers)).astype(np.int32)
        names = pa.array([self.files[number] for number in known.tolist()], pa.string())
        return pa.DictionaryArray.from_arrays(pa.array(index, mask=missing), names), pa.array(rows)


def _is_copy(footer: Footer) -> bool:
    """Whether a file is a clustered copy with original ids; a log's schema never names a column that clustering
    adds."""
    return footer.layout is not None and ORIGINAL_ROW in footer.layout.columns


def _sources_of(footer: Footer) -> dict[int, str]:
    """Original files of a clustered file, by number."""
    text = (footer.metadata.metadata or {}).get(SOURCES_KEY)
    return {} if text is None else {file["number"]: file["name"] for file in json.loads(text)["files"]}
