"""Ids are forgotten at any step, in the order of steps: in shards as in one process, by one trainer or several."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from served_tables import GROUPS, TABLES, Serve, all_keys, batch, read

from headrace.embeddings import Keys, LocalStore, TableGroup
from headrace.embeddings.shards.group import GroupOptions, ShardGroup
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.wire import EvictHeader, pack_ids
from headrace.embeddings.stores.remote import StoreOptions
from headrace.errors import ShardError
from headrace.testing.row_copies import RowCopy


def chosen(rng: np.random.Generator, num_keys: int = 20) -> Keys:
    """Keys to be forgotten; some were never seen."""
    return batch(rng, num_keys)[0].unseen()


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("plan", ["row_wise", "table_wise"])
def test_evictions_between_steps_give_the_bits_of_one_process(serve: Serve, num_shards: int, plan: Any) -> None:
    local, rng = LocalStore(TableGroup(TABLES, seed=3)), np.random.default_rng(0)
    copies = RowCopy(), RowCopy()
    with ShardGroup([serve() for _ in range(num_shards)], GROUPS, options=GroupOptions(plan=plan)) as group:
        store = group.store("t")
        store.acknowledge("copy", 0)
        local.acknowledge("copy", 0)
        for step in range(8):
            keys, gradients = batch(rng)
            assert (read(store, keys) == read(local, keys)).all()
            store.update(keys, gradients)
            local.update(keys, gradients)
            if step % 3:
                gone = chosen(rng)
                evicting = store.evict(gone)  # the next read finds them forgotten, waited for or not
                freed = local.evict(gone).result()
                assert (read(store, gone) == read(local, gone)).all()
                assert (read(store, all_keys()) == read(local, all_keys())).all()
                assert evicting.result() == freed > 0
            for copy, each in zip(copies, (store, local), strict=True):
                copy.apply(each.changes(copy.version))
            assert copies[0].version == copies[1].version
            store.acknowledge("copy", copies[0].version)
            assert copies[0].bits("weights", "slot.accumulator") == copies[1].bits("weights", "slot.accumulator")
        assert copies[0].num_tombstones == copies[1].num_tombstones > 10


def test_what_several_trainers_evict_is_forgotten_by_all_at_the_same_step(serve: Serve) -> None:
    local, rng = LocalStore(TableGroup(TABLES, seed=3)), np.random.default_rng(1)
    addresses = [serve(), serve()]
    keys, gradients = batch(rng, num_keys=80)
    gone = [[chosen(rng) for _ in range(2)] for _ in range(4)]
    gone[2][0] = gone[2][0].take(np.zeros(0, np.int64))  # who has nothing to forget says so
    found: list[list[npt.NDArray[np.float32]]] = [[], []]
    freed: list[list[int]] = [[], []]

    def train(trainer: int) -> None:
        with ShardGroup(addresses, GROUPS, trainer=trainer, num_trainers=2, session="s") as group:
            store = group.store("t")
            for parts in gone:
                store.update(keys, gradients)
                evicting = store.evict(parts[trainer])
                found[trainer].append(read(store, all_keys()))
                freed[trainer].append(evicting.result())

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    assert freed[0] == freed[1]
    for number, parts in enumerate(gone):
        local.update(keys, gradients)
        pairs = sorted({pair for part in parts for pair in zip(part.tables.tolist(), part.ids.tolist(), strict=True)})
        tables, ids = np.array(pairs).T
        both = Keys(tables.astype(np.int32), ids.astype(np.int64), np.zeros(len(ids), np.int32))
        assert local.evict(both).result() == freed[0][number]
        for trainer in range(2):
            np.testing.assert_allclose(found[trainer][number], read(local, all_keys()), rtol=1e-6, atol=1e-7)
        assert (found[0][number] == found[1][number]).all()


def test_an_eviction_waits_for_the_other_trainers_and_names_who_is_missing(serve: Serve) -> None:
    address = serve(hold_s=0.2)
    with (
        ShardGroup([address], GROUPS, trainer=0, num_trainers=2, session="s") as one,
        ShardGroup([address], GROUPS, trainer=1, num_trainers=2, session="s"),
        pytest.raises(
            ShardError, match=r"eviction 1 of trainer 0 waited 0.2 s for eviction 1, missing from trainers: 1"
        ),
    ):
        one.store("t").evict(chosen(np.random.default_rng(0))).result()


def test_asynchronous_trainers_evict_for_themselves(serve: Serve) -> None:
    address, rng = serve(), np.random.default_rng(0)
    options = GroupOptions(store=StoreOptions(staleness=None))
    with ShardGroup([address], GROUPS, trainer=0, num_trainers=2, session="s", options=options) as group:
        store = group.store("t")
        keys, gradients = batch(rng)
        first = read(store, keys)
        store.update(keys, gradients)
        assert store.evict(keys.unseen()).result() > 0
        assert (read(store, keys) == first).all()


def test_a_repeated_request_evicts_once(serve: Serve) -> None:
    with ShardGroup([serve()], GROUPS) as group:
        store = group.store("t")
        keys, gradients = batch(np.random.default_rng(0))
        store.update(keys, gradients).result()
        freed = store.evict(keys).result()
        store.update(keys, gradients).result()
        before = read(store, all_keys())
        request, header = pack_ids(keys, with_counts=False), EvictHeader(1, 1, store._keys_per_table(keys))
        _, reply = group._clients[0].ask(store._evict_header, request.schema, request, header.to_json())
        assert reply.freed == freed > 0
        assert (read(store, all_keys()) == before).all()


def test_a_checkpoint_and_the_end_of_a_window_come_after_what_was_handed_in_to_be_evicted(tmp_path: Path) -> None:
    (tmp_path / ".00000001.0.partial").mkdir()
    with (
        ShardServer(Shard(checkpoints=tmp_path), "127.0.0.1:0") as server,
        ShardGroup([f"127.0.0.1:{server.port}"], GROUPS) as group,
    ):
        store, (keys, gradients) = group.store("t"), batch(np.random.default_rng(0))
        store.update(keys, gradients)
        store.evict(keys)
        group.save(".00000001.0.partial", step=1)
        evicting = store.evict(keys)
        group.end_window(1)
        assert evicting.done()
    part = tmp_path / ".00000001.0.partial/tables/t/shard-0000-of-0001"
    assert len(np.load(part / "ids.npy")) == 0


@pytest.mark.parametrize(
    ("header", "places", "message"),
    [
        (EvictHeader(1, 1, [2, 0, 0]), [50, 1], "table hashed: id 50, expected 0 <= id < 50"),
        (EvictHeader(1, 1, [0, 2, 0]), [7, 7], "id: 7 occurs twice in table exact, expected no duplicates"),
        (
            EvictHeader(1, 1, [2, 0]),
            [1, 2],
            "keys_per_table: 2 tables with 2 keys in all, expected 3 tables and 2 keys",
        ),
        (EvictHeader(1, 2, [2, 0, 0]), [1, 2], "trainer 0: given eviction 2, expected eviction 1"),
        (EvictHeader(0, 1, [2, 0, 0]), [1, 2], "eviction 1 of trainer 0 of step 0, but step 1 is applied"),
        (EvictHeader(1, 1, [0, 1001, 0]), list(range(1001)), "request: 1001 keys, expected at most 1000"),
    ],
)
def test_an_eviction_that_does_not_fit_is_refused_and_changes_nothing(
    serve: Serve, header: EvictHeader, places: list[int], message: str
) -> None:
    with ShardGroup([serve(max_keys=1000)], GROUPS) as group:
        store, (keys, gradients) = group.store("t"), batch(np.random.default_rng(0))
        store.update(keys, gradients).result()
        before = read(store, all_keys())
        ids = np.array(places, dtype=np.int64)
        request = pack_ids(Keys(np.zeros(len(ids), np.int32), ids, np.zeros(len(ids), np.int32)), with_counts=False)
        with pytest.raises(ShardError, match=message):
            group._clients[0].ask(store._evict_header, request.schema, request, header.to_json())
        assert (read(store, all_keys()) == before).all()
        assert store.evict(keys).result() > 0, "it goes on"
