"""Plans end to end: what a job file says becomes the tensors of a batch."""

import pickle
import threading
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.errors import ConfigError, DataError
from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.tensors import validate_batch

SCHEMA = Schema.from_dict(
    {
        "labels": ["click", "buy"],
        "dense": ["age", "price"],
        "ids": ["user", "item", {"name": "country", "type": "string"}],
        "id_lists": ["history"],
        "weight": "weight",
        "timestamp": {"name": "time", "unit": "ms"},
    },
    where="schema",
)

JOB: dict[str, Any] = {
    "dense": {
        "age": [{"fill": 0}, {"clamp": {"min": 0}}, "log1p"],
        "cost": {"from": "price", "ops": ["log1p"]},
        "hour": {"from": "time", "ops": [{"local_hour": "Europe/Berlin"}, {"cast": "number"}]},
        "old": {"from": "age", "ops": [{"one_hot": [30]}]},
    },
    "sparse": {
        "user": None,
        "item": [{"hash": {"range": 100}}],
        "country": [],
        "recent": {"from": "history", "ops": [{"first_x": 2}, {"hash": {"range": 100}}]},
        "bucket": {"from": "age", "ops": [{"bucketize": [0, 20, 40]}]},
    },
}


def rows() -> pa.RecordBatch:
    return pa.record_batch(
        {
            "click": pa.array([0, 1, 1], pa.int8()),
            "buy": pa.array([False, True, False]),
            "weight": pa.array([1.0, 0.5, 2.0]),
            "age": pa.array([np.e - 1, None, -3], pa.float32()),
            "price": pa.array([1 - np.e, None, 0.0], pa.float64()),
            "user": pa.array([7, None, 9], pa.int32()),
            "item": pa.array([1, 16, None], pa.int64()),
            "country": pa.array(["abc", None, "abc"]),
            "history": pa.array([[1, 14, 15], None, [16]], pa.list_(pa.int64())),
            "time": pa.array([0, 1_500_000_000_000, 1_509_238_800_000], pa.int64()),
            "__row_id": pa.array([50, 60, 70], pa.int64()),
        }
    )


def test_a_job_becomes_a_valid_batch() -> None:
    plan = FeaturePlan.from_config(JOB, SCHEMA)
    batch = plan.apply(rows())
    validate_batch(batch)
    assert plan.dense_names == ("age", "cost", "hour", "old_0", "old_1")
    expected = [[1, -1, 1, 1, 0], [0, 0, 4, 0, 0], [0, 0, 2, 1, 0]]
    assert batch.dense.numpy() == pytest.approx(np.array(expected, np.float32), rel=1e-6)
    assert batch.labels.tolist() == [[0, 0], [1, 1], [1, 0]]
    assert batch.weights is not None
    assert batch.weights.tolist() == [1.0, 0.5, 2.0]
    assert batch.row_ids.tolist() == [50, 60, 70]
    abc = 0x44BC2CF5AD770999
    assert batch.sparse[0].to_lists() == {
        "user": [[7], [], [9]],
        "item": [[60], [2], []],
        "country": [[abc], [], [abc]],
        "recent": [[60, 83], [], [2]],
        "bucket": [[1], [], [0]],
    }
    assert plan.sparse_keys == batch.keys


def test_columns_name_everything_the_plan_reads_and_nothing_else() -> None:
    plan = FeaturePlan.from_config({"dense": {"p": {"from": "price"}}}, SCHEMA)
    assert plan.columns == ("price", "click", "buy", "weight", "__row_id")
    assert plan.without_labels().columns == ("price", "__row_id")


def test_the_default_plan_takes_every_column_by_its_part() -> None:
    plan = FeaturePlan.from_config(None, SCHEMA)
    batch = plan.apply(rows())
    assert plan.dense_names == ("age", "price")
    assert batch.dense[:, 1].tolist() == pytest.approx([-1, 0, 0])
    assert batch.sparse[0].to_lists()["history"] == [[1, 14, 15], [], [16]]
    assert batch.sparse[0].to_lists()["item"] == [[1], [16], []]


