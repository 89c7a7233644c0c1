"""Shards keep their rows where the job's storage says, also those that `headrace launch` starts."""

from pathlib import Path

import numpy as np

from headrace.cluster.launcher import _shard_command
from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.requests import OpenRequest
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec, make_part, parts_of
from headrace.embeddings.storage.choose import choose_storage
from headrace.embeddings.storage.config import StorageConfig
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.tiered import TieredStorage


def test_launched_shards_get_the_settings_that_differ_from_the_defaults() -> None:
    config = StorageConfig(kind="tiered", memory="1GiB", path="/fast")
    settings = ["--storage", "tiered", "--storage-memory", "1GiB", "--storage-path", "/fast"]
    assert _shard_command(Path("run"), "host:0", config)[-6:] == settings
    assert "--storage" not in _shard_command(Path("run"), "host:0", StorageConfig())


def test_a_shard_makes_the_storage_of_its_config_whatever_trainers_ask_for(tmp_path: Path) -> None:
    shard = Shard(make_storage=choose_storage(StorageConfig(kind="mapped", path=str(tmp_path))))
    tables = [TableConfig(name="item", embedding_dim=8)]
    spec, plan = TableGroupSpec(tables, 0), make_plan(tables, 1)
    request = OpenRequest(
        "r",
        "s",
        shard=0,
        num_trainers=1,
        table_groups={"g": (spec, plan)},
        step=0,
        checkpoint=None,
        merged=True,
        trainer=0,
    )
    shard.open(request, "client")
    assert isinstance(shard._served["g"].rows.storage, MappedStorage)


def test_a_shard_with_rows_in_files_has_the_same_part(tmp_path: Path) -> None:
    table = TableConfig(name="item", kind="hashed", num_embeddings=30_000, embedding_dim=8)
    spec, plan = TableGroupSpec([table], 0), make_plan([table], 2)
    shards = [make_part(spec, plan, 1), make_part(spec, plan, 1, TieredStorage.within(tmp_path, 60_000))]
    rng = np.random.default_rng(0)
    for _ in range(30):
        ids = np.unique(rng.integers(0, 30_000, 400))
        keys = Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))
        gradients = rng.normal(size=(len(ids), 8)).astype(np.float32)
        for shard in shards:
            shard.announce(keys, ahead=0)
            shard.read(keys)
            shard.update(keys, gradients)
    in_memory, in_files = (parts_of(shard, spec)[0] for shard in shards)
    assert shards[1].storage.counters.num_read_rows > 0  # type: ignore[attr-defined]
    orders = [np.argsort(part["ids"]) for part in (in_memory, in_files)]
    for name in ("ids", "weights", "slot.accumulator", "version"):
        np.testing.assert_array_equal(in_memory[name][orders[0]], in_files[name][orders[1]])


def test_int8_rows_are_in_files_too_and_only_single_weights_stay_in_memory(tmp_path: Path) -> None:
    make_storage = choose_storage(StorageConfig(kind="mapped", path=str(tmp_path)))
    rows, weights = (
        TableGroup([TableConfig(name="item", embedding_dim=dim, rows="int8")], seed=0, make_storage=make_storage)
        for dim in (16, 1)
    )
    assert type(rows.storage) is MappedStorage
    assert type(weights.storage) is HostStorage
