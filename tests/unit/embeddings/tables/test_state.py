"""A saved table group, loaded, is the same group: bit for bit now, and after more training."""

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from headrace.embeddings import AdamConfig, Keys, RowWiseAdagradConfig, SGDConfig, TableConfig, TableGroup
from headrace.embeddings.optimizers import AdagradConfig
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, VersionMismatch

OPTIMIZERS = [SGDConfig(), AdagradConfig(), RowWiseAdagradConfig(initial_accumulator=0.1), AdamConfig()]


def tables(optimizer: Any = OPTIMIZERS[2], dim: int = 4, **item: Any) -> list[TableConfig]:
    common = {"embedding_dim": dim, "optimizer": optimizer}
    options = {"kind": "collisionless", "num_embeddings": 2, "admission_count": 2, "evict_after": 2} | item
    return [
        TableConfig(name="country", kind="direct", num_embeddings=40, **common),
        TableConfig(name="item", **options, **common),
        TableConfig(name="user", kind="hashed", num_embeddings=30, **common),
    ]


def train(t: TableGroup, steps: range) -> None:
    """Steps that differ from each other and depend on nothing else; a window ends after each seventh."""
    for step in steps:
        rng = np.random.default_rng(step)
        ids = [rng.permutation(n)[:10] + lift for n, lift in ((40, 0), (60, 10 * step), (30, 0))]
        batch = Keys(
            np.repeat(np.arange(3, dtype=np.int32), 10),
            np.concatenate(ids).astype(np.int64),
            rng.integers(1, 3, 30).astype(np.int32),
        )
        t.update(batch, rng.normal(size=(30, t.embedding_dim)).astype(np.float32))
        if step % 7 == 6:
            t.end_window()


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert one[name].dtype == other[name].dtype
        np.testing.assert_array_equal(one[name], other[name], err_msg=name)


@pytest.mark.parametrize("optimizer", OPTIMIZERS, ids=lambda config: config.kind)
def test_training_goes_on_bit_for_bit_the_same_after_a_round_trip(optimizer: Any) -> None:
    saved = TableGroup(tables(optimizer), seed=3)
    train(saved, range(25))
    state = {
        name: np.frombuffer(column.tobytes(), column.dtype).reshape(column.shape)
        for name, column in saved.state_dict().items()
    }
    loaded = TableGroup(tables(optimizer), seed=3)
    train(loaded, range(100, 104))  # what it held before is gone
    loaded.load_state_dict(state)
    assert_same(saved.state_dict(), loaded.state_dict())
    assert loaded.num_rows == saved.num_rows
    for t in (saved, loaded):
        train(t, range(25, 50))
    assert len(saved.state_dict()["pending.ids"]) > 0
    assert_same(saved.state_dict(), loaded.state_dict())


def test_only_rows_that_differ_from_a_new_table_are_saved() -> None:
    t = TableGroup(tables(admission_count=1), seed=3)
    assert len(t.state_dict()["rows"]) == 0
    train(t, range(1))
    state = t.state_dict()
    assert np.bincount(state["tables"]).tolist() == [10, 10, 10]
    np.testing.assert_array_equal(state["weights"], t.storage.weights[state["rows"]])
    untouched = TableGroup(tables(admission_count=1), seed=3)
    untouched.load_state_dict(state)
    assert torch.equal(untouched.weights[:71], t.weights[:71])


def test_a_state_does_not_change_with_the_table() -> None:
    t = TableGroup(tables(), seed=3)
    train(t, range(3))
    state = t.state_dict()
    before = {name: column.copy() for name, column in state.items()}
    train(t, range(3, 6))
    assert_same(state, before)


def test_learning_rates_may_change_between_jobs() -> None:
    t = TableGroup(tables(), seed=3)
    train(t, range(3))
    other = TableGroup(tables(RowWiseAdagradConfig(lr=0.5), evict_after=None, admission_count=5), seed=3)
    saved = t.state_dict()
    other.load_state_dict(saved)
    loaded = other.state_dict()
    assert TableGroupHeader.read(loaded) == replace(TableGroupHeader.read(saved), admission_counts=[1, 5, 1])
    assert_same({**loaded, "header": saved["header"]}, saved)


@pytest.mark.parametrize(
    ("other", "text"),
    [
        (TableGroup(tables(dim=8), seed=3), "embedding_dim was saved as 4, but the job says 8"),
        (TableGroup(tables(), seed=4), "seed was saved as 3, but the job says 4"),
        (
            TableGroup(tables()[1:2], seed=3),
            r"tables was saved as \['country', 'item', 'user'\], but the job says \['item'\]",
        ),
        (TableGroup(tables(num_embeddings=3), seed=3), "item.num_embeddings was saved as 2, but the job says 3"),
        (
            TableGroup(tables(SGDConfig()), seed=3),
            "country.optimizer was saved as rowwise_adagrad, but the job says sgd",
        ),
        (
            TableGroup(tables(RowWiseAdagradConfig(reduction="sum")), seed=3),
            "country.reduction was saved as mean, but the job says sum",
        ),
    ],
)
def test_a_state_of_another_table_is_refused_with_both_sides(other: TableGroup, text: str) -> None:
    state = TableGroup(tables(), seed=3).state_dict()
    with pytest.raises(CheckpointError, match=f"^table group: {text}"):
        other.load_state_dict(state)


def test_a_state_without_a_reduction_is_one_of_means() -> None:
    saved, loaded = TableGroup(tables(), seed=3), TableGroup(tables(), seed=3)
    train(saved, range(25))
    state = saved.state_dict()
    header = json.loads(state["header"].tobytes())
    for table in header["tables"]:
        del table["reduction"]
    loaded.load_state_dict(state | {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)})
    assert_same(loaded.state_dict(), saved.state_dict())


def test_a_state_of_format_2_which_calls_tables_spaces_is_read() -> None:
    saved, loaded = TableGroup(tables(), seed=3), TableGroup(tables(), seed=3)
    saved.acknowledge("replica", 0)
    train(saved, range(25))
    state = saved.state_dict()
    header = json.loads(state["header"].tobytes())
    header |= {"spaces": header.pop("tables"), "format_version": 2}
    earlier = {name.replace("tables", "spaces"): column for name, column in state.items()}
    earlier["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    assert {"spaces", "pending.spaces", "removed.spaces"} <= earlier.keys()
    loaded.load_state_dict(earlier)
    assert_same(loaded.state_dict(), state)


def test_a_state_of_another_format_is_refused_with_both_versions() -> None:
    t = TableGroup(tables(), seed=3)
    state = t.state_dict()
    header = json.loads(state["header"].tobytes()) | {"format_version": 9}
    state["header"] = np.frombuffer(json.dumps(header).encode(), dtype=np.uint8)
    with pytest.raises(VersionMismatch, match=r"^table group: saved in format 9, expected 3 or 2$"):
        t.load_state_dict(state)
