"""Bodies become rows like those of a log; what a log may not have is refused in one line."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

pytest.importorskip("orjson", reason="needs the extra serve")

from headrace.errors import DataError
from headrace.features import FeaturePlan
from headrace.logs import Schema
from headrace.serving.requests import BadRequest, RequestReader
from headrace.tensors import Batch, InverseKeyedJaggedTensor

SCHEMA = Schema.from_dict(
    {
        "labels": ["click"],
        "dense": ["age"],
        "ids": ["user", {"name": "country", "type": "string"}],
        "id_lists": [{"name": "history", "weights": "seconds"}],
        "session_id": "session",
    },
    where="test",
)


@pytest.fixture
def plan() -> FeaturePlan:
    return FeaturePlan.default(SCHEMA).without_labels()


@pytest.fixture
def reader(plan: FeaturePlan) -> RequestReader:
    return RequestReader(plan, most_records=5)


def body_of(*records: Any) -> bytes:
    return json.dumps({"records": records}).encode()


def arrow_of(*tables: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    for table in tables:
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def test_records_have_the_types_of_the_schema_and_missing_columns_are_null(reader: RequestReader) -> None:
    rows = reader.records(
        body_of(
            {"user": 3, "age": 1, "country": "é", "history": [1, 2], "seconds": [1, 0.5], "click": 1, "session": 9}, {}
        )
    )
    assert {field.name: field.type for field in rows.schema} == {
        "age": pa.float64(),
        "user": pa.int64(),
        "country": pa.string(),
        "history": pa.list_(pa.int64()),
        "seconds": pa.list_(pa.float64()),
    }
    assert rows.to_pylist() == [
        {"age": 1.0, "user": 3, "country": "é", "history": [1, 2], "seconds": [1.0, 0.5]},
        dict.fromkeys(("age", "user", "country", "history", "seconds")),
    ]


def test_values_of_other_types_are_cast_as_those_of_logs(reader: RequestReader, plan: FeaturePlan) -> None:
    usual = plan.apply(reader.records(body_of({"user": 3, "age": 2.0, "country": "7", "history": [4], "seconds": [2]})))
    other = plan.apply(
        reader.records(body_of({"user": 3.0, "age": "2", "country": 7, "history": ["4"], "seconds": ["2"]}))
    )
    assert (usual.dense == other.dense).all()
    assert [group.values.tolist() for group in usual.sparse] == [group.values.tolist() for group in other.sparse]


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"user": 1.5}, "column user: row 0 of the batch: not an integer, given 1.5"),
        ({"history": [1, 2.5]}, "column history: row 0 of the batch: not a list of integers"),
        ({"age": "old"}, 'column age: row 0 of the batch: not a number, given "old"'),
        ({"user": 10**21}, "column user: "),
    ],
)
def test_values_that_no_log_may_have_are_refused(
    reader: RequestReader, plan: FeaturePlan, record: dict[str, Any], message: str
) -> None:
    with pytest.raises((DataError, BadRequest)) as caught:
        plan.apply(reader.records(body_of(record)))
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "status", "message"),
    [
        (b"", 400, "body: is not JSON"),
        (b"[]", 400, "body: expected a JSON object with records"),
        (b'{"record": []}', 400, "body: given 'record', expected records"),
        (b'{"records": {}}', 400, "expected a list of {"),
        (b'{"records": [3]}', 400, "expected a list of {"),
        (
            body_of({"usr": 3}),
            422,
            "records: column 'usr' of record 0 is unknown, expected some of: age, user, country",
        ),
        (body_of({"age": 1}, {"age": [2]}), 422, "records: column age: expected double"),
        (body_of(*[{}] * 6), 413, "records: given 6, expected up to 5"),
    ],
)
def test_other_bodies_are_refused(reader: RequestReader, body: bytes, status: int, message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        reader.records(body)
    assert caught.value.status == status
    assert message in str(caught.value)


def test_a_context_is_one_row_of_features_for_all_candidates(reader: RequestReader, plan: FeaturePlan) -> None:
    context = {"user": 3, "history": [5, 6], "seconds": [1.0, 2.0]}
    candidates = [{"country": "a", "age": 1.0}, {"country": "b"}, {"country": "a"}]
    ranked = reader.ranking(json.dumps({"context": context, "candidates": candidates}).encode())
    batch = plan.apply(ranked)
    groups = [group for group in batch.sparse if isinstance(group, InverseKeyedJaggedTensor)]
    assert {key for group in groups for key in group.keys} == {"user", "history"}
    assert sum(len(group.values) for group in groups) == 3  # the user and two ids, once
    plain = plan.apply(reader.records(body_of(*({**context, **candidate} for candidate in candidates))))
    assert (batch.dense == plain.dense).all()
    assert lists_of(batch) == lists_of(plain)

    tables = pa.Table.from_pylist([context]), pa.Table.from_pylist(candidates)
    same = plan.apply(reader.arrow_ranking(arrow_of(*tables)))
    assert (same.dense == batch.dense).all()


def lists_of(batch: Batch) -> dict[str, list[list[int]]]:
    return {key: lists for group in batch.expand().sparse for key, lists in group.to_lists().items()}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"context": {"user": 1}}, "expected a list of"),
        ({"candidates": []}, 'body: expected {"context"'),
        ({"context": {"user": 1}, "candidates": [{"user": 2}]}, "candidates: column 'user' is in the context, too"),
        ({"context": {"usr": 1}, "candidates": []}, "context: column 'usr' of record 0 is unknown"),
        ({"context": {}, "candidates": [], "k": 1}, "body: given 'k', expected context and candidates"),
    ],
)
def test_rankings_of_another_form_are_refused(reader: RequestReader, values: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequest) as caught:
        reader.ranking(json.dumps(values).encode())
    assert message in str(caught.value)


def test_arrow_streams_may_have_several_batches_and_none(reader: RequestReader) -> None:
    table = pa.concat_tables([pa.table({"user": [1, 2]}), pa.table({"user": [3]})])
    assert reader.arrow(arrow_of(table))["user"].to_pylist() == [1, 2, 3]
    assert reader.arrow(arrow_of(table.slice(0, 0))).num_rows == 0
    dictionary = pa.table({"country": pa.array(["a", "b", "a"]).dictionary_encode()})
    assert reader.arrow(arrow_of(dictionary)).num_rows == 3


def test_damaged_arrow_streams_are_refused(reader: RequestReader) -> None:
    body = arrow_of(pa.table({"user": np.arange(5)}))
    for damaged in (b"", body[:100], body[:-60], b"\0" + body):
        with pytest.raises(BadRequest, match="body: is not an Arrow IPC stream"):
            reader.arrow(damaged)
    with pytest.raises(BadRequest, match="rows: given 6, expected up to 5"):
        reader.arrow(arrow_of(pa.table({"user": np.arange(6)})))


@pytest.mark.parametrize("name", ["__group_0", "__group_1", "__row_id"])
def test_names_that_are_reserved_are_refused_in_arrow(reader: RequestReader, name: str) -> None:
    rows = pa.table({"age": [1.0], name: [1]})
    for read in (
        lambda: reader.arrow(arrow_of(rows)),
        lambda: reader.arrow_ranking(arrow_of(pa.table({"user": [1]}), rows)),
    ):
        with pytest.raises(BadRequest, match=f"column '{name}': the name is reserved"):
            read()


def test_a_column_that_is_given_twice_is_refused_in_arrow(reader: RequestReader) -> None:
    rows = pa.Table.from_arrays([pa.array([1]), pa.array([2])], names=["user", "user"])
    with pytest.raises(BadRequest, match="rows: column 'user' is given twice, expected once"):
        reader.arrow(arrow_of(rows))
