"""Group columns go through every stage: the same rows as plain ones, honest bytes, and an exact resume."""

from __future__ import annotations

import os
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from headrace.errors import ConfigError, PipelineError
from headrace.features import FeaturePlan
from headrace.logs.groups import expand, has_groups, num_bytes
from headrace.logs.source import ROW_ID
from headrace.pipeline import Pipeline, from_source, read_arrow
from headrace.pipeline.processes.messages import _read_rows, _write_rows
from headrace.pipeline.transformations.shuffle import session_order
from headrace.pipeline.transformations.transformation import size_of
from headrace.tensors import InverseKeyedJaggedTensor
from headrace.testing.pipelines import assert_resumes_everywhere
from headrace.testing.sessions import SESSION_SCHEMA, SessionSource

COLUMNS = ["age", "user", "session", "history", "item", "price", "click", ROW_ID]


def rows_of(pipe: Pipeline, **options: Any) -> list[dict[str, list[Any]]]:
    with pipe.open(**({"executor": "inline"} | options)) as batches:
        return [expand(batch, COLUMNS).to_pydict() for batch in batches]


def double_price(rows: pa.RecordBatch) -> pa.RecordBatch:
    assert not has_groups(rows.schema)
    return rows.set_column(rows.schema.get_field_index("price"), "price", pc.multiply(rows.column("price"), 2.0))


def is_young(rows: pa.RecordBatch) -> pa.Array:
    return pc.less(rows.column("age"), 0.3)


PIPES = {
    "batch": lambda pipe: pipe.batch(17),
    "batch across batches": lambda pipe: pipe.batch(80),
    "map": lambda pipe: pipe.map(double_price).batch(17),
    "filter": lambda pipe: pipe.filter(is_young).batch(17),
    "expression": lambda pipe: pipe.filter((pc.field("age") < 0.3) & (pc.field("item") > 9)).batch(17),
    "shuffle rows": lambda pipe: pipe.shuffle(num_rows=64, seed=3).batch(17),
    "shuffle sessions": lambda pipe: pipe.shuffle(num_rows=64, seed=3, by="session", session="session").batch(17),
    "all": lambda pipe: (
        pipe.filter(is_young).shuffle(num_rows=64, seed=3, by="session", session="session").map(double_price).batch(17)
    ),
}


@pytest.mark.parametrize("name", list(PIPES))
def test_rows_in_groups_go_the_way_of_plain_rows(name: str) -> None:
    nested, plain = (PIPES[name](from_source(SessionSource(nested=nested))) for nested in (True, False))
    wanted = rows_of(plain)
    assert rows_of(nested) == wanted
    assert rows_of(nested, executor="thread", workers=3) == wanted
    assert len(wanted) > 3


def test_groups_stay_together_up_to_the_batch_unless_a_function_must_see_plain_columns() -> None:
    pipe = from_source(SessionSource(nested=True)).filter(is_young).shuffle(num_rows=64).batch(17)
    with pipe.open(executor="inline") as batches:
        assert all(has_groups(batch.schema) for batch in batches)


@pytest.mark.parametrize("name", ["batch across batches", "shuffle sessions", "all"])
def test_a_stop_anywhere_resumes_exactly(name: str) -> None:
    pipe = PIPES[name](from_source(SessionSource(num_splits=2, sessions_per_batch=6, nested=True)))
    pipe = pipe.transform(FeaturePlan.default(SESSION_SCHEMA)) if name == "all" else pipe.map(expand)
    if name != "all":
        assert_resumes_everywhere(pipe, first={"workers": 1}, then={"workers": 3})
        return
    with pipe.open(executor="inline") as batches:
        whole = [batch.row_ids.tolist() for batch in batches]
    with pipe.open(workers=2) as batches:
        next(batches)
        state = batches.state_dict()
    with pipe.open(workers=3, state=state) as batches:
        assert [batch.row_ids.tolist() for batch in batches] == whole[1:]


def test_shuffled_sessions_stay_whole_and_in_order_but_not_in_place() -> None:
    source = SessionSource(num_splits=1, sessions_per_batch=30)
    pipe = from_source(source).shuffle(num_rows=10_000, seed=1, by="session", session="session").batch(10_000)
    (rows,) = rows_of(pipe)
    given = [row_id for batch in source.read(0) for row_id in batch.rows[ROW_ID].to_pylist()]
    assert sorted(rows[ROW_ID]) == sorted(given)
    assert rows[ROW_ID] != given
    runs = [value for at, value in enumerate(rows["session"]) if at == 0 or rows["session"][at - 1] != value]
    assert len(runs) == len(set(runs)) == 60
    for session in set(runs):
        ids = [row_id for row_id, of in zip(rows[ROW_ID], rows["session"], strict=True) if of == session]
        assert ids == sorted(ids)


