"""Weights that stay beside the ids of a list."""

import itertools
from typing import Any

import plain_operators as plain
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from random_columns import list_columns

from headrace.errors import ConfigError, DataError
from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.tensors import validate_batch

SCHEMA = Schema.from_dict(
    {"labels": ["y"], "ids": ["id"], "id_lists": [{"name": "ids", "weights": "scores"}, "others"]}, where="schema"
)


def rows(ids: pa.Array, scores: pa.Array) -> pa.RecordBatch:
    return pa.record_batch(
        {
            "y": pa.array([0.0] * len(ids), pa.float64()),
            "id": pa.array(range(len(ids)), pa.int64()),
            "ids": ids,
            "scores": scores,
            "others": pa.array([[7]] * len(ids), pa.list_(pa.int64())),
        }
    )


def pairs(plan: FeaturePlan, batch: pa.RecordBatch) -> list[list[tuple[int, float]]]:
    """Ids with their weights, row by row, of the feature `f`."""
    result = plan.apply(batch)
    validate_batch(result)
    group = result.sparse[-1]
    assert group.keys == ("f",)
    assert group.weights is not None
    both = list(zip(group.values.tolist(), group.weights.tolist(), strict=True))
    bounds = group.offsets.tolist()
    return [both[start:stop] for start, stop in itertools.pairwise(bounds)]


MAPPING = {i: i for i in range(-3, 4)}


@settings(max_examples=60, deadline=None)
@given(
    list_columns("id"),
    st.sampled_from([[], [{"first_x": 2}], [{"map_id": {"mapping": MAPPING, "default": None}}, {"first_x": 2}]]),
    st.booleans(),
)
def test_each_id_keeps_its_weight(drawn: Any, ops: list[Any], null_weights: bool) -> None:
    scores = [None if row is None else [at + 0.5 for at in range(len(row))] for row in drawn.rows]
    if null_weights:
        scores = [row and [None, *row[1:]] for row in scores]
    expected = []
    for ids, weights in zip(drawn.rows, scores, strict=True):
        row = [(i, w or 0.0) for i, w in zip(ids or [], weights or [], strict=True) if i is not None]
        row = [(i, w) for i, w in row if len(ops) < 2 or i in MAPPING]
        expected.append(row[:2] if ops else row)
    plan = FeaturePlan.from_config({"sparse": {"f": {"from": "ids", "weights": "scores", "ops": ops}}}, SCHEMA)
    assert pairs(plan, rows(drawn.array, pa.array(scores, pa.list_(pa.float64())))) == expected


def test_weighted_features_are_a_group_of_their_own() -> None:
    config = {"sparse": {"f": {"from": "ids", "weights": "scores", "ops": [{"hash": 100}]}, "id": None, "others": None}}
    plan = FeaturePlan.from_config(config, SCHEMA)
    batch = rows(pa.array([[1, 2], None, [3]]), pa.array([[0.5, 0.25], None, [2.0]], pa.large_list(pa.float32())))
    assert plan.columns == ("ids", "scores", "id", "others", "y", "__row_id")
    assert plan.sparse_keys == plan.apply(batch).keys == ("id", "others", "f")
    hashed = [plain.sigrid_hash(i, 100) for i in (1, 2, 3)]
    assert pairs(plan, batch) == [[(hashed[0], 0.5), (hashed[1], 0.25)], [], [(hashed[2], 2.0)]]
    assert plan.apply(batch).sparse[0].weights is None


def test_the_default_plan_keeps_the_weights_of_the_schema() -> None:
    batch = FeaturePlan.default(SCHEMA).apply(rows(pa.array([[1, 2]]), pa.array([[0.5, 0.25]])))
    assert batch.keys == ("id", "others", "ids")
    assert batch.sparse[1].weights is not None
    assert batch.sparse[1].weights.tolist() == [0.5, 0.25]


def test_a_row_with_more_ids_than_weights_is_named() -> None:
    batch = rows(pa.array([[1], [2], [3, 4]]), pa.array([[0.5], [1.0], [2.0]]))
    with pytest.raises(DataError, match=r"feature ids: row 2 of the batch \(row id 2\) has more or fewer weights"):
        FeaturePlan.default(SCHEMA).apply(batch)


@pytest.mark.parametrize(
    ("feature", "message"),
    [
        ({"from": "ids", "weights": "id"}, "weights: given 'id', expected a column of weights: scores"),
        (
            {"from": "id", "weights": "scores"},
            "weights: given 'scores', expected only for one list of ids under sparse",
        ),
        ({"from": "ids", "weights": "scores", "ops": ["ngram"]}, "weights: given 'scores', but ngram makes new ids"),
    ],
)
def test_weights_that_do_not_suit_are_refused(feature: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        FeaturePlan.from_config({"sparse": {"f": feature}}, SCHEMA)
    assert message in str(caught.value)
