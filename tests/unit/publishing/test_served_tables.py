"""Versions of a model in memory: the trainer's rows bit for bit, whole versions for readers, rollback, and memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from headrace.embeddings import EmbeddingsConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.encoding import rounded
from headrace.embeddings.tables.make_group import make_table_group
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, HeadraceError
from headrace.publishing.served_tables import ServedTables, ServedVersion

DIM = 4
GROUP = "tables"


def keys_of(ids: Any, table: int = 0, count: int = 0) -> Keys:
    ids = np.asarray(ids, dtype=np.int64)
    return Keys(np.full(len(ids), table, np.int32), ids, np.full(len(ids), count, np.int32))


def blocks_of(deltas: list[Delta]) -> Iterator[tuple[str, str, Columns]]:
    for section in ("removed", "rows"):
        for delta in deltas:
            columns = delta.section(section)
            if "weights" not in columns and section == "rows":
                continue
            yield GROUP, section, {name: columns[name] for name in columns if name in ("tables", "ids", "weights")}


class Publisher:
    """Feeds the changes of a table group to served tables."""

    def __init__(self, group: TableGroup, served: ServedTables) -> None:
        self.group, self.served, self.version = group, served, 0

    def publish(self, *, everything: bool = False) -> None:
        self.version += 1
        deltas = self.group.deltas(everything=everything or self.version == 1)
        self.group.mark_saved(self.group.version)
        headers = [TableGroupHeader.read(delta.whole) for delta in deltas]
        about = ServedVersion(self.version, self.group.step, 0.0, {"dense": np.full(1, self.version)})
        everything = everything or self.version == 1
        self.served.apply(about, {GROUP: headers}, blocks_of(deltas), everything=everything)


def train(group: TableGroup, rng: np.random.Generator, tables: int, num_ids: int, steps: int = 3) -> None:
    for _ in range(steps):
        keys = every_key(tables, num_ids)
        keys = keys.take(np.sort(rng.choice(len(keys), len(keys) // 3, replace=False)))
        keys = Keys(keys.tables, keys.ids, np.ones(len(keys), np.int32))
        group.update(keys, rng.standard_normal((len(keys), group.embedding_dim)).astype(np.float32))


def every_key(tables: int, num_ids: int) -> Keys:
    numbers, ids = np.repeat(np.arange(tables, dtype=np.int32), num_ids), np.tile(np.arange(num_ids), tables)
    return Keys(numbers, ids, np.zeros(len(ids), np.int32))


def table(name: str, kind: Any = "collisionless", rows: Any = "fp32", admission_count: int = 1) -> TableConfig:
    admission = {"admission_count": admission_count} if kind == "collisionless" else {}
    return TableConfig(name=name, num_embeddings=60, embedding_dim=DIM, kind=kind, rows=rows, **admission)


@pytest.mark.parametrize("rows", ["fp32", "bf16", "int8"])
def test_rows_are_those_of_the_trainer_at_each_version(rows: Any) -> None:
    tables = [table("a", "collisionless", rows), table("b", "hashed", rows), table("c", "direct", rows)]
    group, served, rng = TableGroup(tables, seed=3), ServedTables(keep=4), np.random.default_rng(0)
    publisher, keys, expected = Publisher(group, served), every_key(3, 60), {}
    for version in range(1, 8):
        train(group, rng, 3, 60, steps=1)
        if version in (3, 5):
            group.evict(every_key(3, 60).take(np.arange(0, 170, 7)))
        publisher.publish(everything=version == 6)
        expected[version] = group.read(keys).copy()
        np.testing.assert_array_equal(served.read(GROUP, keys), expected[version])
    assert served.versions == [4, 5, 6, 7]
    for version in (4, 6, 5, 7):
        served.serve(version)
        np.testing.assert_array_equal(served.read(GROUP, keys), expected[version])
        assert served.view.dense["dense"][0] == version


@pytest.mark.parametrize("admission_count", [0, 1, 2])
def test_unseen_ids_read_what_they_read_at_the_trainer(admission_count: int) -> None:
    group, served = TableGroup([table("a", admission_count=admission_count)], seed=3), ServedTables()
    group.update(keys_of([1, 2], count=1), np.ones((2, DIM), np.float32))
    Publisher(group, served).publish()
    keys = keys_of([1, 2, 3, -5])
    np.testing.assert_array_equal(served.read(GROUP, keys), group.read(keys))


@pytest.mark.parametrize(
    ("kind", "partitions"),
    [("importance", 1), ("importance", 2), ("cafe", 2), ("adaembed", 1), ("hash", 1), ("qr", 1)],
)
def test_ids_without_a_row_of_their_own_under_a_budget_read_what_they_read_at_the_trainer(
    kind: str, partitions: int
) -> None:
    values: dict[str, Any] = {"budget": 6000, "retention": {"kind": kind}}
    if partitions > 1:
        values["partitions"] = partitions
    config = EmbeddingsConfig.model_validate(values)
    group = make_table_group(config, [table("a", "direct"), table("b", "direct")], seed=3)
    served, rng, keys = ServedTables(), np.random.default_rng(0), every_key(2, 60)
    publisher = Publisher(group, served)
    for _ in range(4):
        train(group, rng, 2, 60)
        group.end_window()
        publisher.publish()
        np.testing.assert_array_equal(served.read(GROUP, keys), group.read(keys))


def simple_blocks(
    ids: npt.NDArray[np.int64], value: float, removed: tuple[int, ...] = ()
) -> list[tuple[str, str, Columns]]:
    gone = np.array(removed, dtype=np.int64)
    rows = np.full((len(ids), DIM), value, np.float32)
    return [
        (GROUP, "removed", {"tables": np.zeros(len(gone), np.int32), "ids": gone}),
        (GROUP, "rows", {"tables": np.zeros(len(ids), np.int32), "ids": ids, "weights": rows}),
    ]


HEADERS = {GROUP: [TableGroupHeader.of([table("a")], 0)]}


def about(version: int) -> ServedVersion:
    return ServedVersion(version, version, 0.0, {"dense": np.full(1, float(version))})


def test_no_reader_sees_two_versions_in_one_read() -> None:
    served, ids = ServedTables(keep=3), np.arange(300)
    served.apply(about(1), HEADERS, simple_blocks(ids, 1.0), everything=True)
    torn: list[Any] = []
    seen: set[float] = set()
    done, reading = threading.Event(), threading.Barrier(3)

    def read() -> None:
        reading.wait()
        while not done.is_set() or len(seen) < 2:
            view = served.view
            rows = view.read(GROUP, keys_of(ids))
            values = set(np.unique(rows).tolist()) | set(view.dense["dense"].tolist())
            seen.update(values)
            if len(values) != 1:
                torn.append(values)
                return

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    reading.wait()
    for version in range(2, 120):
        more = np.arange(300 + 10 * version)  # so that arrays grow, too
        served.apply(about(version), HEADERS, simple_blocks(more, float(version)), everything=False)
        if version % 10 == 0:
            served.serve(version - 1)
            served.serve(version)
    done.set()
    for reader in readers:
        reader.join()
    assert not torn
    assert len(seen) > 1


def test_a_view_keeps_its_version_while_later_ones_come_and_go() -> None:
    served, ids = ServedTables(keep=1), np.arange(50)
    served.apply(about(1), HEADERS, simple_blocks(ids, 1.0), everything=True)
    view = served.view
    for version in range(2, 30):
        served.apply(about(version), HEADERS, simple_blocks(ids, float(version), (60,)), everything=False)
    assert set(view.read(GROUP, keys_of(ids)).ravel().tolist()) == {1.0}
    assert set(served.read(GROUP, keys_of(ids)).ravel().tolist()) == {29.0}


def test_memory_does_not_grow_with_the_number_of_versions() -> None:
    served, ids = ServedTables(keep=2), np.arange(1000)
    sizes = []
    for version in range(1, 60):
        part = ids if version == 1 else ids[(version * 37) % 900 :][:100]
        gone = tuple(range(10_000 + 50 * version - 50, 10_000 + 50 * version)) if version > 1 else ()
        new = np.arange(10_000 + 50 * version, 10_050 + 50 * version)
        blocks = simple_blocks(np.concatenate([part, new]), float(version), gone)
        served.apply(about(version), HEADERS, blocks, everything=version == 1)
        sizes.append(served.num_bytes)
    assert max(sizes[10:]) <= sizes[9]


def test_a_version_that_fails_leaves_nothing() -> None:
    served, ids = ServedTables(), np.arange(100)
    served.apply(about(1), HEADERS, simple_blocks(ids, 1.0), everything=True)

    def damaged() -> Iterator[tuple[str, str, Columns]]:
        yield from simple_blocks(np.arange(50, 150), 2.0, (3, 60))
        raise CheckpointError("damaged")

    for everything in (True, False):
        with pytest.raises(CheckpointError, match="damaged"):
            served.apply(about(2), HEADERS, damaged(), everything=everything)
        assert served.versions == [1]
        assert set(served.read(GROUP, keys_of(ids)).ravel().tolist()) == {1.0}
    served.apply(about(2), HEADERS, simple_blocks(np.arange(2), 3.0, (4,)), everything=False)
    rows = served.read(GROUP, keys_of(np.arange(150)))[:, 0]
    np.testing.assert_array_equal(rows, np.r_[3.0, 3.0, 1.0, 1.0, 0.0, np.ones(95), np.zeros(50)])


def test_what_is_not_among_all_rows_is_gone_and_rollback_brings_it_back() -> None:
    served = ServedTables()
    served.apply(about(1), HEADERS, simple_blocks(np.arange(100), 1.0), everything=True)
    served.apply(about(5), HEADERS, simple_blocks(np.arange(50, 120), 1.0), everything=True)
    rows = served.read(GROUP, keys_of(np.arange(130)))[:, 0]
    np.testing.assert_array_equal(rows, np.r_[np.zeros(50), np.ones(70), np.zeros(10)])
    served.serve(1)
    rows = served.read(GROUP, keys_of(np.arange(130)))[:, 0]
    np.testing.assert_array_equal(rows, np.r_[np.ones(100), np.zeros(30)])


def test_the_served_version_stays_in_memory_while_later_ones_are_applied() -> None:
    served, ids = ServedTables(keep=2), np.arange(10)
    for version in range(1, 4):
        served.apply(about(version), HEADERS, simple_blocks(ids, float(version)), everything=version == 1)
    served.serve(2)
    for version in range(4, 8):
        served.apply(about(version), HEADERS, simple_blocks(ids, float(version)), everything=False, serve=False)
    assert (served.served, served.versions) == (2, [2, 3, 4, 5, 6, 7])
    assert set(served.read(GROUP, keys_of(ids)).ravel().tolist()) == {2.0}
    served.serve(7)
    served.apply(about(8), HEADERS, simple_blocks(ids, 8.0), everything=False)
    assert served.versions == [7, 8]


def test_refused_versions_are_named() -> None:
    served, ids = ServedTables(keep=2), np.arange(10)
    with pytest.raises(HeadraceError, match="has no version yet"):
        _ = served.view
    with pytest.raises(HeadraceError, match="version 3: is not in memory, expected one of none"):
        served.serve(3)
    served.apply(about(4), HEADERS, simple_blocks(ids, 1.0), everything=True)
    with pytest.raises(HeadraceError, match="version 3: is not in memory, expected one of 4"):
        served.serve(3)
    with pytest.raises(CheckpointError, match="version 4: is not newer than 4"):
        served.apply(about(4), HEADERS, simple_blocks(ids, 1.0), everything=False)
    other = {GROUP: [TableGroupHeader.of([table("a")], 1)]}
    with pytest.raises(CheckpointError, match="table group tables: differs from that of earlier versions"):
        served.apply(about(5), other, simple_blocks(ids, 1.0), everything=False)


def test_int8_rows_of_a_publication_are_read_within_their_bound() -> None:
    served, rng = ServedTables(), np.random.default_rng(0)
    rows = rng.standard_normal((100, DIM)).astype(np.float32)
    columns = {"tables": np.zeros(100, np.int32), "ids": np.arange(100), "weights": rounded(rows, "int8")}
    served.apply(about(1), HEADERS, [(GROUP, "rows", columns)], everything=True)
    found = served.read(GROUP, keys_of(np.arange(100)))
    assert np.all(np.abs(found - rows) <= np.abs(rows).max(axis=1, keepdims=True) / 252 * 1.01)


def test_admission_may_change_between_versions() -> None:
    served, found = ServedTables(), []
    for version, count in ((1, 1), (2, 0)):
        headers = {GROUP: [TableGroupHeader.of([table("a", admission_count=count)], 0)]}
        served.apply(about(version), headers, simple_blocks(np.arange(3), 1.0), everything=version == 1)
        found.append(served.read(GROUP, keys_of([9])).any())
    served.serve(1)
    assert [*found, served.read(GROUP, keys_of([9])).any()] == [False, True, False]
