"""Chooses the features of a nested file to read as group columns, and builds record batches with them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pyarrow as pa

from headrace.logs.break_even import pays
from headrace.logs.groups import group_array, group_name
from headrace.logs.nested.decode import NestedRows
from headrace.logs.nested.layout import Layout
from headrace.logs.schema import Schema

__all__ = ["Groups", "choose_groups", "grouped_batch"]

Groups = Mapping[int, tuple[str, ...]]
"""Features by group number: 0 for session columns, 1 + n for the runs with number n."""


def choose_groups(layout: Layout, schema: Schema, columns: Sequence[str]) -> dict[int, tuple[str, ...]]:
    """Choose the groups that pay off among the columns to read; other columns are expanded immediately.

    Labels, weights, timestamps, row ids and session ids are always plain.

    Args:
        layout: Layout of the log, nested.
        schema: Schema of the log.
        columns: Columns to read.
    """
    features = {column.name for column in schema.dense} | {column.name for column in schema.ids}
    features |= {name for column in schema.id_lists for name in (column.name, column.weights) if name is not None}
    wanted = [name for name in columns if name in features]
    homes = [(layout.session_columns, layout.rows_per_session)]
    homes += [(runs.columns, runs.rows_per_run) for runs in layout.runs]
    groups = {}
    for number, (home, factor) in enumerate(homes):
        members = tuple(name for name in wanted if name in home)
        if members and pays(factor, sum(layout.row_bytes.get(name, 8.0) for name in members)):
            groups[number] = members
    return groups


def grouped_batch(rows: NestedRows, groups: Groups, plain: Sequence[str]) -> pa.RecordBatch:
    """Convert sessions to a batch of impressions, with a group column per group and plain columns."""
    arrays: dict[str, pa.Array] = {}
    for number, members in groups.items():
        if number == 0:
            unique = {name: rows.session_column(name) for name in members}
            inverse = rows.session_inverse()
        else:
            unique = {name: rows.run_column(number - 1, name) for name in members}
            inverse = rows.run_inverse(number - 1)
        arrays[group_name(number)] = group_array(unique, inverse)
    arrays |= {name: rows.plain_column(name) for name in plain}
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays))
