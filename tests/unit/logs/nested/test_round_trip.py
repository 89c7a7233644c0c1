"""The nested layout gives back the rows it was made of, whole or in part, and other tools can read it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from session_logs import session_rows

from headrace.errors import DataError
from headrace.logs.grouping import grouped_batch
from headrace.logs.groups import expand
from headrace.logs.nested.build import build_nested, session_starts
from headrace.logs.nested.choose import choose_layout
from headrace.logs.nested.decode import NestedRows
from headrace.logs.nested.layout import LAYOUT_KEY, Layout, nested_schema, plain_schema


def clustered(num_rows: int, seed: int) -> tuple[pa.RecordBatch, np.ndarray]:
    table = session_rows(num_rows, seed)
    order = np.lexsort((table["time"].to_numpy(), table["session"].to_numpy()))
    rows = table.take(order).combine_chunks().to_batches()[0]
    return rows, np.concatenate([[True], np.diff(rows.column("session").to_numpy()) != 0])


def a_layout(rows: pa.RecordBatch, is_new: np.ndarray) -> Layout:
    return choose_layout("nested", rows, is_new, session="session", apart=["click", "time"])


def forced(names: tuple[str, ...]) -> Layout:
    """A layout in which every column that may be has runs of its own, whatever that costs."""
    runs = [{"columns": (name,), "rows_per_run": 9.0} for name in names if name not in ("session", "click", "time")]
    values = {"kind": "nested", "session": "session", "columns": names, "session_columns": ("session",), "runs": runs}
    return Layout.model_validate(values | {"newest_first": ("newest",)})


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 60), st.integers(0, 1000), st.integers(1, 20), st.booleans())
def test_nesting_and_reading_give_the_same_rows(num_rows: int, seed: int, max_rows: int, force: bool) -> None:
    rows, is_new = clustered(num_rows, seed)
    layout = forced(tuple(rows.schema.names)) if force else a_layout(rows, is_new)
    starts = session_starts(rows, is_new, layout, max_rows=max_rows)
    nested = build_nested(rows, starts, layout)
    nested.validate(full=True)
    assert nested.schema.equals(nested_schema(rows.schema, layout))
    assert plain_schema(nested.schema, layout).equals(rows.schema)
    assert NestedRows(nested, layout).plain(layout.columns).equals(rows)


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 60), st.integers(0, 1000), st.data())
def test_some_sessions_of_a_file_are_read_as_if_they_were_alone(num_rows: int, seed: int, data: st.DataObject) -> None:
    rows, is_new = clustered(num_rows, seed)
    layout = forced(tuple(rows.schema.names))
    starts = session_starts(rows, is_new, layout, max_rows=100)
    nested = build_nested(rows, starts, layout)
    first = data.draw(st.integers(0, len(starts) - 1))
    last = data.draw(st.integers(first + 1, len(starts)))
    part = NestedRows(nested.slice(first, last - first), layout)
    stop = rows.num_rows if last == len(starts) else starts[last]
    expected = rows.slice(starts[first], stop - starts[first])
    assert part.plain(layout.columns).equals(expected)
    groups = {n + 1: runs.columns for n, runs in enumerate(layout.runs)}
    batch = grouped_batch(part, groups, ["session", "click", "time"])
    assert expand(batch, layout.columns).equals(expected)


def test_a_session_column_that_changes_all_the_same_begins_another_row() -> None:
    rows, is_new = clustered(200, 4)
    layout = forced(tuple(rows.schema.names)).model_copy(update={"session_columns": ("session", "age"), "runs": ()})
    nested = build_nested(rows, session_starts(rows, is_new, layout, max_rows=100), layout)
    assert nested.num_rows > is_new.sum()
    assert NestedRows(nested, layout).plain(layout.columns).equals(rows)


def test_slices_that_leave_their_union_are_refused() -> None:
    rows, is_new = clustered(50, 2)
    layout = forced(tuple(rows.schema.names))
    nested = build_nested(rows, session_starts(rows, is_new, layout, max_rows=100), layout)
    unions = nested.column("newest").to_pylist()
    damaged = nested.set_column(
        nested.schema.get_field_index("newest"), "newest", pa.array([u[1:] for u in unions], pa.list_(pa.int64()))
    )
    with pytest.raises(pa.ArrowInvalid, match="slices of newest are outside their union"):
        NestedRows(damaged, layout).plain(["newest"])


def test_a_layout_of_a_newer_version_is_refused_with_what_is_expected() -> None:
    rows, is_new = clustered(50, 2)
    text = a_layout(rows, is_new).model_dump_json().replace('"version":1', '"version":2')
    with pytest.raises(DataError, match=r"a\.parquet: its layout cannot be read .*version"):
        Layout.from_metadata({LAYOUT_KEY: text.encode()}, where="a.parquet")


def test_duckdb_expands_a_nested_file_by_the_query_of_the_format_page(tmp_path: Path) -> None:
    duckdb = pytest.importorskip("duckdb")
    rows, is_new = clustered(300, 7)
    layout = forced(tuple(rows.schema.names))
    nested = build_nested(rows, session_starts(rows, is_new, layout, max_rows=100), layout)
    pq.write_table(pa.Table.from_batches([nested]), tmp_path / "n.parquet")
    number = next(n for n, runs in enumerate(layout.runs) if runs.columns == ("history",))
    query = f"""
        SELECT session, i.time, h.history[r.history.start + 1 : r.history.start + r.history.length] AS history
        FROM (SELECT *, unnest(impressions) AS i, generate_subscripts(impressions, 1) - 1 AS position
              FROM '{tmp_path}/n.parquet') h,
             LATERAL (SELECT h.runs_{number}[len([x FOR x IN h.runs_{number} IF x.first <= h.position])] AS r)
        ORDER BY session, i.time
    """
    with duckdb.connect() as connection:
        found = connection.execute(query).fetchall()
    expected = sorted((r["session"], r["time"], r["history"]) for r in rows.to_pylist())
    assert [(s, t, h or []) for s, t, h in found] == expected
