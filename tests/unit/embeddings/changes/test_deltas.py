"""Deltas of a table group: O(changed), and a chain of them restores any version bit for bit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import AdagradConfig, EmbeddingsConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.changes import newest_rows, restoring
from headrace.embeddings.changes import segments as segment_files
from headrace.embeddings.changes.merging import merge_segments
from headrace.embeddings.changes.restoring import restored_state
from headrace.embeddings.changes.segments import Segment, SegmentEntry, write_delta
from headrace.embeddings.storage.device import DeviceStorage
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.mapped import MappedStorage
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.embeddings.tables.make_group import keyed_tables, make_table_group
from headrace.embeddings.tables.parts import numbered
from headrace.errors import TornCheckpoint

DIM = 4


def tables_of(**options: Any) -> list[TableConfig]:
    common = {"embedding_dim": DIM, "optimizer": AdagradConfig(lr=0.3), "rows": options.pop("rows", "fp32")}
    items = {"kind": "collisionless", "num_embeddings": 4, "admission_count": 3, "evict_after": 2, **options}
    return [
        TableConfig(name="items", **items, init_scale=0.5, **common),
        TableConfig(name="users", kind="hashed", num_embeddings=50, **common),
    ]


def train(group: TableGroup, step: int) -> None:
    """A step on some ids; now and then an eviction and the end of a window."""
    rng = np.random.default_rng(step)
    keys = keys_of(list(zip(rng.integers(0, 2, 20).tolist(), (rng.zipf(1.3, 20) % 50).tolist(), strict=True)))
    group.update(keys, rng.normal(size=(len(keys), DIM)).astype(np.float32))
    if step % 3 == 1:
        group.evict(keys_of([(0, (5 * step + n) % 50) for n in range(4)] + [(1, step % 50)]))
    if step % 7 == 6:
        group.end_window()


def keys_of(pairs: list[tuple[int, int]]) -> Keys:
    tables, ids = zip(*sorted(set(pairs)), strict=True)
    return Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))


def by_key(state: dict[str, np.ndarray]) -> dict[str, Any]:
    """A saved group, in whatever order its rows are and whatever their numbers."""
    found: dict[str, Any] = {}
    for prefix in ("", "pending."):
        order = np.lexsort((state[f"{prefix}ids"], state[f"{prefix}tables"]))
        for name in state:
            is_row = name.startswith("slot.") or name in ("tables", "ids", "weights", "version", "frequency")
            if is_row if not prefix else name.startswith(prefix):
                found[name] = state[name][order].tobytes()
    others = {name: state[name].tobytes() for name in state if name.startswith(("header", "removed.", "retention."))}
    return found | others


class Chain:
    """Versions of a group: the state of each, and the segments that hold them."""

    def __init__(self, folder: Path, group: TableGroup) -> None:
        self.folder, self.group = folder, group
        self.entries: list[SegmentEntry] = []
        self.whole: list[dict[str, np.ndarray]] = []
        self.states: list[dict[str, Any]] = []

    def save(self) -> None:
        delta = self.group.delta()
        number = len(self.entries) + 1
        self.entries.append(write_delta(self.folder / f"{number}.rows", delta, first=number))
        self.whole.append(delta.whole)
        self.states.append(by_key(self.group.state_dict()))
        self.group.mark_saved(delta.version)

    def restored(self, number: int, chain: list[SegmentEntry] | None = None) -> dict[str, np.ndarray]:
        whole = self.whole[number - 1]
        state = restored_state(self.folder, chain or self.entries[:number], whole, free_bytes=1 << 30)
        return numbered(state)


STORAGES = {
    "host": lambda folder: HostStorage,
    "device": lambda folder: DeviceStorage.on("cpu"),
    "mapped": lambda folder: MappedStorage.within(folder),
    "tiered": lambda folder: TieredStorage.within(folder, 30_000),
}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(segment_files, "BLOCK_ROWS", 7)


@pytest.fixture(params=["mapped", "read ahead"])
def reading(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """How blocks are read; files that are read ahead have footers longer than what is read at first."""
    if request.param == "read ahead":
        monkeypatch.setattr(newest_rows, "READ_ABOVE", -1)
        monkeypatch.setattr(restoring, "THREADS_ABOVE", -1)
        monkeypatch.setattr(segment_files, "TAIL_BYTES", 16)
    return str(request.param)


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.usefixtures("reading")
def test_every_version_of_a_chain_is_that_of_the_group(tmp_path: Path, storage: str) -> None:
    rows = "bf16" if storage == "host" else "fp32"
    group = TableGroup(tables_of(rows=rows), seed=3, make_storage=STORAGES[storage](str(tmp_path)))
    chain = Chain(tmp_path, group)
    group.acknowledge("replica", 0)
    for step in range(30):
        train(group, step)
        if step == 11:
            group.acknowledge("replica", group.version)
        if step % 2 == 0:
            chain.save()
    for number in range(1, 16):
        assert by_key(chain.restored(number)) == chain.states[number - 1], number


def test_a_restored_group_goes_on_as_the_one_that_was_saved(tmp_path: Path) -> None:
    group = TableGroup(tables_of(), seed=3)
    chain = Chain(tmp_path, group)
    for step in range(12):
        train(group, step)
        if step % 4 == 0:
            chain.save()
    again = TableGroup(tables_of(), seed=3)
    again.load_state_dict(chain.restored(3))
    again.mark_saved(again.version)
    other = Chain(tmp_path, again)
    other.entries, other.whole, other.states = chain.entries[:3], chain.whole[:3], chain.states[:3]
    for step in range(9, 20):
        train(again, step)
        if step > 11:
            train(group, step)
        if step % 4 == 3:
            other.save()
    assert by_key(again.state_dict()) == by_key(group.state_dict())
    assert by_key(other.restored(6)) == other.states[5] == by_key(group.state_dict())


@pytest.mark.parametrize(("first", "last"), [(0, 4), (3, 8), (1, 10)])
@pytest.mark.usefixtures("reading")
def test_merged_segments_restore_the_same_versions(tmp_path: Path, first: int, last: int) -> None:
    group = TableGroup(tables_of(), seed=3)
    chain = Chain(tmp_path, group)
    for step in range(20):
        train(group, step)
        if step % 2 == 0:
            chain.save()
    merged = merge_segments(tmp_path, chain.entries[first:last], "merged.rows")
    assert (merged.first, merged.last, merged.is_base) == (first + 1, last, first == 0)
    assert merged.rows < sum(entry.rows for entry in chain.entries[first:last])
    for number in range(last, 11):
        through = [*chain.entries[:first], merged, *chain.entries[last:number]]
        assert by_key(chain.restored(number, through)) == chain.states[number - 1]


def test_merged_int8_segments_stay_int8_and_restore_the_same_bits(tmp_path: Path) -> None:
    group = TableGroup(tables_of(), seed=3)
    entries = []
    for step in range(6):
        train(group, step)
        delta = group.delta()
        entries.append(write_delta(tmp_path / f"{step}.rows", delta, first=step + 1, as_int8=True))
        group.mark_saved(delta.version)
    for first in (0, 2):
        merged = merge_segments(tmp_path, entries[first:], f"merged-{first}.rows")
        assert Segment(tmp_path, merged).encodings_of_weights == {"int8"}
        states = [
            by_key(numbered(restored_state(tmp_path, chain, delta.whole, free_bytes=1 << 30)))
            for chain in (entries, [*entries[:first], merged])
        ]
        assert states[0] == states[1]


@pytest.mark.parametrize("kind", ["importance", "adaembed", "cafe", "hash", "qr"])
def test_groups_under_a_budget_are_restored_with_their_policy(tmp_path: Path, kind: str) -> None:
    retention = {"kind": kind} | ({"admission": 0} if kind == "importance" else {})
    tables = [TableConfig(name=name, num_embeddings=200, embedding_dim=DIM) for name in ("a", "b")]
    config = EmbeddingsConfig.from_dict({"budget": "6KiB", "retention": retention}, where="test")

    num_ids = min(table.num_embeddings for table in keyed_tables(config, tables))

    def step(group: TableGroup, number: int) -> None:
        rng = np.random.default_rng(number)
        ids = rng.zipf(1.2, 60) % num_ids
        keys = keys_of(list(zip(rng.integers(0, 2, 60).tolist(), ids.tolist(), strict=True)))
        group.update(keys, rng.normal(size=(len(keys), DIM)).astype(np.float32), num_rows=60)

    group = make_table_group(config, tables, seed=1)
    chain = Chain(tmp_path, group)
    for number in range(12):
        step(group, number)
        if number % 3 == 2:
            chain.save()
    for number in range(1, 5):
        assert by_key(chain.restored(number)) == chain.states[number - 1]
    again = make_table_group(config, tables, seed=1)
    again.load_state_dict(chain.restored(4))
    for number in range(12, 20):
        step(group, number)
        step(again, number)
    assert by_key(again.state_dict()) == by_key(group.state_dict())


def test_a_delta_visits_changed_rows_only(monkeypatch: pytest.MonkeyPatch) -> None:
    group = TableGroup(tables_of(evict_after=None), seed=3)
    for step in range(50):
        train(group, step)
    group.mark_saved(group.version)
    for whole_table in ("metadata.updated_rows", "index.pending", "index.keys"):
        owner, name = whole_table.split(".")
        monkeypatch.setattr(getattr(group, owner), name, lambda: pytest.fail("scans the whole table"))
    visited: list[int] = []
    read_columns = group.storage.columns
    monkeypatch.setattr(group.storage, "columns", lambda rows: visited.append(len(rows)) or read_columns(rows))
    keys = keys_of([(1, 3), (1, 4), (0, 1), (0, 99)])
    group.update(keys, np.ones((4, DIM), np.float32))
    group.evict(keys_of([(1, 4)]))
    delta = group.delta()
    assert visited == [len(delta.rows["ids"])]
    assert sorted(zip(*(delta.rows[name].tolist() for name in ("tables", "ids")), strict=True)) == [(0, 1), (1, 3)]
    assert delta.removed["ids"].tolist() == [4]
    assert (0, 99) in list(zip(delta.waiting["tables"].tolist(), delta.waiting["ids"].tolist(), strict=True))


def test_a_delta_that_was_not_saved_is_in_the_next_one(tmp_path: Path) -> None:
    group = TableGroup(tables_of(), seed=3)
    train(group, 0)
    group.mark_saved(group.version)
    since = group.version
    train(group, 1)
    lost = group.delta()
    train(group, 2)
    again = group.delta()
    assert lost.since == again.since == since
    pairs = [set(zip(d.rows["tables"].tolist(), d.rows["ids"].tolist(), strict=True)) for d in (lost, again)]
    gone = set(zip(again.removed["tables"].tolist(), again.removed["ids"].tolist(), strict=True))
    assert pairs[0] - gone <= pairs[1]


def test_changes_are_recorded_while_the_first_delta_is_written() -> None:
    group = TableGroup(tables_of(), seed=3)
    train(group, 0)
    first = group.delta()
    train(group, 1)
    group.mark_saved(first.version)
    second = group.delta()
    assert second.since == first.version
    assert set(second.removed["ids"].tolist()) <= {1, *range(5, 9)}
    assert len(second.removed["ids"]) > 0


@pytest.mark.usefixtures("reading")
def test_damage_is_refused_with_its_place(tmp_path: Path) -> None:
    group = TableGroup(tables_of(), seed=3)
    chain = Chain(tmp_path, group)
    for step in range(3):
        train(group, step)
        chain.save()
    path = tmp_path / "2.rows"
    good = path.read_bytes()
    _, offset, *_ = next(b for b in Segment(tmp_path, chain.entries[1]).blocks_of("rows") if b.num_rows).columns[
        "weights"
    ]
    path.write_bytes(good[:offset] + bytes([good[offset] ^ 1]) + good[offset + 1 :])
    with pytest.raises(TornCheckpoint, match=r"2\.rows: block \d+ of \d+, rows\.weights: has CRC-32 \w+, expected \w+"):
        chain.restored(3)
    assert by_key(chain.restored(1)) == chain.states[0]
    path.write_bytes(good[:-30] + b"x" + good[-29:])
    with pytest.raises(TornCheckpoint, match=r"2\.rows: footer: has SHA-256"):
        chain.restored(3)
    path.write_bytes(good[:-1])
    with pytest.raises(TornCheckpoint, match=r"2\.rows: has \d+ bytes, expected \d+"):
        chain.restored(3)
    path.unlink()
    with pytest.raises(TornCheckpoint, match=r"2\.rows: is missing"):
        chain.restored(3)
    path.write_bytes(good)
    assert by_key(chain.restored(3)) == chain.states[2]
