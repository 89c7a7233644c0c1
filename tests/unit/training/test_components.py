"""A checkpoint says what its parameters mean, and a job that means something else is refused with both sides."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from headrace.errors import CheckpointError, ConfigError
from headrace.training.checkpoint import Snapshot
from headrace.training.commits import restore, take_snapshot
from headrace.training.components import JobComponents, build_components
from headrace.training.job import JobConfig
from headrace.training.state import TrainingState

JOB: dict[str, Any] = {
    "run": "unused",
    "data": {
        "path": "unused",
        "schema": {
            "labels": ["click"],
            "dense": ["price", "age"],
            "ids": ["user", "item"],
            "id_lists": [{"name": "history", "weights": "scores"}],
            "timestamp": {"name": "time", "unit": "ms"},
        },
    },
    "features": {
        "dense": {"price": [{"fill": 0}, "log1p"]},
        "sparse": {
            "user": [],
            "item": [],
            "history": {"ops": [{"first_x": 20}], "weights": "scores"},
            "hour": {"from": "time", "ops": [{"positive_modulus": 24}]},
        },
    },
    "embeddings": {"default": {"num_embeddings": 50}, "tables": {"item": {"feature_names": ["history"]}}},
    "model": {"kind": "dlrm", "embedding_dim": 4, "bottom": [8], "top": [8]},
}


def built(path: str = "", value: Any = None) -> JobComponents:
    """The parts of the job above, with one value changed."""
    job = copy.deepcopy(JOB)
    *parents, last = path.split("/")
    place = job
    for key in parents:
        place = place[int(key)] if isinstance(place, list) else place.setdefault(key, {})
    if path:
        place[int(last) if isinstance(place, list) else last] = value
    return build_components(JobConfig.from_dict(job, where="test"))


def saved() -> Snapshot:
    parts = built()
    return take_snapshot(TrainingState(("click",), checkpoint=1), parts.model, parts.optimizer, parts.shape)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        (
            "data/schema/ids/1",
            {"name": "item", "type": "string"},
            "features.sparse.item.columns.item was 'int', is now 'string'",
        ),
        (
            "data/schema/id_lists/0",
            {"name": "history", "weights": "scores", "type": "string"},
            "features.sparse.history.columns.history was 'int', is now 'string'",
        ),
        ("data/schema/timestamp/unit", "s", "features.sparse.hour.columns.time was 'ms', is now 's'"),
        (
            "features/dense/price",
            [{"fill": 0}],
            "features.dense.price.operators was [{'fill': {'value': 0.0}}, {'log1p': {'signed': True}}], "
            "is now [{'fill': {'value': 0.0}}]",
        ),
        ("features/sparse/history/ops", [{"first_x": 10}], "features.sparse.history.operators was [{'first_x'"),
        ("features/sparse/hour/ops", [{"positive_modulus": 25}], "features.sparse.hour.operators was [{"),
        ("features/sparse/history/weights", None, "features.sparse.history.weights was 'scores', is now None"),
        ("features/dense/price", {"from": "age", "ops": ["log1p"]}, "features.dense.price.columns.price was 'number'"),
        (
            "embeddings/tables",
            {"user": {"feature_names": ["history"]}},
            "features.sparse.history.table was 'item', is now 'user'",
        ),
        ("embeddings/tables/user", {"pooling": "mean"}, "features.sparse.user.pooling was 'sum', is now 'mean'"),
        ("training/seed", 3, "seed was 0, is now 3"),
        ("model/top", [9], "model.top was [8], is now [9]"),
    ],
)
def test_what_changes_the_meaning_of_parameters_is_refused_with_both_sides(path: str, value: Any, said: str) -> None:
    now = built(path, value)
    with pytest.raises(CheckpointError, match=r"^checkpoint 1 belongs to another model: ") as caught:
        restore(saved(), TrainingState(("click",)), now.model, now.optimizer, now.shape)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("path", "value", "said"),
    [
        ("features/dense", {"price": [{"fill": 0}, "log1p"], "age": []}, "added dense age"),
        ("features/dense", {"age": []}, "added dense age; removed dense price"),
        ("features/sparse/day", {"from": "time", "ops": [{"positive_modulus": 7}]}, "added sparse day"),
    ],
)
def test_other_features_are_refused_with_their_names(path: str, value: Any, said: str) -> None:
    now = built(path, value)
    with pytest.raises(CheckpointError, match=rf"^checkpoint 1 has other features than the job \({said}\); "):
        restore(saved(), TrainingState(("click",)), now.model, now.optimizer, now.shape)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ("", None),
        ("data/schema/id_lists/0", {"name": "history", "weights": "scores", "max_length": 5}),
        ("data/schema/dense/0", {"name": "price", "nan": "allow"}),
        ("training/batch_size", 7),
        ("training/dense_optimizer", {"kind": "adam", "lr": 0.5}),
        ("pipeline/workers", 3),
    ],
)
def test_limits_rates_and_how_it_runs_may_change(path: str, value: Any) -> None:
    now = built(path, value)
    restore(saved(), TrainingState(("click",)), now.model, now.optimizer, now.shape)


def test_a_checkpoint_that_calls_the_table_of_a_feature_its_space_is_read() -> None:
    now, snapshot = built(), saved()
    shape = copy.deepcopy(snapshot.state["shape"])
    for feature in shape["features"]["sparse"].values():
        feature["space"] = feature.pop("table")
    earlier = Snapshot(1, snapshot.state | {"shape": shape}, snapshot.arrays, snapshot.columns)
    restore(earlier, TrainingState(("click",)), now.model, now.optimizer, now.shape)


def test_a_checkpoint_of_dcnv2_from_before_it_had_a_linear_part_is_read() -> None:
    now = built("model", {"kind": "dcnv2", "embedding_dim": 4, "deep": [8]})
    snapshot = take_snapshot(TrainingState(("click",), checkpoint=1), now.model, now.optimizer, now.shape)
    shape = copy.deepcopy(snapshot.state["shape"])
    del shape["model"]["linear"]
    earlier = Snapshot(1, snapshot.state | {"shape": shape}, snapshot.arrays, snapshot.columns)
    restore(earlier, TrainingState(("click",)), now.model, now.optimizer, now.shape)


@pytest.mark.parametrize(
    ("key", "value"), [("step", -1), ("cursor", None), ("rows", []), ("seconds", "x"), ("shape", 1)]
)
def test_a_state_of_other_types_is_one_line(key: str, value: Any) -> None:
    now, snapshot = built(), saved()
    wrong = Snapshot(1, snapshot.state | {key: value}, snapshot.arrays, snapshot.columns)
    with pytest.raises(CheckpointError, match=rf"^checkpoint 1: state.{key}: "):
        restore(wrong, TrainingState(("click",)), now.model, now.optimizer, now.shape)


@pytest.mark.parametrize("model", [{"kind": "deepfm"}, {"kind": "wide_deep"}, {"kind": "dcnv2", "linear": True}])
def test_a_linear_optimizer_is_for_models_with_a_linear_part(model: dict[str, Any]) -> None:
    with_optimizer = {**JOB, "embeddings": {"linear_optimizer": {"kind": "rowwise_adagrad"}}}  # equal to the tables'
    small = {"embedding_dim": 2, "deep": [2]}
    build_components(JobConfig.from_dict({**with_optimizer, "model": model | small}, where="test"))
    for other in ({"kind": "dcnv2"} | small, JOB["model"]):
        with pytest.raises(ConfigError) as refused:
            build_components(JobConfig.from_dict({**with_optimizer, "model": other}, where="test"))
        assert str(refused.value) == (
            f"embeddings.linear_optimizer: given rowwise_adagrad, but model {other['kind']} has no linear part; "
            "expected model deepfm, wide_deep, or dcnv2 with linear: true, or no linear_optimizer"
        )
