"""Mapped storage: files without names, and what a user reads if the path or the disk is not good."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.storage import mapped
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.errors import ConfigError, StorageError
from headrace.training import JobConfig

TABLES = [TableConfig(name="item", kind="hashed", num_embeddings=100, embedding_dim=8)]


def test_files_have_no_name_so_none_is_left_by_a_process_that_is_killed(tmp_path: Path) -> None:
    group = TableGroup(TABLES, seed=0, make_storage=MappedStorage.within(tmp_path))
    assert group.storage.num_bytes > 0
    assert not list(tmp_path.iterdir())


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"embeddings\.storage\.path: .*/gone: no such folder"):
        TableGroup(TABLES, seed=0, make_storage=MappedStorage.within(tmp_path / "gone"))


def test_a_full_disk_is_an_error_that_says_how_much_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StorageError, match=r"No space left on device: rows need 1 MiB more, .* MiB are free"):
        TableGroup(TABLES, seed=0, make_storage=MappedStorage.within(tmp_path))


def test_copies_of_many_rows_are_in_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keys = Keys(np.zeros(50, np.int32), np.arange(50), np.ones(50, np.int32))
    group = TableGroup(TABLES, seed=0, make_storage=MappedStorage.within(tmp_path))
    group.update(keys, np.ones((50, 8), np.float32))
    whole = group.state_dict()
    monkeypatch.setattr(mapped, "SPILL_ABOVE", 100)
    monkeypatch.setattr(mapped, "BLOCK_ROWS", 7)
    parts = group.state_dict()
    assert parts["weights"].base is not None, "expected a view of a mapped file"
    for name, column in whole.items():
        np.testing.assert_array_equal(parts[name], column)


@pytest.mark.parametrize(
    ("storage", "text"),
    [
        ({"kind": "mapped"}, "storage kind mapped needs a path"),
        ({"kind": "tiered", "path": "."}, "storage kind tiered needs memory"),
        ({"kind": "memory", "path": "."}, "path is for storage kind mapped or tiered"),
        ({"kind": "mapped", "path": ".", "memory": "1GiB"}, "memory is for storage kind tiered"),
        ({"kind": "tiered", "path": ".", "memory": "much"}, "embeddings.storage.memory: given 'much'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(storage: dict[str, str], text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        EmbeddingsConfig.from_dict({"storage": storage}, where="job")


def test_rows_in_files_do_not_go_to_a_device(tmp_path: Path) -> None:
    config = EmbeddingsConfig.from_dict({"storage": {"kind": "mapped", "path": str(tmp_path)}}, where="job")
    bags = EmbeddingBags(config, ["item"], 8, seed=0)
    with pytest.raises(ConfigError, match=r"embeddings\.storage\.kind: given mapped for a model on cpu"):
        bags.place_on("cpu")


def test_small_rows_stay_in_memory(tmp_path: Path) -> None:
    config = EmbeddingsConfig.from_dict({"storage": {"kind": "mapped", "path": str(tmp_path)}}, where="job")
    kinds = [type(EmbeddingBags(config, ["item"], dim, seed=0).table_group.storage) for dim in (1, 8)]  # type: ignore[union-attr]
    assert kinds[0] is not MappedStorage
    assert kinds[1] is MappedStorage


def test_a_relative_path_starts_at_the_job_file(tmp_path: Path) -> None:
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "schema.yaml").write_text("labels: [click]\nids: [item]\n")
    job = {"run": "run", "data": {"path": "logs"}, "embeddings": {"storage": {"kind": "mapped", "path": "ssd"}}}
    resolved = JobConfig.from_dict(job, where="job").resolve(tmp_path)
    assert resolved.embeddings.storage.path == str(tmp_path / "ssd")
