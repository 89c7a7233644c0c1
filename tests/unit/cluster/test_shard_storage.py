"""Shards keep their rows where the job's storage says, also those that `headrace launch` starts."""

from pathlib import Path

from headrace.cluster.launcher import _shard_command
from headrace.embeddings import TableConfig
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.requests import OpenRequest
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.storage.choose import choose_storage
from headrace.embeddings.storage.config import StorageConfig
from headrace.embeddings.storage.mapped import MappedStorage


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
