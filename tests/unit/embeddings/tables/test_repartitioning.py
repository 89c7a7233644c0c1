"""Saved partitions in other partitions: who keeps rows, importance and shared rows."""

from typing import Any

import numpy as np
import pytest

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.tables.lifecycle.cafe import CafeConfig
from headrace.embeddings.tables.lifecycle.importance import ImportanceConfig, ImportanceRetention
from headrace.embeddings.tables.make_group import BudgetSpec, make_partitions
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.errors import CheckpointError

DIM = 4
TABLES = [
    TableConfig(name=name, kind="collisionless", num_embeddings=400, embedding_dim=DIM, init_scale=0.1)
    for name in ("user", "item")
]


def group_of(num_partitions: int, policy: Any = None) -> PartitionedTableGroup:
    budget = BudgetSpec(24 << 10, policy or ImportanceConfig(half_life_rows=2_000, admission=0))
    plan = make_plan(TABLES, 1, num_partitions=num_partitions)
    return make_partitions(TABLES, budget, plan, 0, seed=3, make_storage=HostStorage, rebalances=True)


def train(group: PartitionedTableGroup, steps: range, *, partition: int | None = None) -> None:
    """Steps on random ids, of one of two partitions if asked for."""
    plan = make_plan(TABLES, 1, num_partitions=2)
    for step in steps:
        random = np.random.default_rng(step)
        ids = [np.unique((900 * random.random(80) ** 2).astype(np.int64)) for _ in range(2)]
        tables = np.repeat(np.arange(2, dtype=np.int32), [len(each) for each in ids])
        keys = Keys(tables, np.concatenate(ids), np.ones(len(tables), np.int32))
        if partition is not None:
            keys = keys.take(np.flatnonzero(plan.partitions_of(keys.tables, keys.ids) == partition))
        group.update(keys, random.normal(size=(len(keys), DIM)).astype(np.float32), num_rows=80)


def importance_by_id(group: PartitionedTableGroup) -> dict[tuple[int, int], float]:
    found = {}
    for part in group.parts.values():
        retention = part.retention
        assert isinstance(retention, ImportanceRetention)
        rows = retention.index.rows()
        values = retention.importance[rows - 1 - part.shared.num_rows] / retention.growth
        pairs = zip(*(each.tolist() for each in retention.index.owners(rows)), strict=True)
        found |= dict(zip(pairs, values.tolist(), strict=True))
    return found


@pytest.mark.parametrize("count", [1, 3, 4])
def test_the_most_important_ids_keep_row_and_importance(count: int) -> None:
    before, after = group_of(2), group_of(count)
    for first in range(0, 60, 20):
        train(before, range(first, first + 20), partition=0)
        before.end_window()
    after.load_states(list(before.part_states().values()))
    was, now = importance_by_id(before), importance_by_id(after)
    assert all(now[pair] == was[pair] for pair in now)
    pairs = np.array(list(was), dtype=np.int64)
    owners = after.plan.partitions_of(pairs[:, 0].astype(np.int32), pairs[:, 1].copy())
    for number, part in after.parts.items():
        mine = {tuple(pair) for pair in pairs[owners == number].tolist()}
        kept = mine & now.keys()
        assert len(kept) == min(len(mine), part.plan.num_rows)
        assert min([now[pair] for pair in kept], default=1) >= max([was[pair] for pair in mine - kept], default=0)
    keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].copy(), np.zeros(len(pairs), np.int32))
    held = np.array([tuple(pair) in now for pair in pairs.tolist()])
    np.testing.assert_array_equal(after.read(keys)[held], before.read(keys)[held])
    assert after.num_bytes <= after.total_bytes
    train(after, range(60, 70))
    assert (after.step, after.version) == (before.step + 10, before.version + 11)


def test_shared_rows_continue_from_the_one_with_most_occurrences() -> None:
    before, after = group_of(2), group_of(1)
    train(before, range(10))
    train(before, range(10, 30), partition=1)
    after.load_states(list(before.part_states().values()))
    for table in range(2):
        unknown = Keys(np.full(500, table, np.int32), np.arange(10**6, 10**6 + 500), np.zeros(500, np.int32))
        owners = before.plan.partitions_of(unknown.tables, unknown.ids)
        expected = before.read(unknown)[owners == 1][0]
        np.testing.assert_array_equal(after.read(unknown), np.tile(expected, (500, 1)))


def test_a_policy_whose_ids_cannot_move_says_how_many_partitions_to_ask_for() -> None:
    before = group_of(2, CafeConfig())
    train(before, range(3))
    states = list(before.part_states().values())
    again = group_of(2, CafeConfig())
    again.load_states(states)
    assert again.step == 3
    text = "was saved in 2 partitions, expected 3; ids cannot move under policy cafe, so set embeddings.partitions: 2"
    with pytest.raises(CheckpointError, match=text):
        group_of(3, CafeConfig()).load_states(states)
    with pytest.raises(CheckpointError, match="found 1 partitions, expected 2"):
        group_of(2, CafeConfig()).load_states(states[:1])
