"""Group columns: whatever is done to rows, expanding them before or after gives the same plain rows."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.logs import groups
from headrace.logs.source import ROW_ID


def a_batch(num_rows: int, num_unique: int, seed: int, *, first_id: int = 0) -> pa.RecordBatch:
    """Two groups: one with numbers, texts and lists with nulls, one with slices of a shared buffer."""
    random = np.random.default_rng(seed)

    def inverse() -> np.ndarray:
        return random.integers(0, num_unique, num_rows).astype(np.int32)

    def some(values: list[object]) -> list[object]:
        return [None if random.random() < 0.2 else value for value in values]

    lists = [random.integers(0, 99, random.integers(0, 4)).tolist() for _ in range(num_unique)]
    plain = {
        "age": pa.array(some(random.normal(size=num_unique).tolist()), pa.float32()),
        "price": pa.array(random.normal(size=num_unique)),
        "word": pa.array([f"w{i}" for i in range(num_unique)]),
        "tags": pa.array(some([[f"t{v}" for v in values] for values in lists]), pa.list_(pa.string())),
        "clicks": pa.array(some(lists), pa.list_(pa.int64())),
    }
    shared = pa.array(random.integers(0, 1000, 30))
    starts = random.integers(0, 25, num_unique).astype(np.int32)
    lengths = random.integers(0, 6, num_unique).astype(np.int32)
    holes = pa.array(random.random(num_unique) < 0.2)
    views = {
        "history": pa.ListViewArray.from_arrays(pa.array(starts), pa.array(lengths), shared, mask=holes),
        "scores": pa.LargeListViewArray.from_arrays(
            pa.array(starts.astype(np.int64)), pa.array(lengths.astype(np.int64)), shared.cast(pa.float32())
        ),
    }
    columns = {
        "click": pa.array(random.integers(0, 2, num_rows), pa.float32()),
        "__group_0": groups.group_array(plain, inverse()),
        "__group_1": groups.group_array(views, inverse()),
        ROW_ID: pa.array(np.arange(first_id, first_id + num_rows)),
    }
    return pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))


BATCHES = st.builds(a_batch, st.integers(0, 20), st.integers(1, 8), st.integers(0, 10_000))


def plain(batch: pa.RecordBatch) -> list[dict[str, object]]:
    """Rows by Arrow's own conversion, which knows nothing of our code."""
    rows = batch.to_pylist()
    return [
        {k: v for row in [row] for name, x in row.items() for k, v in (x if "group" in name else {name: x}).items()}
        for row in rows
    ]


@settings(max_examples=60, deadline=None)
@given(BATCHES)
def test_expanding_gives_the_rows_that_arrow_sees(batch: pa.RecordBatch) -> None:
    expanded = groups.expand(batch)
    expanded.validate(full=True)
    assert expanded.to_pylist() == plain(batch)
    assert expanded.schema.equals(groups.expanded_schema(batch.schema))


@settings(max_examples=60, deadline=None)
@given(BATCHES, st.data())
def test_slicing_taking_filtering_commute_with_expanding(batch: pa.RecordBatch, data: st.DataObject) -> None:
    start = data.draw(st.integers(0, batch.num_rows))
    rows = pa.array(data.draw(st.lists(st.integers(0, max(batch.num_rows - 1, 0)), max_size=batch.num_rows * 2)))
    mask = pa.array(data.draw(st.lists(st.booleans(), min_size=batch.num_rows, max_size=batch.num_rows)), pa.bool_())
    for change in (
        lambda b: b.slice(start, 5),
        lambda b: b.take(rows.cast(pa.int64())),
        lambda b: b.filter(mask),
        lambda b: b.slice(start).filter(mask.slice(start)),
    ):
        assert groups.expand(change(batch)).equals(change(groups.expand(batch)))


@settings(max_examples=60, deadline=None)
@given(BATCHES, BATCHES, st.data())
def test_concatenating_and_compacting_change_no_row(
    one: pa.RecordBatch, other: pa.RecordBatch, data: st.DataObject
) -> None:
    cut = data.draw(st.integers(0, one.num_rows))
    parts = [one.slice(0, cut), other, one.slice(cut), other.slice(1)]
    joined = groups.concat(parts)
    joined.validate(full=True)
    assert groups.expand(joined).equals(pa.concat_batches([groups.expand(part) for part in parts]))
    for batch in (joined, joined.slice(cut, 7), one.slice(cut)):
        small = groups.compact(batch)
        small.validate(full=True)
        assert groups.expand(small).equals(groups.expand(batch))
        for name in ("__group_0", "__group_1"):
            group = groups.group_of(small.column(name))
            first_uses = list(dict.fromkeys(group.inverse.tolist()))
            assert first_uses == list(range(len(group.unique)))


@settings(max_examples=40, deadline=None)
@given(BATCHES, st.data())
def test_bytes_are_those_of_the_unique_rows_and_elements_in_use(batch: pa.RecordBatch, data: st.DataObject) -> None:
    part = batch.slice(data.draw(st.integers(0, batch.num_rows)), 4).select(["__group_1"])
    group = groups.group_of(part.column(0))
    used = set(group.inverse.tolist())
    expected = 4 * part.num_rows + len(used) * (8 + 16)
    for name, width in (("history", 8), ("scores", 4)):
        views = group.feature(name)
        slices = [(views.offsets[i].as_py(), views.sizes[i].as_py()) for i in used if views[i].is_valid]
        expected += width * len({at for start, length in slices for at in range(start, start + length)})
    assert groups.num_bytes(part) == expected


def test_slices_of_one_batch_share_their_dictionary_again() -> None:
    batch = a_batch(20, 8, 3)
    joined = groups.concat([batch.slice(0, 5), batch.slice(9, 3), batch.slice(1, 2)])
    assert len(joined.column("__group_0").dictionary) == 8


def test_compacting_keeps_overlapping_slices_in_one_buffer() -> None:
    shared = pa.array(np.arange(100))
    views = pa.ListViewArray.from_arrays(
        pa.array([10, 60, 11, 12], pa.int32()), pa.array([5, 5, 5, 5], pa.int32()), shared
    )
    column = groups.group_array({"history": views}, np.array([3, 2, 0, 0], np.int32))
    batch = pa.RecordBatch.from_arrays([column], names=["__group_0"])
    group = groups.group_of(groups.compact(batch).column(0))
    assert group.feature("history").values.to_pylist() == list(range(10, 17))
    assert group.inverse.tolist() == [0, 1, 2, 2]


def test_only_the_columns_asked_for_are_made_in_that_order() -> None:
    batch = a_batch(6, 3, 1)
    assert groups.expand(batch, ["history", ROW_ID, "age"]).schema.names == ["history", ROW_ID, "age"]
    with pytest.raises(KeyError, match="nothing"):
        groups.expand(batch, ["nothing"])


def test_a_batch_without_groups_is_given_back_as_it_is() -> None:
    batch = pa.RecordBatch.from_pydict({"x": [1, 2]})
    assert groups.expand(batch) is batch
    assert groups.compact(batch) is batch


def test_features_are_found_by_their_group() -> None:
    schema = a_batch(1, 1, 0).schema
    assert groups.find_group(schema, "history") == "__group_1"
    assert groups.find_group(schema, "click") is None
    assert groups.feature_names(schema)[:3] == ("click", "age", "price")
