"""Tables in shards give the numbers of a table in one process: steps, staleness, precision, several trainers."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import numpy.typing as npt
import pytest
from served_tables import DIRECT, EXACT, GROUPS, HASHED, TABLES, Serve, all_keys, batch, read

from headrace.embeddings import AdamConfig, Keys, LocalStore, TableConfig, TableGroup
from headrace.embeddings.shards.group import GroupOptions, ShardGroup
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.stores.remote import StoreOptions
from headrace.errors import ShardError
from headrace.testing.row_copies import RowCopy


@pytest.mark.parametrize("num_shards", [1, 3])
@pytest.mark.parametrize("plan", ["row_wise", "table_wise"])
def test_one_trainer_gets_the_same_bits_as_a_table_in_its_process(serve: Serve, num_shards: int, plan: str) -> None:
    local = LocalStore(TableGroup(TABLES, seed=3))
    rng = np.random.default_rng(0)
    options = GroupOptions(plan=plan)  # type: ignore[arg-type]
    with ShardGroup([serve() for _ in range(num_shards)], GROUPS, options=options) as group:
        store = group.store("t")
        for _ in range(6):
            keys, gradients = batch(rng)
            assert (read(store, keys) == read(local, keys)).all(), "before it is trained"
            assert (read(store, keys.unseen()) == read(local, keys.unseen())).all()
            updated = store.update(keys, gradients)  # the next read sees it, waited for or not
            local.update(keys, gradients)
        assert (read(store, all_keys()) == read(local, all_keys())).all()
        updated.result()
        assert store.counters().updates == 6
        assert store.keys_by_table().sum() == store.counters().keys
        assert sum(status["table_groups"]["t"]["rows"] for status in group.status()) > 0


def test_optimizers_that_count_steps_count_them_in_shards_without_keys_too(serve: Serve) -> None:
    tables = [TableConfig(name="a", num_embeddings=40, embedding_dim=4, optimizer=AdamConfig(lr=0.1))]
    local = LocalStore(TableGroup(tables, seed=3))
    one = Keys(np.zeros(1, np.int32), np.array([5]), np.ones(1, np.int32))
    every = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    with ShardGroup([serve() for _ in range(4)], {"t": TableGroupSpec(tables, 3)}) as group:
        store = group.store("t")
        for keys in (one, one, every):
            gradients = np.ones((len(keys), 4), np.float32)
            for each in (store, local):
                each.update(keys, gradients).result()
        assert (read(store, every) == read(local, every)).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_several_trainers_equal_one_process_on_the_same_global_batches(serve: Serve, reduction: str) -> None:
    settings = {"reduction": reduction, "initial_accumulator": 1.0}  # from 0, Adagrad depends on no scale of gradients
    tables = [table.model_copy(update={"optimizer": table.optimizer.model_copy(update=settings)}) for table in TABLES]
    groups, local = {"t": TableGroupSpec(tables, 3)}, LocalStore(TableGroup(tables, seed=3))
    addresses = [serve(), serve()]
    rows = (5, 3)
    rng = np.random.default_rng(1)
    steps = [[batch(rng) for _ in range(2)] for _ in range(8)]
    found: list[list[npt.NDArray[np.float32]]] = [[], []]

    def train(trainer: int) -> None:
        with ShardGroup(addresses, groups, trainer=trainer, num_trainers=2, session="s") as group:
            store = group.store("t")
            for step in steps:
                keys, gradients = step[trainer]
                found[trainer].append(read(store, keys))
                if trainer == 1:
                    time.sleep(0.005)
                store.update(keys, gradients, num_rows=rows[trainer])
            found[trainer].append(read(store, all_keys()))

    with ThreadPoolExecutor(2) as pool:
        list(pool.map(train, range(2)))
    for number, step in enumerate(steps):
        total: dict[tuple[int, int], npt.NDArray[np.float64]] = {}
        for trainer, (keys, gradients) in enumerate(step):
            expected = read(local, keys)
            np.testing.assert_allclose(found[trainer][number], expected, rtol=1e-6, atol=1e-7)
            for pair, gradient in zip(zip(keys.tables, keys.ids, strict=True), gradients, strict=True):
                total[pair] = total.get(pair, np.zeros(4)) + gradient * rows[trainer] / sum(rows)
        pairs = np.array(list(total))
        keys = Keys(pairs[:, 0].astype(np.int32), pairs[:, 1].astype(np.int64), np.ones(len(pairs), np.int32))
        local.update(keys, np.stack(list(total.values())).astype(np.float32), num_rows=sum(rows))
    final = read(local, all_keys())
    np.testing.assert_allclose(found[0][-1], final, rtol=1e-6, atol=1e-7)
    assert (found[0][-1] == found[1][-1]).all()


def test_sightings_of_several_trainers_count_together_and_whoever_comes_first_makes_no_difference(serve: Serve) -> None:
    values = {"name": "a", "kind": "collisionless", "admission_count": 3, "embedding_dim": 4, "init_scale": 1.0}
    late = [TableConfig.from_dict(values | {"optimizer": {"kind": "sgd"}}, where="test")]
    groups, address = {"t": TableGroupSpec(late, 0)}, serve()
    local = TableGroup(late, seed=0)
    keys = Keys(np.zeros(3, np.int32), np.array([7, 8, 9]), np.array([1, 2, 3], np.int32))
    gradients = np.ones((3, 4), np.float32)
    with (
        ShardGroup([address], groups, trainer=0, num_trainers=2, session="s") as one,
        ShardGroup([address], groups, trainer=1, num_trainers=2, session="s") as two,
    ):
        stores = [one.store("t"), two.store("t")]
        for step in range(3):
            for store in stores if step % 2 else reversed(stores):
                assert (read(store, keys) == local.read(keys)).all(), "with the sightings of its own batch"
                assert (read(store, keys.unseen()) == local.read(keys.unseen())).all()
                store.update(keys, gradients)
            local.update(Keys(keys.tables, keys.ids, 2 * keys.counts), gradients)
        assert (read(stores[0], keys.unseen()) == local.read(keys.unseen())).all()
        assert local.num_rows == 3


def test_a_read_waits_for_the_step_it_asks_for_and_no_longer(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    address = serve()
    with (
        ShardGroup([address], GROUPS, trainer=0, num_trainers=2, session="s") as one,
        ShardGroup([address], GROUPS, trainer=1, num_trainers=2, session="s") as two,
    ):
        first, second = one.store("t"), two.store("t")
        before = read(first, keys)
        first.update(keys, gradients).result()
        held = first.read(keys)
        assert (first.read(keys, after=0).result() == before).all(), "asks for less, is answered at once"
        assert not held.done()
        second.update(keys, gradients).result()
        assert (held.result() != before).any()
        assert first.counters().held_s > 0


def test_staleness_lets_reads_run_ahead_by_that_many_steps(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    options = GroupOptions(store=StoreOptions(staleness=1))
    address = serve(hold_s=0.2)
    with (
        ShardGroup([address], GROUPS, trainer=0, num_trainers=2, session="s", options=options) as one,
        ShardGroup([address], GROUPS, trainer=1, num_trainers=2, session="s", options=options) as two,
    ):
        store = one.store("t")
        store.update(keys, gradients).result()
        read(store, keys)
        store.update(keys, gradients).result()
        with pytest.raises(ShardError, match=r"read of trainer 0 waited 0\.2 s for step 1, missing from trainers: 1"):
            read(store, keys)
        two.store("t").update(keys, gradients).result()
        read(store, keys)


@pytest.mark.parametrize("merged", [True, False])
def test_a_shard_applies_a_step_with_the_factor_of_its_learning_rate(serve: Serve, merged: bool) -> None:
    rng = np.random.default_rng(3)
    options = GroupOptions(store=StoreOptions(staleness=0 if merged else None))
    with ShardGroup([serve(), serve()], GROUPS, options=options) as group:
        store, local, plain = group.store("t"), *(LocalStore(TableGroup(TABLES, seed=3)) for _ in range(2))
        for factor in (1.0, 0.5, 0.0, 2.0):
            keys, gradients = batch(rng)
            for each in (store, local):
                each.update(keys, gradients, lr_factor=factor).result()
            plain.update(keys, gradients)
        assert (read(store, all_keys()) == read(local, all_keys())).all()
        assert (read(store, all_keys()) != read(plain, all_keys())).any()


def test_asynchronous_trainers_never_wait(serve: Serve) -> None:
    keys, gradients = batch(np.random.default_rng(2))
    options = GroupOptions(store=StoreOptions(staleness=None))
    with ShardGroup([serve()], GROUPS, trainer=0, num_trainers=2, session="s", options=options) as group:
        store = group.store("t")
        before = read(store, keys)
        for _ in range(20):  # further ahead than a synchronous trainer may be
            store.update(keys, gradients).result()
        assert (read(store, keys) != before).any()


@pytest.mark.parametrize(("precision", "bound"), [("bf16", 2**-8), ("int8", 1 / 254)])
def test_rows_and_gradients_travel_within_their_error(serve: Serve, precision: str, bound: float) -> None:
    values = {"name": "a", "num_embeddings": 40, "embedding_dim": 8, "init_scale": 1.0}
    tables = [TableConfig.from_dict(values | {"optimizer": {"kind": "sgd", "lr": 1.0}}, where="test")]
    local = LocalStore(TableGroup(tables, seed=3))
    options = GroupOptions(store=StoreOptions(rows=precision, gradients=precision))  # type: ignore[arg-type]
    keys = Keys(np.zeros(40, np.int32), np.arange(40), np.ones(40, np.int32))
    gradients = np.random.default_rng(0).normal(size=(40, 8)).astype(np.float32)
    with ShardGroup([serve(), serve()], {"t": TableGroupSpec(tables, 3)}, options=options) as group:
        store = group.store("t")
        rows, exact = read(store, keys), read(local, keys)
        assert 0 < np.abs(rows - exact).max() <= bound * np.abs(exact).max()
        for each in (store, local):
            each.update(keys, gradients).result()
        moved = read(store, keys) - read(local, keys)
        assert np.abs(moved).max() <= bound * (np.abs(gradients).max() + np.abs(exact).max() + 4)
        assert store.counters().bytes_received < 40 * 8 * 4 * 2


@pytest.mark.parametrize("rows", ["fp32", "int8"])
def test_changes_of_all_shards_keep_a_copy_up_to_date_also_over_evictions(serve: Serve, rows: str) -> None:
    tables = [HASHED, EXACT.model_copy(update={"evict_after": 1}), DIRECT]
    tables = [table.model_copy(update={"rows": rows}) for table in tables]
    local = LocalStore(TableGroup(tables, seed=3))
    rng = np.random.default_rng(5)
    copies = RowCopy(), RowCopy()
    with ShardGroup([serve(), serve(), serve()], {"t": TableGroupSpec(tables, 3)}) as group:
        store = group.store("t")
        store.acknowledge("copy", 0)
        local.acknowledge("copy", 0)
        for step in range(6):
            keys, gradients = batch(rng, num_keys=12)
            store.update(keys, gradients)
            local.update(keys, gradients)
            if step % 2:
                assert group.end_window(store.step) == local.table_group.end_window()
            for copy, each in zip(copies, (store, local), strict=True):
                copy.apply(each.changes(copy.version))
            assert copies[0].version == copies[1].version
            store.acknowledge("copy", copies[0].version)
            assert copies[0].bits("weights", "slot.accumulator") == copies[1].bits("weights", "slot.accumulator")
    assert copies[0].num_tombstones == copies[1].num_tombstones > 0
    assert len(copies[0].rows) > 20
