"""Rows come and go at any step: evicted ids begin anew, consumers are told, memory is given back, shards agree."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import AdagradConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.table_group import TableGroupSpec, load_part, make_part, parts_of
from headrace.embeddings.storage.device import DeviceStorage
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.tables.lifecycle import IdHistory
from headrace.embeddings.tables.parts import join_parts

OPTIMIZER = AdagradConfig(lr=0.3, initial_accumulator=0.5)
DIM = 4
STORAGES = pytest.mark.parametrize("make_storage", [HostStorage, DeviceStorage.on("cpu")], ids=["host", "device"])


def tables_of(admission_count: int = 1, **options: Any) -> list[TableConfig]:
    common = {"embedding_dim": DIM, "optimizer": OPTIMIZER, "rows": options.pop("rows", "fp32")}
    items = {"kind": "collisionless", "num_embeddings": 4, "admission_count": admission_count, **options}
    return [
        TableConfig(name="items", **items, init_scale=0.5, **common),
        TableConfig(name="users", kind="hashed", num_embeddings=30, **common),
    ]


def keys_of(*pairs: tuple[int, int]) -> Keys:
    tables, ids = zip(*sorted(pairs), strict=True)
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))


def batch_of(step: int) -> tuple[Keys, np.ndarray]:
    rng = np.random.default_rng(step)
    keys = keys_of(*{(int(table), int(key)) for table, key in rng.integers(0, [2, 30], (20, 2))})
    return keys, rng.normal(size=(len(keys), DIM)).astype(np.float32)


def evicted_at(step: int) -> Keys:
    return keys_of(*{(table, (7 * step + n) % 30) for table in (0, 1) for n in range(9)})


def rows_of(state: dict[str, np.ndarray]) -> dict[tuple[int, int], dict[str, Any]]:
    """A saved group as (table, id) -> weights, optimizer state and metadata, wherever rows lie."""
    pairs = zip(state["tables"].tolist(), state["ids"].tolist(), strict=True)
    names = [name for name in state if name in ("weights", "version", "frequency") or name.startswith("slot.")]
    return {pair: {name: state[name][place].tolist() for name in names} for place, pair in enumerate(pairs)}


@STORAGES
def test_an_id_evicted_in_mid_run_begins_anew_from_its_first_values_and_fresh_state(make_storage: Any) -> None:
    group, new = (TableGroup(tables_of(), seed=3, make_storage=make_storage) for _ in range(2))
    keys, gradients = keys_of((0, 5), (0, 6), (1, 2), (1, 3)), np.ones((4, DIM), np.float32)
    for _ in range(3):
        group.update(keys, gradients)
    kept = rows_of(group.state_dict())
    assert group.evict(keys_of((0, 5), (0, 99), (1, 2), (1, 29))) == 2
    assert rows_of(group.state_dict()) == {pair: kept[pair] for pair in ((0, 6), (1, 3))}
    first, now = np.asarray(new.read(keys)), np.asarray(group.read(keys))
    np.testing.assert_array_equal(now[[0, 2]], first[[0, 2]])
    assert not np.asarray(group.read(keys.unseen()))[0].any(), "it has no row until it is trained on"
    group.update(keys, gradients)
    new.update(keys, gradients)
    trained, expected = rows_of(group.state_dict()), rows_of(new.state_dict())
    for pair in ((0, 5), (1, 2)):
        assert trained[pair] == expected[pair] | {"version": group.version}


def test_eviction_forgets_the_sightings_of_ids_that_are_not_admitted_yet() -> None:
    group = TableGroup(tables_of(admission_count=2), seed=3)
    key, gradient = keys_of((0, 5)), np.ones((1, DIM), np.float32)
    group.update(key, gradient)
    assert group.evict(key) == 0
    group.update(key, gradient)
    assert group.num_rows == 30
    group.update(key, gradient)
    assert group.num_rows == 31


def test_consumers_are_told_of_evictions_at_any_step() -> None:
    group = TableGroup(tables_of(), seed=3)
    group.acknowledge("replica", 0)
    since, copy = 0, {}
    for step in range(30):
        group.update(*batch_of(step))
        if step % 3 == 1:
            group.evict(evicted_at(step))
        if step % 5 == 4:
            for block in group.changes(since):
                if block.is_tombstones:
                    for pair in zip(block.tables.tolist(), block.ids.tolist(), strict=True):
                        copy.pop(pair, None)
                else:
                    copy |= rows_of({"tables": block.tables, "ids": block.ids, **block.columns})
            since = group.version
            group.acknowledge("replica", since)
            assert copy == rows_of(group.state_dict())


@pytest.mark.parametrize("rows", ["fp32", "bf16", "int8"])
@pytest.mark.parametrize("num_shards", [1, 3])
def test_evictions_in_mid_run_give_the_same_bits_in_shards_and_after_a_checkpoint(num_shards: int, rows: str) -> None:
    spec = TableGroupSpec(tables_of(admission_count=2, evict_after=1, rows=rows), seed=3)
    plan = make_plan(spec.tables, num_shards)
    alone, shards = TableGroup(spec.tables, seed=3), [make_part(spec, plan, n) for n in range(num_shards)]
    for step in range(24):
        keys, gradients = batch_of(step)
        alone.update(keys, gradients)
        for shard, places in zip(shards, parts(plan, keys), strict=True):
            shard.update(keys.take(places), gradients[places])
        if step % 4 == 2:
            gone = evicted_at(step)
            freed = [shard.evict(gone.take(at)) for shard, at in zip(shards, parts(plan, gone), strict=True)]
            assert alone.evict(gone) == sum(freed) > 0
        if step % 8 == 7:
            assert alone.end_window() == sum(shard.end_window() for shard in shards)
        if step == 13:
            saved = [parts_of(shard, spec)[0] for shard in shards]
            shards = [make_part(spec, plan, n) for n in range(num_shards)]
            for number, shard in enumerate(shards):
                load_part(shard, saved, spec, plan, number)
            loaded = TableGroup(spec.tables, seed=3)
            loaded.load_state_dict(alone.state_dict())
            alone = loaded
    assert rows_of(join_parts([parts_of(shard, spec)[0] for shard in shards])) == rows_of(alone.state_dict())


def parts(plan: Any, keys: Keys) -> list[np.ndarray]:
    routes = plan.route(keys)
    return [routes.of(shard) for shard in range(plan.num_shards)]


@STORAGES
def test_a_table_that_lost_most_ids_gives_memory_back_and_goes_on_as_if_it_had_not(make_storage: Any) -> None:
    ids = [(0, key) for key in range(12_000)]
    group, plain = (TableGroup(tables_of(), seed=3, make_storage=make_storage) for _ in range(2))
    gradients = np.random.default_rng(0).normal(size=(len(ids), DIM)).astype(np.float32)
    kept = np.arange(0, len(ids), 1000)
    group.update(keys_of(*ids), gradients)
    plain.update(keys_of(*ids).take(kept), gradients[kept])
    before = group.num_bytes
    group.acknowledge("replica", group.version)
    group.update(keys_of((0, 1000), (0, 7)), gradients[:2])
    plain.update(keys_of((0, 1000)), gradients[1:2])
    since = group.version - 1
    assert group.evict(keys_of(*(pair for pair in ids if pair[1] % 1000))) == len(ids) - len(kept)
    assert group.num_bytes < before / 4
    assert group.num_rows == plain.num_rows
    blocks = list(group.changes(since))
    assert [block.is_tombstones for block in blocks] == [True, False]
    assert blocks[1].ids.tolist() == [1000], "the log follows rows that have moved"
    for each in (group, plain):
        each.update(keys_of((0, 2000), (0, 99_999)), gradients[:2])
    mine, theirs = rows_of(group.state_dict()), rows_of(plain.state_dict())
    without_version = [{pair: row | {"version": 0} for pair, row in rows.items()} for rows in (mine, theirs)]
    assert without_version[0] == without_version[1]


def test_a_retention_policy_of_another_kind_is_a_class_with_one_method() -> None:
    class Rare:
        num_windows = 0

        def expired(self, history: IdHistory, window_starts: Sequence[int]) -> np.ndarray:
            return history.sightings < 2

    group = TableGroup(tables_of(), seed=3)
    group._retention = [Rare()]
    gradients = np.ones((2, DIM), np.float32)
    group.update(keys_of((0, 1), (0, 2)), gradients)
    group.update(keys_of((0, 2), (0, 3)), gradients)
    assert group.end_window() == 2
    assert list(rows_of(group.state_dict())) == [(0, 2)]
