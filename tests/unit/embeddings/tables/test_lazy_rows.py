"""Rows of direct and hashed tables are written when they are first trained on, and nobody can tell."""

from typing import Any

import numpy as np
import pytest
import torch

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.table_group import TableGroup

DIM = 4
OPTIMIZER = {"kind": "adagrad", "initial_accumulator": 0.5}
TABLES: list[dict[str, Any]] = [
    {"name": "direct", "kind": "direct", "num_embeddings": 50, "optimizer": {"kind": "adagrad"}},
    {"name": "hashed", "kind": "hashed", "num_embeddings": 30, "optimizer": OPTIMIZER},
    {"name": "new", "kind": "collisionless", "num_embeddings": 8, "optimizer": {"kind": "adagrad"}},
]


def group_of(**options: str) -> TableGroup:
    common = {"embedding_dim": DIM, **options}
    return TableGroup([TableConfig.from_dict(table | common, where="test") for table in TABLES], seed=3)


def keys_of(*pairs: tuple[int, int]) -> Keys:
    tables, ids = zip(*pairs, strict=True)
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))


def train(group: TableGroup, *, steps: int = 4) -> None:
    random = np.random.default_rng(0)
    for _ in range(steps):
        chosen = sorted({(int(table), int(random.integers(30))) for table in random.integers(0, 3, 12)})
        keys = keys_of(*chosen)
        rows = group.read(keys)
        group.update(keys, rows + random.standard_normal(rows.shape, np.float32))


def test_a_new_table_writes_no_rows() -> None:
    assert not group_of().storage.weights.any()


@pytest.mark.parametrize("rows", ["fp32", "bf16", "fp16", "int8"])
def test_rows_nobody_trained_on_read_as_those_of_a_table_that_wrote_them_all(rows: str) -> None:
    group, complete = group_of(rows=rows), group_of(rows=rows)
    assert complete.weights.any()  # writes them
    keys = keys_of((0, 0), (0, 49), (1, 7), (1, 29), (2, 5))
    for each in (group, complete):
        train(each)
    assert np.array_equal(group.read(keys), complete.read(keys))
    assert torch.equal(group.weights, complete.weights)


def test_reading_writes_no_rows() -> None:
    group = group_of()
    assert group.read(keys_of((0, 3), (1, 3), (2, 3))).any()
    assert not group.storage.weights.any()
    assert len(group.metadata.updated_rows()) == 0


def test_training_and_optimizer_state_are_those_of_a_table_that_wrote_all_rows() -> None:
    group, complete = group_of(), group_of()
    assert complete.weights.any()  # writes them
    train(group)
    train(complete)
    saved, wanted = group.state_dict(), complete.state_dict()
    assert saved.keys() == wanted.keys()
    assert len(saved["weights"]) < group.num_rows  # some were never updated
    assert all(np.array_equal(saved[name], wanted[name]) for name in wanted)
    assert group.weights.any()
    assert np.array_equal(group.storage.state, complete.storage.state)


def test_gradients_for_a_row_that_was_never_read_meet_its_first_values() -> None:
    group, complete = group_of(), group_of()
    assert complete.weights.any()  # writes them
    gradients = np.ones((2, DIM), np.float32)
    for each in (group, complete):
        each.update(keys_of((0, 3), (1, 3)), gradients)
    assert np.array_equal(group.read(keys_of((0, 3))), complete.read(keys_of((0, 3))))


def test_a_loaded_table_reads_rows_that_were_never_updated() -> None:
    group, loaded = group_of(), group_of()
    train(group)
    train(loaded, steps=1)
    loaded.load_state_dict(group.state_dict())
    assert torch.equal(loaded.weights, group.weights)
