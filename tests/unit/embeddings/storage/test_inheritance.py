"""Rows that begin with a part of others: the compiled loop and the one over columns write the same bits."""

import numpy as np
import pytest

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.inheritance import inherited_columns
from headrace.embeddings.storage.protocol import Inheritance
from headrace.embeddings.tables.table_group import row_layout

DIM, SOURCES = 6, np.array([1, 2, 1, 3, 2])


@pytest.mark.parametrize("ratio", [None, 0.0, 0.5])
@pytest.mark.parametrize(
    ("optimizer", "rows"),
    [*(("adagrad", rows) for rows in ("fp32", "bf16", "fp16", "int8")), ("rowwise_adagrad", "fp32"), ("adam", "fp32")],
)
def test_columns_and_arrays_inherit_the_same_bits(optimizer: str, rows: str, ratio: float | None) -> None:
    values = {"num_embeddings": 9, "embedding_dim": DIM, "rows": rows, "optimizer": {"kind": optimizer}}
    tables = [TableConfig.from_dict({"name": name, **values}, where="test") for name in ("user", "item")]
    layout = row_layout(tables, seed=3)
    storage, random = HostStorage(layout, 20), np.random.default_rng(5)
    sources = Keys(np.array([0, 1, 1], np.int32), np.array([7, 8, 9]), np.ones(3, np.int32))
    storage.initialize(np.arange(1, 4), sources)
    for step in (1, 2):
        gradients = random.normal(size=(3, DIM)).astype(np.float32)
        storage.update(np.arange(1, 4), sources, gradients, step=step)
    keys = Keys(np.array([0, 0, 1, 1, 1], np.int32), np.arange(100, 105), np.ones(5, np.int32))
    shares = random.random(5).astype(np.float32)
    inheritance = Inheritance(np.arange(10, 15), keys, SOURCES, shares, ratio, step=2)
    storage.inherit(inheritance)
    expected = inherited_columns(layout, inheritance, storage.columns(SOURCES))
    found = storage.columns(inheritance.rows)
    assert found.keys() == expected.keys()
    for name, column in found.items():
        np.testing.assert_array_equal(column, expected[name], err_msg=name)
    assert (ratio is None) == np.array_equal(found["weights"], storage.columns(SOURCES)["weights"])
