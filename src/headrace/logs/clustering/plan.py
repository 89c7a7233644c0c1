"""Plans the columns and types of a clustered copy from footers, before reading rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import pyarrow as pa

from headrace.errors import ConfigError, DataError
from headrace.logs.clustering.payload import LogColumns
from headrace.logs.footers import Footer
from headrace.logs.inspection.hashing import hash_column
from headrace.logs.nested.layout import Layout
from headrace.logs.source import ORIGINAL_ROW
from headrace.logs.stored_columns import StoredColumns
from headrace.messages import shorten_list

__all__ = ["ColumnPlan", "plan_columns"]


class ColumnPlan(NamedTuple):
    """The columns of a clustered copy.

    Attributes:
        columns: Roles of the columns.
        stored: Columns to copy, in order, with the common types of all files.
        notes: One line about each column that is not copied.
    """

    columns: LogColumns
    stored: pa.Schema
    notes: tuple[str, ...]


def plan_columns(
    footers: Sequence[Footer], columns: LogColumns, *, done: StoredColumns, layout: Layout | None
) -> ColumnPlan:
    """Plan the columns of a copy; only columns named by the schema or an option must be in all files.

    Args:
        footers: Files to cluster, at least one.
        columns: Roles of columns by schema and options.
        done: Columns of files written by earlier runs.
        layout: Layout of those files, or None.

    Raises:
        ConfigError: The session column is missing or unsuitable, or a column has the name of one to add.
        DataError: A file lacks a required column, or the columns differ from those of the copy so far.
    """
    found = StoredColumns.of(footers)
    if columns.key not in found.names:
        raise ConfigError(
            f"{footers[0].file.path}: no column {columns.key}; the file has {shorten_list(footers[0].schema.names)}"
        )
    named = [name for name in columns.schema.columns if name in found.names | done.names]
    for footer in footers:
        footer.check_columns([columns.key, *named], in_folders=False)
    types = found.also(done)
    for name in (columns.key, *named):
        if name in types.left_out:
            raise DataError(types.left_out[name])
    names = types.joined.names
    if columns.adds_row_id and ORIGINAL_ROW in names and all(footer.layout is not None for footer in footers):
        columns = replace(columns, adds_row_id=False)  # already clustered: rows keep their ids
    columns = columns.beside(names)
    if layout is not None:
        names = _names_so_far(layout, columns, names)
    kind = types.joined.field(columns.key).type
    if hash_column(pa.nulls(0, kind)) is None:
        raise ConfigError(f"column {columns.key} of type {kind} cannot be a session id")
    notes = tuple(f"not copied: {reason}" for reason in types.left_out.values())
    kinds = {field.name: field.type for field in (*done.joined, *types.joined)}
    return ColumnPlan(columns, pa.schema([(name, kinds.get(name, pa.null())) for name in names]), notes)


def _names_so_far(layout: Layout, columns: LogColumns, names: Sequence[str]) -> list[str]:
    """The columns of the copy so far, without those that clustering adds."""
    added = {columns.session} if columns.adds_session else set()
    added |= {ORIGINAL_ROW} if columns.adds_row_id else set()
    before = [name for name in layout.columns if name not in added]
    new = [name for name in (columns.session, *names) if name not in layout.columns]
    if new:
        raise DataError(
            f"the log clustered so far does not have the columns {shorten_list(new)}; cluster it to a new folder"
        )
    return before
