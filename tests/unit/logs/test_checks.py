"""Bad rows: each kind of column, the first reason of a row, what the policies do, and how many are too many."""

import json
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from headrace.errors import ConfigError, DataError, ErrorBudgetExceeded
from headrace.logs.arrow_source import ArrowSource
from headrace.logs.checks import BadRowPolicy, ErrorBudget
from headrace.logs.schema import Schema
from headrace.logs.source import REJECT_SCHEMA, ROW_ID, SourceBatch

CLICK = {"labels": ["click"]}


def check(columns: dict[str, Any], schema: dict[str, Any], policy: str = "quarantine", **options: Any) -> SourceBatch:
    num_rows = len(next(iter(columns.values())))
    table = pa.table({"click": [0] * num_rows} | columns)
    source = ArrowSource(
        table,
        Schema.from_dict(CLICK | schema, where="schema"),
        policy=BadRowPolicy.model_validate({"policy": policy}),
        **options,
    )
    (batch,) = source.read(0)
    return batch


def rejects(batch: SourceBatch) -> list[tuple[int, str, str]]:
    if batch.rejects is None:
        return []
    return [(row["row"], row["column"], row["reason"]) for row in batch.rejects.to_pylist()]


def test_a_row_is_rejected_once_for_its_first_problem() -> None:
    batch = check(
        {"click": [7, 0, None], "price": [math.nan, math.nan, 1.0], "ids": [[1], [2], [None]]},
        {"dense": ["price"], "id_lists": ["ids"]},
    )
    assert rejects(batch) == [
        (0, "click", "label is not one of 0, 1"),
        (1, "price", "NaN or infinite"),
        (2, "click", "label is missing"),
    ]
    assert batch.rows.num_rows == 0


def test_a_label_of_any_number_may_be_missing_but_not_infinite_or_a_word() -> None:
    schema = {"labels": [{"name": "stars", "allowed": None}]}
    batch = check({"stars": pa.array([4.5, None, math.nan, math.inf], pa.float32())}, schema)
    assert rejects(batch) == [(3, "stars", "label is not a finite number")]
    assert batch.rows.column("stars").to_pylist() == [4.5, None, None]
    batch = check({"stars": ["1", None, "good"]}, schema)
    assert rejects(batch) == [(2, "stars", "not a number")]


def test_what_lies_in_memory_at_a_null_is_not_looked_at() -> None:
    numbers = pa.array(np.array([1.0, np.nan, 3.0], np.float32), mask=np.array([False, True, False]))
    batch = check({"price": numbers}, {"dense": ["price"]})
    assert rejects(batch) == []
    assert batch.rows.column("price").to_pylist() == [1.0, None, 3.0]


def test_nan_beside_a_null_is_found_in_a_slice() -> None:
    numbers = pa.array([1.0, None, 3.0, math.nan], pa.float32())
    assert rejects(check({"price": numbers.slice(0, 3)}, {"dense": ["price"]})) == []
    assert rejects(check({"price": numbers.slice(1)}, {"dense": ["price"]})) == [(2, "price", "NaN or infinite")]


def test_nan_counts_as_null_where_it_is_allowed() -> None:
    batch = check({"price": [1.5, math.nan, math.inf, None]}, {"dense": [{"name": "price", "nan": "allow"}]})
    assert batch.rows.column("price").to_pylist() == [1.5, None, None, None]
    assert rejects(batch) == []


def test_nulls_are_good_where_the_schema_lets_them() -> None:
    schema = {"dense": ["price"], "ids": ["user"], "id_lists": [{"name": "ids", "weights": "w"}], "session_id": "s"}
    nulls = {name: pa.nulls(2) for name in ("price", "user", "ids", "w", "s")}
    batch = check(nulls, schema)
    assert rejects(batch) == []
    assert batch.rows.select(list(nulls)).to_pylist() == [dict.fromkeys(nulls)] * 2


def test_empty_text_is_null() -> None:
    batch = check({"price": ["", " ", "1"], "user": ["", "2", " 3"]}, {"dense": ["price"], "ids": ["user"]})
    assert batch.rows.select(["price", "user"]).to_pylist() == [
        {"price": None, "user": None},
        {"price": None, "user": 2},
        {"price": 1.0, "user": 3},
    ]


def test_columns_may_play_two_parts_and_the_stricter_check_counts() -> None:
    batch = check({"price": [1.0, -1.0]}, {"dense": ["price"], "weight": "price"})
    assert rejects(batch) == [(1, "price", "weight is not a finite number >= 0")]
    batch = check({"user": [5, None]}, {"ids": ["user"], "row_id": "user"})
    assert rejects(batch) == [(1, "user", "row id is missing")]
    assert batch.rows.column(ROW_ID).to_pylist() == [5]


def test_sessions_keep_integers_and_make_text_of_the_rest() -> None:
    assert check({"s": pa.array([1], pa.uint8())}, {"session_id": "s"}).rows.column("s").to_pylist() == [1]
    dictionary = pa.array(["a"]).dictionary_encode()
    assert check({"s": dictionary}, {"session_id": "s"}).rows.column("s").type == pa.string()


def test_weights_are_compared_with_ids_only_where_both_are_read() -> None:
    table = pa.table({"click": [0], "ids": [[1, 2]], "w": [[1.0]]})
    schema = Schema.from_dict(CLICK | {"id_lists": [{"name": "ids", "weights": "w"}]}, where="schema")
    assert next(ArrowSource(table, schema, columns=["ids"]).read(0)).rows.num_rows == 1
    with pytest.raises(DataError, match=r"table, row group 0, row 0, column w: more or fewer weights than ids in ids"):
        next(ArrowSource(table, schema).read(0))


