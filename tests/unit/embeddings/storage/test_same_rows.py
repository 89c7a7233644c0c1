"""Every storage in files trains the same rows, bit for bit, as memory."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.registry import SPARSE_OPTIMIZERS

DIM = 8
OPTIMIZERS = ("sgd", "rowwise_adagrad", "adagrad", "adam", "ftrl")

STORAGES: dict[str, Callable[[Path], MakeStorage]] = {
    "mapped": MappedStorage.within,
    "tiered": lambda folder: TieredStorage.within(folder, 100_000, segment_pages=4),
}


@pytest.fixture(params=sorted(STORAGES))
def make_storage(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStorage:
    return STORAGES[request.param](tmp_path)


def tables_of(optimizer: str = "adam", rows: str = "fp32", admission_count: int = 1) -> list[TableConfig]:
    config = SPARSE_OPTIMIZERS.get(optimizer)()
    common: dict[str, Any] = {"embedding_dim": DIM, "optimizer": config, "rows": rows}
    return [
        TableConfig(name="hashed", kind="hashed", num_embeddings=3_000, **common),
        TableConfig(
            name="item",
            kind="collisionless",
            num_embeddings=16,
            admission_count=admission_count,
            evict_after=2,
            init_scale=0.1,
            **common,
        ),
    ]


def batch_of(rng: np.random.Generator, num_ids: int = 5_000) -> Keys:
    """About 700 unique keys of both tables, some much more frequent than others."""
    hashed = np.unique((3_000 * rng.random(400) ** 3).astype(np.int64))
    items = np.unique((num_ids * rng.random(400) ** 3).astype(np.int64))
    tables = np.repeat(np.arange(2, dtype=np.int32), [len(hashed), len(items)])
    return Keys(tables, np.concatenate([hashed, items]), rng.integers(1, 3, len(tables)).astype(np.int32))


def train(group: TableGroup, *, steps: int, seed: int) -> list[np.ndarray]:
    """Read, update and sometimes evict; returns what was read."""
    rng = np.random.default_rng(seed)
    seen = []
    for step in range(steps):
        keys = batch_of(rng)
        seen.append(group.read(keys))
        group.update(keys, rng.normal(size=(len(keys), DIM)).astype(np.float32), num_rows=7)
        if step % 7 == 5:
            group.evict(batch_of(rng).unseen().take(np.arange(0, 300, 3)))
        if step % 10 == 9:
            group.end_window()
    return seen


def by_key(group: TableGroup) -> dict[str, np.ndarray]:
    """A saved group with rows in the order of their keys, because storages save them in the order that suits them."""
    state = group.state_dict()
    order = np.lexsort((state["ids"], state["tables"]))
    names = [name for name in state if name.partition(".")[0] not in ("header", "pending", "removed")]
    return {name: np.asarray(state[name])[order] for name in names}


def check_equal(group: TableGroup, reference: TableGroup) -> None:
    ours, theirs = by_key(group), by_key(reference)
    assert ours.keys() == theirs.keys()
    for name, column in theirs.items():
        np.testing.assert_array_equal(ours[name], column, err_msg=name)


@pytest.mark.parametrize(
    ("optimizer", "rows"),
    [
        *((name, "fp32") for name in OPTIMIZERS),
        ("adam", "bf16"),
        ("rowwise_adagrad", "fp16"),
        ("rowwise_adagrad", "int8"),
    ],
)
def test_training_gives_the_same_bits_as_in_memory(make_storage: MakeStorage, optimizer: str, rows: str) -> None:
    tables = tables_of(optimizer, rows, admission_count=2)
    group, reference = TableGroup(tables, seed=1, make_storage=make_storage), TableGroup(tables, seed=1)
    for ours, theirs in zip(train(group, steps=40, seed=0), train(reference, steps=40, seed=0), strict=True):
        np.testing.assert_array_equal(ours, theirs)
    check_equal(group, reference)
    fixed = slice(0, group.index.num_fixed)
    assert group.weights[fixed].equal(reference.weights[fixed])


def test_a_resumed_group_goes_on_with_the_same_bits(make_storage: MakeStorage) -> None:
    tables = tables_of(admission_count=2)
    reference = TableGroup(tables, seed=1)
    train(reference, steps=20, seed=0)
    state = reference.state_dict()
    group = TableGroup(tables, seed=1, make_storage=make_storage)
    group.load_state_dict(state)
    again = TableGroup(tables, seed=1, make_storage=make_storage)
    again.load_state_dict(group.state_dict())
    for each in (group, again, reference):
        train(each, steps=20, seed=5)
    check_equal(group, reference)
    check_equal(again, reference)


def test_memory_of_evicted_rows_is_released_and_the_others_keep_their_values(make_storage: MakeStorage) -> None:
    tables = [TableConfig(name="item", kind="collisionless", num_embeddings=16, embedding_dim=DIM)]
    groups = [TableGroup(tables, seed=1, make_storage=make_storage), TableGroup(tables, seed=1)]
    keys = Keys(np.zeros(12_000, np.int32), np.arange(12_000), np.ones(12_000, np.int32))
    gradients = np.random.default_rng(0).normal(size=(12_000, DIM)).astype(np.float32)
    for group in groups:
        group.update(keys, gradients)
        group.evict(keys.take(np.flatnonzero(keys.ids % 5)))
        group.update(keys.take(np.arange(0, 300)), gradients[:300])
    assert groups[0].index.num_free == 0, "expected rows to be moved together"
    check_equal(groups[0], groups[1])


def test_columns_of_no_rows_have_their_widths(make_storage: MakeStorage) -> None:
    groups = [TableGroup(tables_of(), seed=1, make_storage=make_storage), TableGroup(tables_of(), seed=1)]
    ours, theirs = (group.storage.columns(np.empty(0, np.int64)) for group in groups)
    assert {name: column.shape for name, column in ours.items()} == {name: c.shape for name, c in theirs.items()}
    assert all(len(column) == 0 for column in ours.values())


def test_changes_are_those_of_rows_in_memory(make_storage: MakeStorage) -> None:
    tables = tables_of()
    groups = [TableGroup(tables, seed=1, make_storage=make_storage), TableGroup(tables, seed=1)]
    blocks = []
    for group in groups:
        train(group, steps=5, seed=0)
        group.acknowledge("publisher", group.version)
        since = group.version
        train(group, steps=5, seed=1)
        blocks.append(list(group.changes(since)))
    for ours, theirs in zip(*blocks, strict=True):
        np.testing.assert_array_equal(ours.ids, theirs.ids)
        for name, column in theirs.columns.items():
            np.testing.assert_array_equal(ours.columns[name], column)