def test_columns_that_are_not_listed_keep_their_default() -> None:
    assert FeaturePlan.from_config({"others": "default"}, SCHEMA).specs == FeaturePlan.default(SCHEMA).specs
    listed = {"dense": {"age": ["is_null"], "no_price": {"from": "price", "ops": ["is_null"]}}}
    plan = FeaturePlan.from_config({**listed, "others": "default", "dedup": "off"}, SCHEMA)
    assert plan.dense_names == ("age", "no_price", "price")
    alone = FeaturePlan.from_config(listed, SCHEMA).specs
    rest = [spec for spec in FeaturePlan.default(SCHEMA).specs if spec.name != "age"]
    assert plan.specs == (*alone, *rest)
    assert validate_batch(plan.apply(rows())) is None
    assert plan.dedup == "off"


def test_default_lists_are_cut_after_fifty_ids() -> None:
    schema = Schema.from_dict({"labels": ["y"], "id_lists": ["h"]}, where="schema")
    batch = FeaturePlan.default(schema).apply(pa.record_batch({"y": [1.0], "h": [list(range(60))]}))
    assert batch.sparse[0].values.tolist() == list(range(50))


def test_rows_to_score_need_neither_labels_nor_row_ids() -> None:
    plan = FeaturePlan.default(SCHEMA).without_labels()
    batch = plan.apply(rows().drop_columns(["click", "buy", "weight", "__row_id"]))
    assert batch.labels.shape == (3, 0)
    assert batch.weights is None
    assert batch.row_ids.tolist() == [0, 1, 2]


def test_a_batch_of_no_rows_is_valid() -> None:
    batch = FeaturePlan.from_config(JOB, SCHEMA).apply(rows().slice(0, 0))
    validate_batch(batch)
    assert len(batch) == 0


def test_a_slice_gives_the_rows_of_the_whole() -> None:
    plan = FeaturePlan.from_config(JOB, SCHEMA)
    whole, part = plan.apply(rows()), plan.apply(rows().slice(1, 2))
    assert torch.equal(part.dense, whole.dense[1:])
    assert torch.equal(part.labels, whole.labels[1:])
    assert part.row_ids.tolist() == [60, 70]
    assert part.sparse[0].to_lists() == {key: rows[1:] for key, rows in whole.sparse[0].to_lists().items()}


def test_columns_may_come_in_any_order_and_among_others() -> None:
    batch = rows()
    names = [*reversed(batch.schema.names), "other"]
    other = batch.append_column("other", pa.array(["x"] * 3)).select(names)
    plan = FeaturePlan.from_config(JOB, SCHEMA)
    assert torch.equal(plan.apply(other).dense, plan.apply(batch).dense)
    assert plan.apply(other).sparse[0].to_lists() == plan.apply(batch).sparse[0].to_lists()


def test_a_plan_can_be_sent_to_another_process() -> None:
    plan = FeaturePlan.from_config(JOB, SCHEMA)
    plan.apply(rows())
    copy = pickle.loads(pickle.dumps(plan))
    assert torch.equal(copy.apply(rows()).dense, plan.apply(rows()).dense)


def test_threads_share_a_plan() -> None:
    plan = FeaturePlan.from_config(JOB, SCHEMA)
    expected = plan.apply(rows())
    results: list[bool] = []

    def work() -> None:
        for start in range(20):
            part = plan.apply(rows().slice(start % 3))
            results.append(torch.equal(part.dense, expected.dense[start % 3 :]))

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 80


def test_the_estimate_covers_what_has_been_seen() -> None:
    plan = FeaturePlan.from_config({"sparse": {"history": None}}, SCHEMA)
    assert plan.estimate_bytes(1000) > 1000 * 8 * 10
    wide = rows().set_column(8, "history", pa.array([list(range(500))] * 3))
    assert plan.estimate_bytes(3) < plan.apply(wide).num_bytes <= plan.estimate_bytes(3)


