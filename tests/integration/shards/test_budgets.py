"""A budget in shards: the numbers of one process, a cap that always holds, and checkpoints for any number of shards."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_tables import Serve

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.stores.local import LocalStore
from headrace.embeddings.stores.remote import RemoteStore
from headrace.embeddings.tables.lifecycle.importance import ImportanceConfig
from headrace.embeddings.tables.make_group import BudgetSpec, make_partitions
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.testing.row_copies import RowCopy

DIM = 4
BUDGET = 16 << 10
TABLES = [
    TableConfig(name=name, kind="collisionless", num_embeddings=400, embedding_dim=DIM, init_scale=0.1, evict_after=3)
    for name in ("user", "item")
]
SPEC = TableGroupSpec(TABLES, 3, BudgetSpec(BUDGET, ImportanceConfig(half_life_rows=2_000)))


def batch_of(step: int) -> tuple[Keys, np.ndarray]:
    """80 ids of each table, of which the frequent ones change over time."""
    random = np.random.default_rng(step)
    ids = [np.unique((600 * random.random(80) ** 3).astype(np.int64)) + 5 * step for _ in range(2)]
    keys = Keys(
        np.repeat(np.arange(2, dtype=np.int32), [len(each) for each in ids]),
        np.concatenate(ids),
        random.integers(1, 3, sum(map(len, ids))).astype(np.int32),
    )
    return keys, random.normal(size=(len(keys), DIM)).astype(np.float32)


def local(num_partitions: int) -> PartitionedTableGroup:
    assert SPEC.budget is not None
    plan = make_plan(TABLES, 1, num_partitions=num_partitions)
    return make_partitions(TABLES, SPEC.budget, plan, 0, seed=3, make_storage=HostStorage, rebalances=True)


def train(store: RemoteStore | LocalStore, steps: range) -> list[np.ndarray]:
    seen = []
    for step in steps:
        keys, gradients = batch_of(step)
        seen.append(store.read(keys).result())
        store.update(keys, gradients, num_rows=80)
    return seen


@pytest.mark.parametrize(("num_shards", "num_partitions"), [(1, 2), (2, 2), (2, 3)])
def test_shards_train_the_bits_of_one_process_with_as_many_partitions(
    serve: Serve, num_shards: int, num_partitions: int
) -> None:
    group = local(num_partitions)
    store = LocalStore(group)
    with ShardGroup([serve() for _ in range(num_shards)], {"t": SPEC}, partitions={"t": num_partitions}) as shards:
        remote = shards.store("t")
        for window in range(3):
            steps = range(25 * window, 25 * window + 25)
            for expected, found in zip(train(store, steps), train(remote, steps), strict=True):
                np.testing.assert_array_equal(found, expected)
            assert shards.end_window(steps[-1] + 1) == group.end_window()
            assert shards.rebalancings["t"] == group.rebalancing
        assert shards.rows_by_table() == group.rows_by_table()
        assert min(table.lost for table in group.rows_by_table().values()) > 100


def drifting(step: int) -> tuple[Keys, np.ndarray]:
    """Ids of partition 0 of 2 only, from step 20 on."""
    keys, gradients = batch_of(step)
    mine = make_plan(TABLES, 2).partitions_of(keys.tables, keys.ids) == 0
    places = np.flatnonzero(mine) if step >= 20 else np.arange(len(keys))
    return keys.take(places), gradients[places]


def test_rows_go_to_the_shard_that_needs_them_and_the_sum_never_exceeds_the_budget(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    served: list[PartitionedTableGroup] = []
    resize, make = PartitionedTableGroup.resize, Shard._make_group

    def keep(self: Shard, *arguments: Any) -> Any:
        group = make(self, *arguments)
        assert isinstance(group.rows, PartitionedTableGroup)
        served.append(group.rows)
        return group

    def resize_and_measure(self: PartitionedTableGroup, budgets: dict[int, int]) -> int:
        freed = resize(self, budgets)
        sizes.append(sum(group.num_bytes for group in served))
        return freed

    monkeypatch.setattr(Shard, "_make_group", keep)
    monkeypatch.setattr(PartitionedTableGroup, "resize", resize_and_measure)
    with ShardGroup([serve(), serve()], {"t": SPEC}) as shards:
        store = shards.store("t")
        for window in range(4):
            for step in range(20 * window, 20 * window + 20):
                store.update(*drifting(step), num_rows=80)
            assert shards.end_window(20 * window + 20) >= 0
            assert sum(shards.rebalancings["t"].budgets) == BUDGET
    assert max(sizes) <= BUDGET
    parts = {number: part for group in served for number, part in group.parts.items()}
    assert parts[0].plan.budget_bytes > 1.5 * parts[1].plan.budget_bytes
    assert "partition 0 has" in shards.rebalancings["t"].reason
    assert parts[0].retention.index.num_rows > 1.3 * parts[1].plan.num_rows, "and uses them"


@pytest.fixture
def saved(serve: Serve, tmp_path: Path) -> Iterator[Path]:
    """A checkpoint of two shards, after rows and budgets have moved, and what followed."""
    folder = tmp_path / "checkpoints"
    (folder / ".00000001.1.partial").mkdir(parents=True)
    with ShardGroup([serve(checkpoints=folder) for _ in range(2)], {"t": SPEC}) as shards:
        store = shards.store("t")
        store.acknowledge("copy", 0)
        for step in range(40):
            store.update(*drifting(step), num_rows=80)
            if step % 20 == 19:
                shards.end_window(step + 1)
        assert len(set(shards.rebalancings["t"].budgets)) == 2
        shards.save(".00000001.1.partial", 40)
        (folder / ".00000001.1.partial").rename(folder / "00000001")
        yield folder


def go_on(store: RemoteStore | LocalStore, folder: ShardGroup | PartitionedTableGroup) -> list[np.ndarray]:
    seen = train(store, range(40, 60))
    _ = folder.end_window(60) if isinstance(folder, ShardGroup) else folder.end_window()
    return [*seen, *train(store, range(60, 70))]


def saved_states(folder: Path) -> list[dict[str, Any]]:
    places = sorted((folder / "00000001" / "tables" / "t").iterdir())
    return [{path.stem: np.load(path) for path in place.glob("*.npy")} for place in places]


@pytest.mark.parametrize("num_shards", [1, 2])
def test_training_goes_on_with_the_same_bits_in_any_number_of_shards(
    serve: Serve, saved: Path, num_shards: int
) -> None:
    group = local(2)
    group.load_states(saved_states(saved))
    addresses = [serve(checkpoints=saved) for _ in range(num_shards)]
    with ShardGroup(addresses, {"t": SPEC}, step=40, checkpoint=1, partitions={"t": 2}) as shards:
        for found, expected in zip(go_on(shards.store("t"), shards), go_on(LocalStore(group), group), strict=True):
            np.testing.assert_array_equal(found, expected)
        assert sorted(_pairs(shards.store("t").changes(0))) == sorted(_pairs(group.changes(0)))


def test_with_more_partitions_rows_and_predictions_stay(serve: Serve, saved: Path) -> None:
    """Every id keeps its row; others read the shared row that they read before."""
    before, keys = local(2), batch_of(45)[0].unseen()
    before.load_states(saved_states(saved))
    expected = before.read(keys)
    with ShardGroup([serve(checkpoints=saved) for _ in range(4)], {"t": SPEC}, step=40, checkpoint=1) as shards:
        np.testing.assert_array_equal(shards.store("t").read(keys).result(), expected)
        assert sum(state.num_ids for state in shards.table_groups.values()) == before.num_ids
        train(shards.store("t"), range(40, 50))


def test_consumers_of_changes_see_who_lost_a_row(serve: Serve) -> None:
    """A copy that applies rows and tombstones has the rows that the shards have, also after budgets change."""
    copy, whole = RowCopy(), RowCopy()
    with ShardGroup([serve(), serve()], {"t": SPEC}) as shards:
        store = shards.store("t")
        store.acknowledge("copy", 0)
        for step in range(60):
            store.update(*drifting(step), num_rows=80)
            if step % 20 == 19:
                shards.end_window(step + 1)
            if step % 7 == 6 or step == 59:
                copy.apply(store.changes(copy.version))
                store.acknowledge("copy", copy.version)
        whole.apply(store.changes(0))
    assert len(whole.rows) > 200
    assert copy.bits("weights") == whole.bits("weights")


def _pairs(blocks: Any) -> list[tuple[tuple[int, int], bytes]]:
    return [
        ((table, key), row.tobytes())
        for block in blocks
        for table, key, row in zip(block.tables.tolist(), block.ids.tolist(), block.columns["weights"], strict=True)
    ]