def test_rejects_hold_the_whole_row() -> None:
    table = pa.table(
        {
            "click": [0, 3],
            "price": [1.0, math.inf],
            "time": pa.array([0, 1_500], pa.timestamp("ms", "UTC")),
            "tag": [b"a", b"\xff"],
            "ids": [[1], [2, None]],
        }
    )
    schema = {"dense": ["price"], "timestamp": "time", "ids": [{"name": "tag", "type": "string"}], "id_lists": ["ids"]}
    source = ArrowSource(
        table,
        Schema.from_dict(CLICK | schema, where="schema"),
        columns=["click"],
        policy=BadRowPolicy(policy="quarantine"),
        name="t",
        file_number=2,
    )
    (batch,) = source.read(0)
    assert batch.rejects is not None
    assert batch.rejects.schema.equals(REJECT_SCHEMA, check_metadata=True)
    assert json.loads(batch.rejects.column("raw")[0].as_py()) == {
        "click": 3,
        "price": "inf",
        "time": "1970-01-01 00:00:01.500Z",
        "tag": "\udcff",
        "ids": [2, None],
        ROW_ID: 2 << 36 | 1,
    }


def test_long_values_are_cut_in_errors() -> None:
    with pytest.raises(DataError) as caught:
        check({"ids": [list(range(1000))]}, {"id_lists": [{"name": "ids", "max_length": 3}]}, "fail")
    assert str(caught.value).startswith("table, row group 0, row 0, column ids: list longer than 3, given [0, 1, 2")
    assert len(str(caught.value)) < 200


CLICKS = st.lists(st.sampled_from([0, 1, 2, None]), max_size=50)


@given(CLICKS, st.integers(1, 20), st.sampled_from(["drop", "quarantine"]))
def test_counters_always_add_up(clicks: list[int | None], max_rows: int, policy: str) -> None:
    source = ArrowSource(
        pa.table({"click": pa.array(clicks, pa.int64())}),
        Schema.from_dict(CLICK, where="schema"),
        policy=BadRowPolicy.model_validate({"policy": policy}),
        max_rows_per_batch=max_rows,
    )
    batches = [batch for split in range(len(source)) for batch in source.read(split)]
    for split, batch in enumerate(batches):
        assert batch.num_read == batch.rows.num_rows + batch.num_dropped + batch.num_quarantined
        assert source.num_rows(split) == batch.num_read
    assert sum(batch.num_read for batch in batches) == len(clicks)
    good = [row for row, click in enumerate(clicks) if click in (0, 1)]
    assert [i for batch in batches for i in batch.rows.column(ROW_ID).to_pylist()] == good
    num_bad = sum(p.num_dropped if policy == "drop" else p.num_quarantined for p in batches)
    assert num_bad == len(clicks) - len(good)


def test_missing_and_unknown_columns_are_named() -> None:
    schema = Schema.from_dict(CLICK | {"ids": ["user"]}, where="schema")
    with pytest.raises(DataError, match="table: no column user; the table has click"):
        ArrowSource(pa.table({"click": [0]}), schema)
    with pytest.raises(ConfigError, match="column age is not in the schema, which has click, user"):
        ArrowSource(pa.table({"click": [0]}), schema, columns=["age"])


def test_arrow_source_slices_tables_of_many_chunks() -> None:
    table = pa.concat_tables([pa.table({"click": [0, 1]}), pa.table({"click": [1]}), pa.table({"click": [0] * 4})])
    source = ArrowSource(table, Schema.from_dict(CLICK, where="schema"), max_rows_per_batch=3)
    batches = [batch for split in range(len(source)) for batch in source.read(split)]
    assert [batch.rows.column("click").to_pylist() for batch in batches] == [[0, 1, 1], [0, 0, 0], [0]]
    assert source.describe(2) == "table, rows 6 to 7"
    assert source.estimate_bytes(0) == 24
    assert source.locate(5) == "table, row 5"


def test_the_budget_trips_at_its_share_but_not_before_its_minimum() -> None:
    budget = ErrorBudget(BadRowPolicy(policy="drop", max_ratio=0.1, min_rows=10))
    budget.add(num_read=9, num_bad=9)
    budget.add(num_read=91, num_bad=1)  # 10 of 100: exactly what is allowed
    with pytest.raises(ErrorBudgetExceeded, match=r"11 of 101 rows are bad \(10\.89%\), but at most 10\.00%"):
        budget.add(num_read=1, num_bad=1)


def test_the_budget_goes_on_from_saved_counts() -> None:
    policy = BadRowPolicy(policy="drop", max_ratio=0.0, min_rows=3)
    ErrorBudget(policy, num_read=10, num_bad=1).add(num_read=1, num_bad=1)
    with pytest.raises(ErrorBudgetExceeded):
        ErrorBudget(policy, num_read=10, num_bad=2).add(num_read=1, num_bad=1)


@pytest.mark.parametrize("limit", [{"max_ratio": 0.5}, {"min_rows": 5}])
def test_limits_of_bad_rows_need_a_policy_that_goes_on(limit: dict[str, Any]) -> None:
    BadRowPolicy(policy="drop", **limit)
    with pytest.raises(ConfigError, match=r"is only for policies drop and quarantine, given policy fail"):
        BadRowPolicy(**limit)
