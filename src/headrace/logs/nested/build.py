"""Builds rows of a nested file from rows of sessions: session values, runs, slices of unions, impressions."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.logs.gathering import gather, is_list
from headrace.logs.nested.changes import changed
from headrace.logs.nested.layout import Layout, nested_schema
from headrace.logs.nested.unions import make_unions

__all__ = ["RunStarts", "build_nested", "session_starts"]

Ints = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class RunStarts(NamedTuple):
    """The starts of a group's runs.

    Attributes:
        rows: int64 [runs], first row of each run.
        offsets: int64 [sessions + 1], first run of each session.
    """

    rows: Ints
    offsets: Ints


def build_nested(rows: pa.RecordBatch, starts: Ints, layout: Layout) -> pa.RecordBatch:
    """Build nested rows from rows of a clustered log.

    Args:
        rows: Rows with sessions adjacent, each in time order.
        starts: int64, first row of each nested row, starting with 0; see `session_starts`.
        layout: Layout of the columns.

    Returns:
        Rows with `nested_schema`, one per start.
    """
    schema = nested_schema(rows.schema, layout)
    arrays: dict[str, pa.Array] = {name: gather(rows.column(name), starts) for name in layout.session_columns}
    for number, runs in enumerate(layout.runs):
        found = _run_starts([rows.column(name) for name in runs.columns], starts)
        first = found.rows - np.repeat(starts, np.diff(found.offsets))
        inner: dict[str, pa.Array] = {layout.first: pa.array(first.astype(np.int32))}
        for name in runs.columns:
            values = gather(rows.column(name), found.rows)
            if is_list(values.type):
                unions = make_unions(values, found.offsets, newest_first=name in layout.newest_first)
                mask = None if unions.valid is None else pa.array(~unions.valid)
                inner[name] = pa.StructArray.from_arrays(
                    [pa.array(unions.starts), pa.array(unions.lengths)], names=["start", "length"], mask=mask
                )
                arrays[name] = unions.values
            else:
                inner[name] = values
        struct = pa.StructArray.from_arrays(list(inner.values()), names=list(inner))
        arrays[layout.runs_name(number)] = pa.ListArray.from_arrays(pa.array(found.offsets.astype(np.int32)), struct)
    names = layout.impression_columns
    impressions = pa.StructArray.from_arrays([_plain(rows.column(name)) for name in names], names=list(names))
    offsets = np.append(starts, rows.num_rows).astype(np.int32)
    arrays[layout.impressions] = pa.ListArray.from_arrays(pa.array(offsets), impressions)
    return pa.RecordBatch.from_arrays(
        [arrays[name].cast(schema.field(name).type) for name in schema.names], schema=schema
    )


def session_starts(rows: pa.RecordBatch, new_session: Mask, layout: Layout, *, max_rows: int) -> Ints:
    """First row of each nested row: at the start of a session, where a session-constant column changes unexpectedly,
    and after `max_rows` rows, so that sessions may have any length.

    Args:
        rows: Rows with sessions adjacent.
        new_session: bool [rows], True for the first row of each session, and for row 0.
        layout: Layout with the session columns.
        max_rows: Maximum rows per nested row.
    """
    begins = new_session.copy()
    begins[0] = True
    for name in layout.session_columns:
        begins[1:] |= changed(rows.column(name))
    starts = np.flatnonzero(begins)
    lengths = np.diff(np.append(starts, rows.num_rows))
    pieces = -(-lengths // max_rows)
    if (pieces > 1).any():
        number = np.arange(pieces.sum()) - np.repeat(np.cumsum(pieces) - pieces, pieces)
        starts = np.repeat(starts, pieces) + number * max_rows
    return starts.astype(np.int64)


def _run_starts(columns: list[pa.Array], starts: Ints) -> RunStarts:
    num_rows = len(columns[0])
    begins = np.zeros(num_rows, dtype=np.bool_)
    for column in columns:
        begins[1:] |= changed(column)
    begins[starts] = True
    before = np.concatenate([[0], np.cumsum(begins)])
    return RunStarts(np.flatnonzero(begins), before[np.append(starts, num_rows)])


def _plain(column: pa.Array) -> pa.Array:
    """Copy a column if it is sliced, because structs do not support sliced children everywhere."""
    return gather(column, np.arange(len(column))) if column.offset else column