@pytest.mark.parametrize(
    ("name", "array", "message"),
    [
        ("age", ["1", "y", "z"], 'column age: row 1 of the batch: not a number, given "y"'),
        ("item", [1.0, None, 3.5], "column item: row 2 of the batch: not an integer, given 3.5"),
        ("country", [[1]] * 3, "column country: given Arrow type list<item: int64>, expected one id per row"),
        ("price", [{"a": 1}] * 3, "column price: given Arrow type struct<a: int64>, expected one number per row"),
        ("time", ["2024-01-01", "noon", None], 'column time: row 1 of the batch: not a time, given "noon"'),
        ("history", [1, 2, 3], "column history: given Arrow type int64, expected a list of ids per row"),
        ("user", [[1], [2], [3]], "column user: given Arrow type list<item: int64>, expected one id per row"),
    ],
)
def test_a_type_or_value_that_does_not_suit_is_named(name: str, array: list[Any], message: str) -> None:
    batch = rows()
    position = batch.schema.get_field_index(name)
    with pytest.raises(DataError) as caught:
        FeaturePlan.from_config(JOB, SCHEMA).apply(batch.set_column(position, name, pa.array(array)))
    assert str(caught.value) == message


def test_a_missing_column_is_named() -> None:
    with pytest.raises(DataError, match="column price: missing in the batch, which has click, buy"):
        FeaturePlan.from_config(JOB, SCHEMA).apply(rows().drop_columns(["price"]))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ([], "features: given list, expected a mapping of dense and sparse"),
        ({}, "features: no features, expected at least one under dense or sparse"),
        ({"dens": {}}, "features.dens: unknown key, expected dense, sparse, others or dedup"),
        ({"others": "all"}, "features.others: given 'all', expected default: every column of the schema that is not"),
        (
            {"dense": {"age": [{"standardize": {"std": 0}}]}},
            "features.dense.age, operator 1 (standardize): std: given 0, expected: ",
        ),
        ({"dense": {"age": "log1p"}}, "features.dense.age: given 'log1p', expected a list of operators"),
        (
            {"dense": {"age": {"fill": 0}}},
            "features.dense.age.fill: unknown key, expected from, ops or weights (put operators in a list)",
        ),
        (
            {"dense": {"x": ["log1p"]}},
            "features.dense.x: given column 'x', expected one of the schema's: age, price, user, item, "
            "country, history, time",
        ),
        ({"dense": {"age": [{"clamp": {"min": 2, "max": 1}}]}}, "min <= max, given min 2.0 and max 1.0"),
        (
            {"sparse": {"item": [{"hash": {"range": -5}}]}},
            "features.sparse.item, operator 1 (hash): range: given -5, expected: ",
        ),
        (
            {"sparse": {"item": [{"hash": {"range": 5, "sault": 1}}]}},
            "features.sparse.item, operator 1 (hash): sault: unknown key",
        ),
        (
            {"sparse": {"item": ["hahs"]}},
            "features.sparse.item, operator 1: given operator 'hahs', expected one of ",
        ),
        (
            {"sparse": {"item": ["log1p"]}},
            "features.sparse.item, operator 1 (log1p): given one id per row, expected one number per row or",
        ),
        ({"sparse": {"age": []}}, "features.sparse.age: ends with one number per row, expected ids"),
        (
            {"dense": {"item": []}},
            "features.dense.item: ends with one id per row, expected a number; add an operator such",
        ),
        (
            {"sparse": {"x": {"from": ["user", "item"]}}},
            "features.sparse.x: ends with 2 columns, expected an operator that joins them",
        ),
        (
            {"dense": {"age": [{"one_hot": [1]}, "log1p"]}},
            "features.dense.age, operator 1 (one_hot): expected as the last operator of a dense feature",
        ),
        (
            {"dense": {"item": [{"local_hour": "UTC"}, {"cast": "number"}]}},
            "features.dense.item, operator 1 (local_hour): unit: missing, expected s, ms, us or ns",
        ),
        (
            {"dense": {"time": [{"local_hour": "Mars/Olympus"}, {"cast": "number"}]}},
            "timezone: given 'Mars/Olympus', expected: the name of a time zone, such as Europe/Berlin",
        ),
    ],
)
def test_a_mistake_in_the_job_is_one_line_that_names_it(config: Any, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeaturePlan.from_config(config, SCHEMA)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
