"""Tables under a budget train the same rows, bit for bit, whatever medium their rows are on."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import EmbeddingsConfig, Keys
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.make_group import make_table_group

DIM = 8
MEMORY = 60_000
STORAGES: dict[str, Callable[[Path], MakeStorage]] = {
    "mapped": MappedStorage.within,
    "tiered": lambda folder: TieredStorage.within(folder, MEMORY, segment_pages=4),
}


def group_of(make_storage: MakeStorage = HostStorage, *, policy: str = "importance") -> BudgetedTableGroup:
    retention: dict[str, Any] = {"kind": policy}
    if policy == "importance":
        retention |= {"half_life_rows": 4_000, "admission": 0, "shared_ratio": 0.02}
    config = EmbeddingsConfig.from_dict(
        {
            "budget": "300KiB",  # about 2,300 rows, of which 750 fit into the memory of tiered storage
            "retention": retention,
            "default": {
                "kind": "collisionless",
                "evict_after": 2,
                "num_embeddings": 4_000,
                "init_scale": 0.1,
                "optimizer": {"kind": "adagrad", "lr": 0.1},
            },
        },
        where="test",
    )
    tables = config.tables_of(["user", "item"], DIM)
    group = make_table_group(config, tables, seed=3, make_storage=make_storage)
    assert isinstance(group, BudgetedTableGroup)
    return group


def batch_of(step: int) -> Keys:
    """300 ids of each table; the frequent ones are others every 40 steps."""
    random = np.random.default_rng(step)
    ids = [np.unique((8_000 * random.random(300) ** 3).astype(np.int64)) + 1_500 * (step // 40) for _ in range(2)]
    tables = np.repeat(np.arange(2, dtype=np.int32), [len(each) for each in ids])
    return Keys(tables, np.concatenate(ids), random.integers(1, 3, len(tables)).astype(np.int32))


def train(group: BudgetedTableGroup, steps: range, *, ahead: int = 3) -> list[np.ndarray]:
    """Steps with announcements, a window end every 30 steps and an eviction every 7; returns what was read."""
    seen = []
    for step in steps:
        for n in range(ahead + 1):
            group.announce(batch_of(step + n), ahead=n)
        keys = batch_of(step)
        seen.append(group.read(keys).copy())
        random = np.random.default_rng(step)
        group.update(keys, random.normal(size=(len(keys), DIM)).astype(np.float32), num_rows=300)
        if step % 7 == 6:
            group.evict(keys.take(np.arange(0, len(keys), 5)))
        if step % 30 == 29:
            group.end_window()
    return seen


def assert_same(state: dict[str, Any], other: dict[str, Any]) -> None:
    """The same rows, which may be in another order."""
    assert state.keys() == other.keys()
    orders = [np.argsort(each["rows"]) for each in (state, other)]
    for name in state:
        columns = [
            each[name][order] if len(each[name]) == len(order) and not name.startswith("retention") else each[name]
            for each, order in zip((state, other), orders, strict=True)
        ]
        np.testing.assert_array_equal(*columns, err_msg=name)


@pytest.mark.parametrize("policy", ["importance", "cafe"])
@pytest.mark.parametrize("kind", sorted(STORAGES))
def test_parameters_are_those_of_memory(tmp_path: Path, kind: str, policy: str) -> None:
    memory, files = group_of(policy=policy), group_of(STORAGES[kind](tmp_path), policy=policy)
    for expected, found in zip(train(memory, range(100)), train(files, range(100)), strict=True):
        np.testing.assert_array_equal(found, expected)
    assert_same(files.state_dict(), memory.state_dict())
    assert min(memory.lost) > 100, "expected rows that move to other ids"
    assert files.num_bytes == memory.num_bytes <= 300 << 10
    if isinstance(files.storage, TieredStorage):
        assert files.storage.counters.num_read_rows > 1_000, "expected rows that come back from the file"


@pytest.mark.parametrize("kind", sorted(STORAGES))
def test_training_resumes_bit_for_bit_from_files(tmp_path: Path, kind: str) -> None:
    once, again = group_of(), group_of(STORAGES[kind](tmp_path))
    train(again, range(45))
    saved = again.state_dict()
    again = group_of(STORAGES[kind](tmp_path))
    again.load_state_dict(saved)
    train(again, range(45, 80))
    train(once, range(80))
    assert_same(again.state_dict(), once.state_dict())


def test_the_places_of_rows_that_move_are_used_again(tmp_path: Path) -> None:
    group = group_of(STORAGES["tiered"](tmp_path))
    train(group, range(60))
    storage = group.storage
    assert isinstance(storage, TieredStorage)
    most = storage._file.num_used_segments
    train(group, range(60, 240))
    assert group.lost.sum() > 5_000
    assert storage._file.num_used_segments <= most + 4
    live = np.count_nonzero(storage._where < -1)
    assert storage._file.num_live == live, "records of rows that moved are dead"
    group.evict(
        Keys(*group.index.owners(group.retention.index.rows()), np.zeros(group.retention.index.num_rows, np.int32))
    )
    assert storage._file.num_live <= group.shared.num_rows


def test_rows_announced_before_they_move_do_not_arrive_later(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A row that is read ahead and meanwhile goes to another id keeps what that id starts from."""
    group = group_of(STORAGES["tiered"](tmp_path))
    train(group, range(60))
    storage = group.storage
    assert isinstance(storage, TieredStorage)
    rows = np.flatnonzero(storage._where < -1)[:10].astype(np.int64)
    tables, ids = group.index.owners(rows)
    monkeypatch.setattr(storage, "_finish_fetches", _only_if_waiting(storage._finish_fetches))  # the disk is slow
    keys = Keys(tables, ids, np.zeros(len(ids), np.int32))
    assert storage.announce(rows, ahead=3)
    storage.initialize(rows, keys)
    fresh = group_of()
    fresh.storage.initialize(rows, keys)
    np.testing.assert_array_equal(storage.gather(rows, keys), fresh.storage.gather(rows, keys))


def _only_if_waiting(finish: Callable[..., None]) -> Callable[..., None]:
    return lambda *, wait=False: finish(wait=True) if wait else None
