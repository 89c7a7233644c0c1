"""What other loaders yield becomes record batches with row ids."""

import numpy as np
import pyarrow as pa
import pytest
import torch

from headrace.errors import ConfigError, DataError
from headrace.logs.schema import Schema
from headrace.logs.source import ROW_ID
from headrace.pipeline import IterableSource, TableSource, from_iterable, read_arrow, to_record_batch


@pytest.mark.parametrize(
    "values",
    [
        pa.record_batch({"a": [1, 2], "b": [0.5, 1.5]}),
        pa.table({"a": [1, 2], "b": [0.5, 1.5]}),
        pa.Table.from_batches([pa.record_batch({"a": [1], "b": [0.5]}), pa.record_batch({"a": [2], "b": [1.5]})]),
        {"a": [1, 2], "b": np.array([0.5, 1.5])},
        {"a": torch.tensor([1, 2]), "b": pa.chunked_array([[0.5], [1.5]])},
        [{"a": 1, "b": 0.5}, {"a": 2, "b": 1.5}],
        (np.array([1, 2]), [0.5, 1.5]),
    ],
    ids=["batch", "table", "chunks", "numpy", "tensors", "rows", "tuple"],
)
def test_rows_in_any_form_become_a_record_batch(values: object) -> None:
    assert to_record_batch(values, ["a", "b"]).to_pydict() == {"a": [1, 2], "b": [0.5, 1.5]}


def test_a_matrix_becomes_a_column_of_lists() -> None:
    batch = to_record_batch({"x": torch.arange(6.0).reshape(2, 3)})
    assert batch["x"].to_pylist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize(
    ("values", "text"),
    [
        ((1, 2, 3), "given tuple, expected a record batch or columns by name; name the fields of a tuple"),
        (7, "given int"),
        ({"a": [1], "b": [1, 2]}, "columns differ in length: {'a': 1, 'b': 2}"),
    ],
)
def test_what_is_no_rows_is_refused(values: object, text: str) -> None:
    with pytest.raises(DataError) as caught:
        to_record_batch(values)
    assert text in str(caught.value)


def test_an_iterator_is_refused_for_it_can_be_read_only_once() -> None:
    with pytest.raises(ConfigError, match=r"given an iterator \(generator\).*give a function"):
        from_iterable(value for value in [{"a": [1]}])


def test_rows_of_an_iterable_are_numbered_on() -> None:
    source = IterableSource(lambda: iter([{"a": [1, 2]}, {"a": [3]}]))
    for _ in range(2):
        batches = list(source.read(0))
        assert [batch.rows[ROW_ID].to_pylist() for batch in batches] == [[0, 1], [2]]


def test_a_table_is_cut_into_splits_and_keeps_row_ids_it_has() -> None:
    source = TableSource(pa.table({"a": [1, 2, 3, 4, 5]}), split_rows=2)
    batches = [batch for split in range(len(source)) for batch in source.read(split)]
    assert [batch.rows[ROW_ID].to_pylist() for batch in batches] == [[0, 1], [2, 3], [4]]
    assert source.describe(1) == "table, rows 2 to 3"
    kept = next(TableSource(pa.table({ROW_ID: [7, 9]})).read(0))
    assert kept.rows[ROW_ID].to_pylist() == [7, 9]


def test_a_table_with_a_schema_is_checked() -> None:
    table = pa.table({"click": [0, 1, 2], "price": [1.0, 2.0, 3.0], "other": [1, 2, 3]})
    schema = Schema.from_dict({"labels": ["click"], "dense": ["price"]}, where="test")
    with pytest.raises(DataError, match="click"):
        next(read_arrow(table, schema).open(executor="inline"))
