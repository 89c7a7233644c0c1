"""Rows of direct and hashed spaces are written when they are first trained on, and nobody can tell."""

import numpy as np
import pytest
import torch

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.table_group import TableGroup

DIM = 4
SPACES = {
    "direct": {"kind": "direct", "num_embeddings": 50, "optimizer": {"kind": "adagrad"}},
    "hashed": {"kind": "hashed", "num_embeddings": 30, "optimizer": {"kind": "adagrad", "initial_accumulator": 0.5}},
    "new": {"kind": "collisionless", "num_embeddings": 8, "optimizer": {"kind": "adagrad"}},
}


def table_of(**options: str) -> TableGroup:
    spaces = {name: TableConfig.from_dict({**space, **options}, where=name) for name, space in SPACES.items()}
    return TableGroup(spaces, DIM, seed=3)


def keys_of(*pairs: tuple[int, int]) -> Keys:
    spaces, ids = zip(*pairs, strict=True)
    return Keys(np.array(spaces, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))


def train(table: TableGroup, *, steps: int = 4) -> None:
    random = np.random.default_rng(0)
    for _ in range(steps):
        chosen = sorted({(int(space), int(random.integers(30))) for space in random.integers(0, 3, 12)})
        keys = keys_of(*chosen)
        rows = table.read(keys)
        table.update(keys, rows + random.standard_normal(rows.shape, np.float32))


def test_a_new_table_writes_no_rows() -> None:
    assert not table_of().storage.weights.any()


@pytest.mark.parametrize("rows", ["fp32", "bf16", "fp16"])
def test_rows_nobody_trained_on_read_as_those_of_a_table_that_wrote_them_all(rows: str) -> None:
    table, complete = table_of(rows=rows), table_of(rows=rows)
    assert complete.weights.any()  # writes them
    keys = keys_of((0, 0), (0, 49), (1, 7), (1, 29), (2, 5))
    for each in (table, complete):
        train(each)
    assert np.array_equal(table.read(keys), complete.read(keys))
    assert torch.equal(table.weights, complete.weights)


def test_reading_writes_no_rows() -> None:
    table = table_of()
    assert table.read(keys_of((0, 3), (1, 3), (2, 3))).any()
    assert not table.storage.weights.any()
    assert len(table.metadata.updated_rows()) == 0


def test_training_and_optimizer_state_are_those_of_a_table_that_wrote_all_rows() -> None:
    table, complete = table_of(), table_of()
    assert complete.weights.any()  # writes them
    train(table)
    train(complete)
    saved, wanted = table.state_dict(), complete.state_dict()
    assert saved.keys() == wanted.keys()
    assert len(saved["weights"]) < table.num_rows  # some were never updated
    assert all(np.array_equal(saved[name], wanted[name]) for name in wanted)
    assert table.weights.any()
    assert np.array_equal(table.storage.state, complete.storage.state)


def test_gradients_for_a_row_that_was_never_read_meet_its_first_values() -> None:
    table, complete = table_of(), table_of()
    assert complete.weights.any()  # writes them
    gradients = np.ones((2, DIM), np.float32)
    for each in (table, complete):
        each.update(keys_of((0, 3), (1, 3)), gradients)
    assert np.array_equal(table.read(keys_of((0, 3))), complete.read(keys_of((0, 3))))


def test_a_loaded_table_reads_rows_that_were_never_updated() -> None:
    table, loaded = table_of(), table_of()
    train(table)
    train(loaded, steps=1)
    loaded.load_state_dict(table.state_dict())
    assert torch.equal(loaded.weights, table.weights)