def test_each_seed_and_block_has_an_order_of_sessions_of_its_own() -> None:
    sessions = pa.array(np.repeat(np.arange(50), 3))
    orders = [tuple(session_order(sessions, seed)) for seed in ((1, 0, 0), (2, 0, 0), (1, 1, 0), (1, 0, 1))]
    assert len(set(orders)) == 4
    assert orders[0] == tuple(session_order(sessions, (1, 0, 0)))


@pytest.mark.parametrize("kind", ["string", "dictionary", "null"])
def test_sessions_may_be_strings_and_may_be_missing(kind: str) -> None:
    values = ["b", "a", "b", None if kind == "null" else "c", "a"]
    sessions = pa.array(values, pa.dictionary(pa.int8(), pa.string()) if kind == "dictionary" else pa.string())
    order = session_order(sessions, (0,))
    assert sorted(order) == [0, 1, 2, 3, 4]
    ordered = [values[row] for row in order]
    assert sum(at == 0 or ordered[at - 1] != value for at, value in enumerate(ordered)) == 3


def test_what_cannot_tell_sessions_apart_is_refused() -> None:
    with pytest.raises(ConfigError, match='by: given "session", but no schema names a session_id'):
        from_source(SessionSource()).shuffle(num_rows=10, by="session")
    with pytest.raises(ConfigError, match="by: given 'user', expected"):
        from_source(SessionSource()).shuffle(num_rows=10, by="user")  # type: ignore[arg-type]
    pipe = from_source(SessionSource(nested=True)).shuffle(num_rows=10, by="session", session="visit").batch(4)
    with pytest.raises(PipelineError, match="column visit: missing in the rows to shuffle by session"):
        rows_of(pipe)


def test_a_schema_says_which_column_tells_sessions_apart() -> None:
    table = pa.Table.from_batches([batch.rows.drop_columns([ROW_ID]) for batch in SessionSource().read(0)])
    pipe = read_arrow(table, SESSION_SCHEMA).shuffle(num_rows=20, by="session")
    assert pipe.plan.stages[0].transformation.session == "session"  # type: ignore[attr-defined]
    assert pipe.plan.signature()[1] == "shuffle 20 rows seed 0 by session"


def test_a_slice_is_charged_for_the_unique_rows_it_has_not_for_those_of_its_source_batch() -> None:
    (batch, _) = SessionSource(num_splits=1, sessions_per_batch=1000, nested=True).read(0)
    part = batch.rows.slice(0, 50)
    assert size_of(part) == num_bytes(part) < size_of(batch.rows, 10**9) / 20
    assert size_of(batch.rows, batch.rows.get_total_buffer_size()) == batch.rows.get_total_buffer_size()


def test_worker_processes_are_sent_only_the_unique_rows_of_the_element() -> None:
    (batch, _) = SessionSource(num_splits=1, sessions_per_batch=1000, nested=True).read(0)
    part = batch.rows.slice(100, 50)
    file = _write_rows(part)
    try:
        size = os.fstat(file).st_size
        received = _read_rows(file, size)
    finally:
        os.close(file)
    assert size < 20_000
    assert expand(received).to_pydict() == expand(part).to_pydict()


def test_what_repeats_arrives_as_groups_in_the_batch() -> None:
    pipe = from_source(SessionSource(sessions_per_batch=60, nested=True))
    pipe = pipe.shuffle(num_rows=300, seed=2, by="session", session="session").batch(128)
    with pipe.transform(FeaturePlan.default(SESSION_SCHEMA)).open(executor="inline") as batches:
        batch = next(batches)
    kinds = {key: type(group) for group in batch.sparse for key in group.keys}
    assert kinds["user"] is kinds["history"] is InverseKeyedJaggedTensor
    by_key = {group.keys: group for group in batch.sparse}
    assert by_key["user",].unique_stride < 128 / 3
    assert by_key["history",].starts is not None


def test_bad_rows_are_found_in_groups_and_told_as_plain_rows() -> None:
    def fail(rows: pa.RecordBatch) -> pa.RecordBatch:
        if 13 in rows.column("item").to_pylist():
            raise ValueError("13")
        return rows

    pipe = from_source(SessionSource(nested=True)).map(fail, bad_rows="quarantine").batch(17)
    with pipe.open(executor="inline") as batches:
        left = sum(batch.num_rows for batch in batches)
        stats = batches.take_row_stats()
    assert stats.num_quarantined > 0
    assert stats.num_read == left + stats.num_quarantined
    assert '"history": [' in stats.rejects[0].to_pylist()[0]["raw"]
