"""Features of group columns, and of plain rows found to be equal, are bit for bit those of the plain plan."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from random_columns import columns, list_columns

from headrace.errors import DataError
from headrace.features import Column, FeaturePlan
from headrace.features.operators import Cartesian
from headrace.features.spec import FeatureSpec
from headrace.logs import Schema
from headrace.logs.groups import compact, expand, group_array, group_name
from headrace.tensors import Batch, InverseKeyedJaggedTensor, validate_batch

SCHEMA = Schema.from_dict(
    {
        "labels": ["y"],
        "dense": ["age", "price"],
        "ids": ["city", {"name": "name", "type": "string"}, "item"],
        "id_lists": [{"name": "history", "weights": "scores"}, "likes", {"name": "tags", "type": "string"}],
        "weight": "w",
    },
    where="test",
)

FEATURES = {
    "dense": {
        "price": ["log1p"],
        "age": [{"fill": 3}, {"clamp": {"min": -5, "max": 50}}],
        "hot": {"from": "age", "ops": [{"one_hot": [0, 2, 4]}]},
        "seen": {"from": ["likes", "history"], "ops": [{"compute_score": "jaccard"}]},
        "again": {"from": ["item", "likes"], "ops": ["compute_score"]},
        "sampled": {"from": "age", "ops": [{"sampling": 0.5}]},
    },
    "sparse": {
        "city": [{"hash": 100}],
        "name": [],
        "item": [{"positive_modulus": 7}],
        "history": [{"first_x": 3}, {"hash": 1000}],
        "whole": {"from": "history", "ops": [{"hash": 1000}]},
        "places": {"from": "likes", "ops": ["enumerate"]},
        "known": {"from": "history", "ops": [{"map_id": {"mapping": {1: 9, 2: 8}, "default": None}}]},
        "weighted": {"from": "history", "weights": "scores"},
        "likes": [{"clamp": {"min": 0, "max": 3}}, {"first_x": 2}],
        "tags": [],
        "crossed": {"from": ["city", "likes"], "ops": ["cartesian"]},
        "grams": {"from": ["item", "history"], "ops": ["ngram"]},
        "bucket": {"from": "age", "ops": [{"bucketize": [0, 1, 2]}]},
    },
}
COLUMNS = ("age", "price", "city", "name", "item", "history", "scores", "likes", "tags")


@st.composite
def distinct_rows(draw: st.DrawFn) -> dict[str, pa.Array]:
    """A few rows: all types the kernels read, nulls, strings, slices."""
    rows = draw(st.integers(1, 6))
    history = draw(list_columns("id", rows=rows)).array
    sizes = [len(row or ()) for row in history.to_pylist()]
    scores = [draw(st.lists(st.none() | st.floats(-5, 5, width=32), min_size=n, max_size=n)) for n in sizes]
    return {
        "age": draw(columns("number", rows=rows)).array,
        "price": draw(columns("number", rows=rows)).array,
        "city": draw(columns("id", rows=rows)).array,
        "name": draw(columns("string", rows=rows)).array,
        "item": draw(columns("id", rows=rows)).array,
        "history": history,
        "scores": pa.array(scores, pa.list_(pa.float32())),
        "likes": draw(list_columns("id", rows=rows)).array,
        "tags": draw(list_columns("string", rows=rows)).array,
    }


@st.composite
def grouped_batches(draw: st.DrawFn) -> tuple[pa.RecordBatch, list[list[str]]]:
    """A batch with group columns, and which columns they hold: random groups; no rows, one, all equal, none equal."""
    distinct = draw(distinct_rows())
    num_unique = len(distinct["age"])
    rows = draw(st.integers(0, 14))
    home = [draw(st.integers(-1, 2)) for _ in COLUMNS]
    home[COLUMNS.index("scores")] = home[COLUMNS.index("history")]
    arrays: dict[str, Any] = {}
    groups = []
    for number in (-1, 0, 1, 2):
        members = [name for name, at in zip(COLUMNS, home, strict=True) if at == number]
        shape = draw(st.sampled_from(["any", "sorted", "equal"]))
        picks = draw(st.lists(st.integers(0, num_unique - 1), min_size=rows, max_size=rows))
        inverse = np.array({"sorted": sorted(picks), "equal": [0] * rows}.get(shape, picks), np.int32)
        if number < 0:
            arrays |= {name: distinct[name].take(pa.array(inverse)) for name in members}
        elif members:
            features = {name: distinct[name] for name in members}
            arrays[group_name(number)] = _with_slice_of_dictionary(
                group_array(features, inverse), draw(st.integers(0, 2))
            )
            groups.append(members)
    arrays["y"] = pa.array(np.arange(rows) % 2, pa.float32())
    arrays["w"] = pa.array(np.ones(rows), pa.float32())
    arrays["__row_id"] = pa.array(np.arange(100, 100 + rows))
    return pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays)), groups


def _with_slice_of_dictionary(column: pa.DictionaryArray, before: int) -> pa.DictionaryArray:
    """The same column, its dictionary a slice of one that has some rows before."""
    unique = column.dictionary
    longer = pa.concat_arrays([unique.slice(0, before), unique])
    skipped = len(longer) - len(unique)
    return pa.DictionaryArray.from_arrays(column.indices, longer.slice(skipped), safe=False)


def plain_plan() -> FeaturePlan:
    return FeaturePlan.from_config(FEATURES | {"dedup": "off"}, SCHEMA)


def bits(tensor: torch.Tensor) -> list[int]:
    return tensor.contiguous().view(torch.int32).reshape(-1).tolist()  # type: ignore[no-any-return]


def assert_same(given: Batch, wanted: Batch) -> None:
    """Equal bit for bit, whatever groups the features are in."""
    validate_batch(given)
    expanded = given.expand()
    validate_batch(expanded)
    assert bits(given.dense) == bits(wanted.dense)
    assert bits(given.labels) == bits(wanted.labels)
    assert given.row_ids.tolist() == wanted.row_ids.tolist()
    assert sorted(given.keys) == sorted(wanted.keys)
    parts = {key: group[key] for group in expanded.sparse for key in group.keys}
    for group in wanted.sparse:
        for key in group.keys:
            one, other = parts[key].to_lists(), group[key].to_lists()  # type: ignore[union-attr]
            assert one == other
            assert (parts[key].weights is None) == (group[key].weights is None)
            if group[key].weights is not None:
                assert bits(parts[key].weights) == bits(group[key].weights)  # type: ignore[arg-type]


@settings(max_examples=60, deadline=None)
@given(drawn=grouped_batches())
def test_features_of_group_columns_are_those_of_the_plain_plan(drawn: tuple[pa.RecordBatch, list[list[str]]]) -> None:
    batch, _ = drawn
    wanted = plain_plan().apply(expand(batch))
    assert_same(FeaturePlan.from_config(FEATURES, SCHEMA).apply(batch), wanted)
    assert_same(FeaturePlan.from_config(FEATURES, SCHEMA).apply(compact(batch)), wanted)
    cut = batch.num_rows // 2
    assert_same(plain_plan().apply(batch.slice(cut)), plain_plan().apply(expand(batch.slice(cut))))


@settings(max_examples=50, deadline=None)
@given(drawn=grouped_batches(), order=st.sampled_from(["adjacent", "any"]))
def test_features_of_rows_found_to_be_equal_are_those_of_the_plain_plan(
    drawn: tuple[pa.RecordBatch, list[list[str]]], order: str
) -> None:
    batch, groups = drawn
    plain = expand(batch)
    dedup = {"groups": groups or [["age"]], "order": order}
    given = FeaturePlan.from_config(FEATURES | {"dedup": dedup}, SCHEMA).apply(plain)
    assert_same(given, plain_plan().apply(plain))


@st.composite
def shifting_batches(draw: st.DrawFn) -> pa.RecordBatch:
    """Histories as slices of one buffer: shifting, jumping, empty and missing ones, in part of a dictionary."""
    size, num_unique = draw(st.integers(1, 20)), draw(st.integers(1, 8))
    buffer = pa.array(draw(st.lists(st.integers(-5, 30), min_size=size, max_size=size)), pa.int64())
    starts = draw(st.lists(st.integers(0, size), min_size=num_unique, max_size=num_unique))
    starts = sorted(starts) if draw(st.booleans()) else starts
    sizes = [draw(st.integers(0, size - start)) for start in starts]
    missing = draw(st.lists(st.booleans(), min_size=num_unique, max_size=num_unique))
    mask = pa.array(missing) if draw(st.booleans()) else None
    wide = draw(st.booleans())
    make, index = (pa.LargeListViewArray, pa.int64()) if wide else (pa.ListViewArray, pa.int32())
    history = make.from_arrays(pa.array(starts, index), pa.array(sizes, index), buffer, mask=mask)
    likes = pa.array([[number] for number in range(num_unique)], pa.list_(pa.int64()))
    picks = draw(st.lists(st.integers(0, num_unique - 1), max_size=12))
    picks = sorted(picks) if draw(st.booleans()) else picks
    group = group_array({"history": history, "likes": likes}, np.array(picks, np.int32))
    rows = pa.record_batch({group_name(0): group, "y": pa.array(np.zeros(len(picks)), pa.float32())})
    return rows.slice(draw(st.integers(0, len(picks))))


VIEWS = Schema.from_dict({"labels": ["y"], "id_lists": ["history", "likes"]}, where="test")
ON_VIEWS = {
    "sparse": {
        "whole": {"from": "history"},
        "hashed": {"from": "history", "ops": [{"hash": 50}, {"first_x": 4}, {"positive_modulus": 7}]},
        "likes": [{"hash": 9}],
        "places": {"from": "history", "ops": ["enumerate"]},
        "some": {"from": "history", "ops": [{"map_id": {"mapping": {1: 9}, "default": None}}, {"first_x": 2}]},
        "crossed": {"from": ["history", "likes"], "ops": ["cartesian"]},
    }
}


@settings(max_examples=50, deadline=None)
@given(batch=shifting_batches())
def test_ids_that_overlapping_lists_share_give_what_each_list_gives_alone(batch: pa.RecordBatch) -> None:
    wanted = FeaturePlan.from_config(ON_VIEWS | {"dedup": "off"}, VIEWS).apply(expand(batch))
    for given_batch in (batch, compact(batch)):
        assert_same(FeaturePlan.from_config(ON_VIEWS, VIEWS).apply(given_batch), wanted)


def shifting(num_rows: int = 300) -> pa.RecordBatch:
    """Ten sessions of thirty rows whose history of twenty shifts by one with each third row."""
    unique = num_rows // 3
    starts = np.arange(unique, dtype=np.int32) + 20 * (np.arange(unique, dtype=np.int32) // 10)
    buffer = pa.array(np.arange(int(starts.max()) + 20))
    history = pa.ListViewArray.from_arrays(pa.array(starts), pa.array(np.full(unique, 20, np.int32)), buffer)
    likes = pa.array([[number] for number in range(unique)], pa.list_(pa.int64()))
    inverse = (np.arange(num_rows) // 3).astype(np.int32)
    group = group_array({"history": history, "likes": likes}, inverse)
    return pa.record_batch({group_name(0): group, "y": pa.array(np.zeros(num_rows), pa.float32())})


def test_a_history_that_shifts_is_written_once_per_session() -> None:
    plan = FeaturePlan.from_config({"sparse": {"history": [{"hash": 99}]}}, VIEWS)
    (group,) = plan.apply(shifting()).sparse
    assert isinstance(group, InverseKeyedJaggedTensor)
    assert group.starts is not None
    assert group.unique_stride == 100
    assert group.values.numel() == 10 * 29  # not 100 lists of 20, let alone 300
    assert plan.savings.num_ids == 290
    assert plan.savings.num_plain_ids == 6000
    assert plan.savings.num_rows == 300
    assert plan.savings.values_factor == 3
    # As it came: indices, where 100 slices begin and end, and the shared ids; as plain rows: offsets and every id.
    assert plan.savings.num_row_bytes == 300 * 4 + 100 * 8 + 290 * 8
    assert plan.savings.num_plain_row_bytes == 300 * 4 + 6000 * 8


def test_plain_rows_in_flight_hold_what_they_hold() -> None:
    plan = FeaturePlan.from_config({"sparse": {"history": [], "likes": []}}, VIEWS)
    plan.apply(expand(shifting()))
    assert plan.savings.num_row_bytes == plan.savings.num_plain_row_bytes == 2 * 300 * 4 + (6000 + 300) * 8


def test_rows_cut_from_a_piece_compute_only_their_own_unique_rows() -> None:
    plan = FeaturePlan.from_config({"sparse": {"history": [], "likes": []}}, VIEWS)
    (group,) = plan.apply(shifting().slice(90, 60)).sparse
    assert isinstance(group, InverseKeyedJaggedTensor)
    assert group.unique_stride == 20
    assert group["likes"].unique.to_lists() == {"likes": [[number] for number in range(30, 50)]}


def test_labels_and_weights_may_lie_in_a_group_apart_from_all_features() -> None:
    inverse = np.array([0, 0, 1, 1, 1], np.int32)
    group = group_array({"y": pa.array([0.0, 1.0]), "w": pa.array([0.5, 2.0])}, inverse)
    plain = {"age": pa.array([1.0, 2.0, 3.0, 4.0, 5.0]), "city": pa.array([7, 7, 8, 8, 9])}
    config = {"dense": {"age": None}, "sparse": {"city": None}}
    batch = FeaturePlan.from_config(config, SCHEMA).apply(pa.record_batch(plain | {group_name(0): group}))
    assert batch.labels[:, 0].tolist() == [0, 0, 1, 1, 1]
    assert batch.weights is not None
    assert batch.weights.tolist() == [0.5, 0.5, 2, 2, 2]
    assert batch.dense[:, 0].tolist() == [1, 2, 3, 4, 5]
    assert batch.sparse[0].to_lists() == {"city": [[7], [7], [8], [8], [9]]}


def test_a_group_without_repeats_comes_out_plain() -> None:
    plan = FeaturePlan.from_config({"sparse": {"likes": []}}, VIEWS)
    batch = shifting().take(pa.array(np.arange(0, 300, 3)[::-1]))
    (group,) = plan.apply(batch).sparse
    assert not isinstance(group, InverseKeyedJaggedTensor)
    assert group.to_lists() == {"likes": [[number] for number in range(99, -1, -1)]}


def test_an_error_names_the_row_of_the_batch_not_the_unique_row() -> None:
    lists = {"history": pa.array([[1], [2, 3]]), "scores": pa.array([[0.5], [1.0]])}
    group = group_array(lists, np.array([0, 0, 0, 1], np.int32))
    batch = pa.record_batch(
        {
            group_name(0): group,
            "y": pa.array(np.zeros(4)),
            "w": pa.array(np.ones(4)),
            "__row_id": pa.array([7, 8, 9, 10]),
        }
    )
    config = {"sparse": {"weighted": {"from": "history", "weights": "scores"}}}
    with pytest.raises(DataError, match=r"row 3 of the batch \(row id 10\)"):
        FeaturePlan.from_config(config, SCHEMA).apply(batch)


def test_an_operator_that_mixes_groups_runs_once_per_combination() -> None:
    seen = []

    class Watch(Cartesian):
        def apply(self, columns: Sequence[Column], row_ids: NDArray[np.int64]) -> Column:
            seen.append(len(columns[0]))
            return super().apply(columns, row_ids)

    spec = FeatureSpec("crossed", "sparse", ("history", "likes"), (Watch(),))
    one = group_array({"history": pa.array([[1], [2]])}, np.array([0, 0, 0, 0, 1, 1, 1, 1], np.int32))
    two = group_array({"likes": pa.array([[5], [6]])}, np.array([0, 0, 1, 1, 1, 1, 0, 0], np.int32))
    batch = pa.record_batch({group_name(0): one, group_name(1): two, "y": pa.array(np.zeros(8))})
    (group,) = FeaturePlan((spec,), VIEWS).apply(batch).sparse
    assert seen == [4]
    assert isinstance(group, InverseKeyedJaggedTensor)
    assert group.inverse_lookup.tolist() == [0, 0, 1, 1, 2, 2, 3, 3]
