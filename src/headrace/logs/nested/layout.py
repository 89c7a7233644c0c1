"""How the files of a clustered log are laid out: written into each file's metadata, read back by the reader."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, Self

import pyarrow as pa
import pyarrow.types as pt
from pydantic import Field, ValidationError

from headrace.config import Config, first_mistake
from headrace.errors import DataError
from headrace.logs.gathering import is_list

__all__ = ["IMPRESSIONS", "LAYOUT_KEY", "SOURCES_KEY", "Layout", "Runs", "nested_schema", "plain_schema", "runs_name"]

LAYOUT_KEY = b"headrace.layout"
"""Key of the layout, as JSON, in a Parquet file's metadata."""

SOURCES_KEY = b"headrace.sources"
"""Key, in a clustered file's metadata, of the files its rows come from and of what they added up to."""

IMPRESSIONS = "impressions"
"""Column of a nested file with what differs from row to row: a list of structs, one a row of the log."""

SLICE = pa.struct([pa.field("start", pa.int32()), pa.field("length", pa.int32())])
"""A list's place in the session's union of it."""


class Runs(Config):
    """Columns that change together, stored as runs: a value, and the position of the first impression that has it.

    Attributes:
        columns: Their names.
        rows_per_run: Rows that share a value, on average, in the sample the layout was chosen from.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    rows_per_run: float = Field(ge=1)


class Layout(Config):
    """The layout of a clustered log; the same in all of its files.

    Attributes:
        version: Of this format.
        kind: "clustered": one row an impression, sessions adjacent. "nested": one row a session.
        session: Column that names the session.
        columns: All columns of the log, in order.
        session_columns: Nested: columns that are one value for the whole session.
        runs: Nested: columns in runs; those in neither lie in the impressions.
        newest_first: Lists in runs whose newest element comes first.
        rows_per_session: Mean in the sample.
        row_bytes: Bytes in memory of each column's value in a row, mean of the sample.
        encodings: Parquet encoding of each leaf column, by its path; "DICTIONARY" for dictionary encoding.
    """

    version: Literal[1] = 1
    kind: Literal["clustered", "nested"]
    session: str
    columns: tuple[str, ...]
    session_columns: tuple[str, ...] = ()
    runs: tuple[Runs, ...] = ()
    newest_first: tuple[str, ...] = ()
    rows_per_session: float = 1.0
    row_bytes: dict[str, float] = Field(default_factory=dict)
    encodings: dict[str, str] = Field(default_factory=dict)

    @property
    def impression_columns(self) -> tuple[str, ...]:
        """Nested: columns that lie in the impressions."""
        elsewhere = {*self.session_columns, *(name for runs in self.runs for name in runs.columns)}
        return tuple(name for name in self.columns if name not in elsewhere)

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, *, where: str) -> Self | None:
        """The layout noted in a file's metadata, or None if there is none.

        Raises:
            DataError: What is noted is not a layout that this version reads.
        """
        text = (metadata or {}).get(LAYOUT_KEY)
        if text is None:
            return None
        try:
            return cls.model_validate_json(text)
        except ValidationError as error:
            raise DataError(
                f"{where}: its layout cannot be read (written by a newer version?): {first_mistake(error, cls)}"
            ) from error


def runs_name(number: int) -> str:
    """Column of a nested file that holds a group of runs."""
    return f"runs_{number}"


def nested_schema(plain: pa.Schema, layout: Layout) -> pa.Schema:
    """Columns of a nested file, for a log of the given columns."""
    fields = [pa.field(name, plain.field(name).type) for name in layout.session_columns]
    for number, runs in enumerate(layout.runs):
        inner = [pa.field("first", pa.int32(), nullable=False)]
        inner += [
            pa.field(name, SLICE if is_list(plain.field(name).type) else plain.field(name).type)
            for name in runs.columns
        ]
        fields.append(pa.field(runs_name(number), pa.list_(pa.field("element", pa.struct(inner), nullable=False))))
        fields += [
            pa.field(name, pa.list_(pa.field("element", plain.field(name).type.value_type)))
            for name in runs.columns
            if is_list(plain.field(name).type)
        ]
    impressions = pa.struct([pa.field(name, plain.field(name).type) for name in layout.impression_columns])
    fields.append(pa.field(IMPRESSIONS, pa.list_(pa.field("element", impressions, nullable=False))))
    return pa.schema(fields)


def plain_schema(nested: pa.Schema, layout: Layout) -> pa.Schema:
    """Columns of the log that a nested file holds; undoes `nested_schema`."""
    types = {name: nested.field(name).type for name in layout.session_columns}
    for field in nested.field(IMPRESSIONS).type.value_type:
        types[field.name] = field.type
    for number, runs in enumerate(layout.runs):
        struct = nested.field(runs_name(number)).type.value_type
        for name in runs.columns:
            kind = struct.field(name).type
            types[name] = pa.list_(nested.field(name).type.value_type) if pt.is_struct(kind) else kind
    return pa.schema([pa.field(name, types[name]) for name in layout.columns])
