"""Tiered storage: which rows are read from the file, when they are read, and what the file and memory hold."""

import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import Keys, TableConfig, TableGroup
from headrace.embeddings.storage import page_file, tiered, unnamed_files
from headrace.embeddings.storage.page_readers import PageReader, _Context
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.errors import ConfigError, StorageError

DIM = 8
MEMORY = 60_000  # 1,093 rows of 32 bytes and their 16 bytes of bookkeeping


def group_of(folder: Path, num_rows: int = 10_000, memory_bytes: int = MEMORY, **options: Any) -> TableGroup:
    table = TableConfig(name="item", kind="hashed", num_embeddings=num_rows, embedding_dim=DIM, init_scale=0.1)
    make = TieredStorage.within(folder, memory_bytes, **options)
    return TableGroup([table.model_copy(update={"optimizer": SGD})], seed=0, make_storage=make)


SGD = TableConfig(optimizer={"kind": "sgd"}).optimizer  # type: ignore[arg-type]


def keys(ids: Any) -> Keys:
    ids = np.asarray(ids, dtype=np.int64)
    return Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))


def train(group: TableGroup, ids: Any) -> None:
    group.read(keys(ids))
    group.update(keys(ids), np.ones((len(ids), DIM), np.float32))


def rows_of(group: TableGroup, ids: Any) -> np.ndarray:
    return group.index.resolve(keys(ids))


def storage_of(group: TableGroup) -> TieredStorage:
    assert isinstance(group.storage, TieredStorage)
    return group.storage


def test_a_row_that_was_never_trained_costs_no_read(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(0, 10_000, 200):
        train(group, np.arange(first, first + 200))
    counters = storage_of(group).counters
    assert counters.num_used_rows == 10_000
    assert counters.num_written_bytes > 0, "expected rows to leave memory"
    assert counters.num_read_rows == 0


def test_only_rows_that_are_not_in_memory_are_read_and_each_once(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(0, 4_000, 200):
        train(group, np.arange(first, first + 200))
    where = storage_of(group)._find(rows_of(group, np.arange(4_000)))
    away, here = np.flatnonzero(where < -1)[:100], np.flatnonzero(where > 0)[:100]
    for _ in range(3):
        train(group, np.sort(np.concatenate([away, here])))
    assert storage_of(group).counters.num_read_rows == len(away)


def test_rows_used_often_stay_in_memory(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(500, 9_500, 100):
        train(group, np.concatenate([np.arange(100), np.arange(first, first + 100)]))
    assert storage_of(group).counters.num_read_rows == 0


def test_announced_rows_are_in_memory_when_their_step_comes(tmp_path: Path) -> None:
    group = group_of(tmp_path, num_rows=20_000, memory_bytes=400_000)
    batches = [np.arange(first, 20_000, 80) for first in range(80)]
    storage = storage_of(group)
    for ids in batches:
        train(group, ids)
    late = storage.counters.num_late_rows
    announced = 0
    for number, ids in enumerate(batches):
        while announced < min(number + 3, len(batches)):
            if not storage.announce(rows_of(group, batches[announced]), ahead=announced - number):
                break
            announced += 1
        train(group, ids)
    assert storage.counters.num_read_rows > 1_000
    assert storage.counters.num_late_rows == late


def test_an_announcement_without_room_reads_nothing(tmp_path: Path) -> None:
    group = group_of(tmp_path, num_rows=20_000, memory_bytes=400_000)
    batches = [np.arange(first, 20_000, 80) for first in range(80)]
    storage = storage_of(group)
    for ids in batches:
        train(group, ids)
    num_announced = 0
    while storage.announce(rows_of(group, batches[num_announced]), ahead=num_announced):
        num_announced += 1
    assert num_announced > 3
    before = storage.counters
    assert not storage.announce(rows_of(group, batches[num_announced]), ahead=num_announced)
    assert storage.counters == before


def test_the_file_has_at_most_half_as_much_again_as_its_rows_need(tmp_path: Path) -> None:
    group = group_of(tmp_path, num_rows=100_000, memory_bytes=1_200_000)
    rng = np.random.default_rng(0)
    for _ in range(150):
        train(group, np.unique((100_000 * rng.random(3_000) ** 2).astype(np.int64)))
    file = storage_of(group)._file
    needed = file.num_live / file.segment_rows
    assert needed > 3
    num_in_two_runs = 12
    assert file.num_used_segments <= tiered.SLACK * needed + tiered.SPARE_SEGMENTS + num_in_two_runs
    assert file.num_live == np.count_nonzero(storage_of(group)._where < 0)


def test_evicted_ids_free_their_room(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(0, 4_000, 200):
        train(group, np.arange(first, first + 200))
    group.evict(keys(np.arange(4_000)))
    storage = storage_of(group)
    assert storage._file.num_live == 0
    assert storage._num_free == storage.num_slots - 1


def test_a_resumed_group_has_the_same_rows_in_memory(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(0, 4_000, 200):
        train(group, np.arange(first, first + 200))
    resumed = group_of(tmp_path)
    resumed.load_state_dict(group.state_dict())
    rows = rows_of(group, np.arange(4_000))
    here, there = (storage_of(each)._find(rows) > 0 for each in (group, resumed))
    assert (here & there).sum() > 0.85 * here.sum()


def test_too_little_memory_is_refused_with_the_least(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"memory: given 1,000 bytes, expected at least 14,043 for 256 rows of 32"):
        group_of(tmp_path, memory_bytes=1_000)


def test_more_rows_than_it_can_number_are_refused(tmp_path: Path) -> None:
    storage = storage_of(group_of(tmp_path))
    with pytest.raises(ConfigError, match=r"tiered holds up to 2,147,483,644 rows per table group"):
        storage.grow(2**31)


def test_a_page_that_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    group = group_of(tmp_path)
    for first in range(0, 4_000, 200):
        train(group, np.arange(first, first + 200))
    storage_of(group)._file._finish_writes(down_to=0)
    storage_of(group)._file._file.truncate(0)
    with pytest.raises(StorageError, match=r"page \d+ of the rows in files cannot be read back"):
        train(group, np.arange(100))


def test_threads_and_asynchronous_requests_read_the_same_pages(tmp_path: Path) -> None:
    file = unnamed_files.UnnamedFile(tmp_path, direct=True)
    content = np.random.default_rng(0).integers(0, 255, (300, 4096), dtype=np.uint8)
    aligned = page_file.empty_pages(300, 4096)
    aligned[:] = content
    os.pwrite(file.descriptor, aligned.reshape(-1).data, 0)
    pages = np.unique(np.random.default_rng(1).integers(0, 300, 200))
    for is_direct in (False, True):
        buffer = page_file.empty_pages(len(pages), 4096)
        parts = PageReader(file.descriptor, 4096, is_direct=is_direct).read(pages, buffer)
        assert [part.result() for part in parts] == [-1] * len(parts)
        np.testing.assert_array_equal(buffer, content[pages])
    if _Context.make() is not None:
        beyond = PageReader(file.descriptor, 4096, is_direct=True).read(np.array([3, 400]), buffer)
        assert [part.result() for part in beyond] == [400]
