"""`Layout`: the layout of a clustered log, stored in each file's metadata."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Literal, Self

import pyarrow as pa
import pyarrow.types as pt
from pydantic import Field, ValidationError

from headrace.config import Config, first_mistake
from headrace.errors import DataError
from headrace.logs.gathering import is_list

__all__ = ["LAYOUT_KEY", "SOURCES_KEY", "Layout", "Runs", "free_prefix", "nested_schema", "plain_schema"]

LAYOUT_KEY = b"headrace.layout"
"""Metadata key of the layout, as JSON, in a Parquet file."""

SOURCES_KEY = b"headrace.sources"
"""Metadata key of a clustered file's source files and checksums."""

SLICE = pa.struct([pa.field("start", pa.int32()), pa.field("length", pa.int32())])
"""A list's position in the session's union."""


class Runs(Config):
    """Columns that change together, stored as runs: a value, and the position of its first impression.

    Attributes:
        columns: Column names.
        rows_per_run: Mean rows per run in the sample from which the layout was chosen.
    """

    columns: tuple[str, ...] = Field(min_length=1)
    rows_per_run: float = Field(ge=1)


class Layout(Config):
    """The layout of a clustered log, which is the same in all of its files.

    Attributes:
        version: Version of the format.
        kind: "clustered": one row per impression, sessions adjacent. "nested": one row per session.
        session: Session id column.
        columns: All columns of the log, in order.
        session_columns: Nested: columns with one value per session.
        runs: Nested: columns in runs. Columns that are neither session columns nor in runs are in the impressions.
        newest_first: Lists in runs whose newest element is first.
        rows_per_session: Mean rows per session in the sample.
        row_bytes: Mean bytes per row of each column in memory, in the sample.
        encodings: Parquet encoding of each leaf column by path; "DICTIONARY" for dictionary encoding.
        prefix: Nested: prefix of the layout's own columns, chosen to avoid conflicts with columns of the log.
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
    prefix: str = ""

    @property
    def impressions(self) -> str:
        """Nested: column of the impressions: a list of structs, one per row of the log."""
        return f"{self.prefix}impressions"

    @property
    def first(self) -> str:
        """Nested: field of runs with the position of the run's first impression."""
        return f"{self.prefix}first"

    def runs_name(self, number: int) -> str:
        """Nested: column of runs `number`."""
        return f"{self.prefix}runs_{number}"

    @property
    def impression_columns(self) -> tuple[str, ...]:
        """Nested: columns stored in the impressions."""
        elsewhere = {*self.session_columns, *(name for runs in self.runs for name in runs.columns)}
        return tuple(name for name in self.columns if name not in elsewhere)

    @classmethod
    def from_metadata(cls, metadata: Mapping[bytes, bytes] | None, *, where: str) -> Self | None:
        """Load the layout from a file's metadata, or None if there is none.

        Raises:
            DataError: The layout is invalid or of an unsupported version.
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


def free_prefix(columns: Iterable[str]) -> str:
    """The shortest prefix of the layout's own columns without conflicts with columns of the log."""
    names = set(columns)
    prefix = ""
    while any(re.fullmatch(f"{prefix}(impressions|first|runs_[0-9]+)", name) for name in names):
        prefix += "_"
    return prefix


def nested_schema(plain: pa.Schema, layout: Layout) -> pa.Schema:
    """The schema of a nested file for a log with the given columns."""
    fields = [pa.field(name, plain.field(name).type) for name in layout.session_columns]
    for number, runs in enumerate(layout.runs):
        inner = [pa.field(layout.first, pa.int32(), nullable=False)]
        inner += [
            pa.field(name, SLICE if is_list(plain.field(name).type) else plain.field(name).type)
            for name in runs.columns
        ]
        fields.append(
            pa.field(layout.runs_name(number), pa.list_(pa.field("element", pa.struct(inner), nullable=False)))
        )
        fields += [
            pa.field(name, pa.list_(pa.field("element", plain.field(name).type.value_type)))
            for name in runs.columns
            if is_list(plain.field(name).type)
        ]
    impressions = pa.struct([pa.field(name, plain.field(name).type) for name in layout.impression_columns])
    fields.append(pa.field(layout.impressions, pa.list_(pa.field("element", impressions, nullable=False))))
    return pa.schema(fields)


def plain_schema(nested: pa.Schema, layout: Layout) -> pa.Schema:
    """The log's schema of a nested file, the inverse of `nested_schema`."""
    types = {name: nested.field(name).type for name in layout.session_columns}
    for field in nested.field(layout.impressions).type.value_type:
        types[field.name] = field.type
    for number, runs in enumerate(layout.runs):
        struct = nested.field(layout.runs_name(number)).type.value_type
        for name in runs.columns:
            kind = struct.field(name).type
            types[name] = pa.list_(nested.field(name).type.value_type) if pt.is_struct(kind) else kind
    return pa.schema([pa.field(name, types[name]) for name in layout.columns])
