"""Delta checkpoints: any kept version comes back bit for bit, whatever is killed, merged or damaged."""

from __future__ import annotations

import itertools
import os
import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.embeddings import AdagradConfig, EmbeddingsConfig, Keys, TableConfig, TableGroup
from headrace.embeddings.tables.make_group import make_table_group
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.embeddings.tables.partitions import separated_columns
from headrace.errors import CheckpointError, TornCheckpoint
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointsConfig, CheckpointWriter

DIM = 4


class Run:
    """A run of one table group, that saves a checkpoint after each step."""

    def __init__(
        self, path: Path, *, keep: int = 3, base_every: Any = "auto", group: Callable[[], TableGroup] | None = None
    ) -> None:
        self.path, self.new_group = path, group or new_group
        self.config = CheckpointsConfig(keep=keep, base_every=base_every)
        self.states: dict[int, dict[str, bytes]] = {}
        self.resume()

    def resume(self) -> list[str]:
        self.folder = CheckpointFolder(self.path, keep=self.config.keep)
        self.writer = CheckpointWriter(self.folder, self.config)
        self.group = self.new_group()
        snapshot, refused = self.folder.load_latest()
        self.number = 0 if snapshot is None else snapshot.number
        if snapshot is not None:
            self.group.load_state_dict(snapshot.columns["g"])
            self.writer.follow(snapshot)
            if self.writer.has_base("g"):
                self.group.mark_saved(self.group.version)
        return refused

    def step(self) -> None:
        self.number += 1
        train(self.group, self.number)
        for version in self.writer.wait().values():
            self.group.mark_saved(version)
        self.states[self.number] = by_key(self.group.state_dict())
        arrays = {"dense": {"step": np.array([self.number])}}
        deltas = self.group.deltas(everything=not self.writer.has_base("g"))
        self.writer.start(Snapshot(self.number, {"step": self.number}, arrays), {"g": deltas})

    def steps(self, count: int) -> None:
        for _ in range(count):
            self.step()
        self.writer.close()

    def check(self, number: int) -> None:
        snapshot = CheckpointFolder(self.path).load(number)
        assert snapshot.arrays["dense"]["step"] == [number]
        assert by_key(snapshot.columns["g"]) == self.states[number]


def new_group() -> TableGroup:
    common = {"embedding_dim": DIM, "optimizer": AdagradConfig(lr=0.3)}
    options = {"kind": "collisionless", "num_embeddings": 8, "admission_count": 2}
    tables = [
        TableConfig(name="a", **common, **options),
        TableConfig(name="b", kind="hashed", num_embeddings=40, **common),
    ]
    return TableGroup(tables, seed=1)


def train(group: TableGroup, number: int) -> None:
    """A step that depends on nothing but its number."""
    rng = np.random.default_rng(number)
    pairs = sorted(set(zip(rng.integers(0, 2, 12).tolist(), rng.integers(0, 40, 12).tolist(), strict=True)))
    tables, ids = zip(*pairs, strict=True)
    keys = Keys(np.array(tables, np.int32), np.array(ids, np.int64), np.ones(len(ids), np.int32))
    group.update(keys, rng.normal(size=(len(keys), DIM)).astype(np.float32))
    if number % 3 == 0:
        group.evict(keys.take(np.arange(3)))


def by_key(state: dict[str, np.ndarray]) -> dict[str, bytes]:
    if len(partitions := separated_columns(state)) > 1:
        of_each = enumerate(map(by_key, partitions))
        return {f"{number}.{name}": column for number, columns in of_each for name, column in columns.items()}
    order = np.lexsort((state["ids"], state["tables"]))
    rows = {name: state[name][order] for name in ("tables", "ids", "weights", "slot.accumulator", "version")}
    others = {name: state[name] for name in state if name.startswith(("pending.", "header", "retention."))}
    return {name: column.tobytes() for name, column in (rows | others).items()}


@pytest.fixture(autouse=True)
def fast_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)  # only the system's own crash would show a difference


@pytest.mark.parametrize("base_every", ["auto", 1, 100])
def test_each_kept_checkpoint_is_restored_bit_for_bit(tmp_path: Path, base_every: int) -> None:
    run = Run(tmp_path, keep=9, base_every=base_every)
    run.steps(20)
    assert run.folder.numbers() == list(range(12, 21))
    for number in run.folder.numbers():
        run.check(number)
    assert run.writer.take_messages() != []


def test_deltas_are_small_and_chains_short(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=100, base_every=1000)
    run.steps(50)
    chain = run.folder.load(50).chains["g"][0]
    assert len(chain) <= 1 + 3 * 3
    assert [entry.is_base for entry in chain] == [True] + [False] * (len(chain) - 1)
    assert all(before.last + 1 == after.first for before, after in itertools.pairwise(chain))


def test_segments_without_a_checkpoint_are_deleted(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=2)
    run.steps(12)
    assert {path.name for path in (tmp_path / "segments" / "g").iterdir()} == named_segments(run)


def test_a_run_goes_on_from_a_loaded_chain(tmp_path: Path) -> None:
    once, again = (Run(tmp_path / name, base_every=1000) for name in ("once", "again"))
    once.steps(12)
    for _ in range(4):
        again.steps(3)
        again.resume()
    assert again.states == once.states
    base = again.folder.load(12).chains["g"][0][0]
    assert (base.first, base.last) == (1, 1), "no later checkpoint has all rows"


def test_a_whole_checkpoint_is_continued_with_a_base(tmp_path: Path) -> None:
    group = new_group()
    train(group, 1)
    arrays = {"dense": {"step": np.array([1])}}
    CheckpointFolder(tmp_path).save(Snapshot(1, {"step": 1}, arrays, {"g": group.state_dict()}))
    run = Run(tmp_path)
    assert by_key(run.group.state_dict()) == by_key(group.state_dict())
    run.steps(2)
    run.check(2)
    run.check(3)


def test_partitions_of_a_budget_have_a_chain_each(tmp_path: Path) -> None:
    config = EmbeddingsConfig.from_dict(
        {"budget": "3KiB", "partitions": 2, "retention": {"kind": "importance", "admission": 0}}, where="test"
    )
    tables = [TableConfig(name=name, num_embeddings=40, embedding_dim=DIM, kind="hashed") for name in ("a", "b")]
    once, again = (
        Run(tmp_path / name, group=lambda: make_table_group(config, tables, seed=1)) for name in ("once", "again")
    )
    for run in (once, again):
        for number in range(9):
            run.step()
            if number in (3, 5):
                assert isinstance(run.group, PartitionedTableGroup)
                run.group.end_window()
                first, second = run.group.budgets.values()
                run.group.resize({0: first - 400, 1: second + 400})  # as the end of a window does; rows move
            if run is again and number in (4, 6):
                run.writer.close()
                run.resume()
        run.writer.close()
    assert len(once.folder.load(9).chains["g"]) == 2
    assert once.states == again.states
    for number in once.folder.numbers():
        once.check(number)


def named_segments(run: Run) -> set[str]:
    chains = [run.folder.load(number).chains["g"][0] for number in run.folder.numbers()]
    return {entry.name for chain in chains for entry in chain}


class Killed(BaseException):
    pass


def kill_at_rename(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    """Let no file be renamed, after some, as if the process had been killed."""
    left = [number]

    def guarded(name: str) -> Any:
        original = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] < 0:
                raise Killed
            return original(*arguments, **options)

        return call

    for name in ("rename", "replace", "unlink"):
        monkeypatch.setattr(os, name, guarded(name))


@pytest.fixture
def whole_run(tmp_path: Path) -> Run:
    run = Run(tmp_path / "whole", keep=4, base_every=3)
    run.steps(10)
    return run


def test_a_kill_between_any_two_changes_of_files_loses_nothing(whole_run: Run, tmp_path: Path) -> None:
    survived = set()
    for renames in range(0, 60, 5):
        path = tmp_path / str(renames)
        run = Run(path, keep=4, base_every=3)
        with pytest.MonkeyPatch.context() as patch:
            kill_at_rename(patch, renames)
            with suppress(Killed):
                run.steps(10)
            with suppress(Killed):
                run.writer.close()
        run.resume()
        survived.add(run.number)
        if run.number:
            assert by_key(run.group.state_dict()) == whole_run.states[run.number]
        run.steps(10 - run.number)
        for number in run.folder.numbers():
            run.states = whole_run.states
            run.check(number)
    assert len(survived) > 4


@pytest.mark.parametrize("base_every", [4, 1000], ids=["into a base", "into a segment"])
def test_a_kill_at_any_moment_of_a_merge_loses_nothing(tmp_path: Path, base_every: int) -> None:
    before = Run(tmp_path / "before", keep=3, base_every=base_every)
    before.steps(4)  # the next checkpoint is the one after which segments are merged
    assert before.writer.num_merged_bytes == 0
    for moment in itertools.count():
        shutil.copytree(tmp_path / "before", tmp_path / str(moment))
        run = Run(tmp_path / str(moment), keep=3, base_every=base_every)
        run.states = dict(before.states)
        with pytest.MonkeyPatch.context() as patch:
            kill_at_rename(patch, moment)
            with suppress(Killed):
                run.steps(1)
            was_merged = run.writer.num_merged_bytes > 0
        newest, states = run.number, run.states
        run.resume()
        run.states = states
        assert run.number in (newest - 1, newest)
        for number in run.folder.numbers():
            run.check(number)
        run.steps(2)
        for number in run.folder.numbers():
            run.check(number)
        assert len(list(run.path.glob("segments/g/*"))) == len(named_segments(run)), "nothing is left behind"
        if was_merged:
            break
    assert moment > 6, "written, renamed, named by three checkpoints, and merged ones deleted"


def test_damage_in_a_chain_falls_back_to_the_last_checkpoint_without_it(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=5, base_every=1000)
    run.steps(3)
    newest = run.folder.load(3).chains["g"][0][-1]
    path = tmp_path / "segments" / "g" / newest.name
    path.write_bytes(path.read_bytes().replace(b"HRROWS1", b"HRROWS2")[:-40])
    refused = run.resume()
    assert run.number == 2
    assert len(refused) == 1
    assert newest.name in refused[0]
    assert by_key(run.group.state_dict()) == run.states[2]
    (tmp_path / "segments" / "g" / run.folder.load(2).chains["g"][0][0].name).unlink()
    with pytest.raises(TornCheckpoint, match="all checkpoints are damaged"):
        run.resume()


def test_damage_found_by_a_merge_makes_the_next_checkpoint_a_base(tmp_path: Path) -> None:
    run = Run(tmp_path, keep=5, base_every=4)
    run.steps(3)
    chain = run.folder.load(3).chains["g"][0]
    path = tmp_path / "segments" / "g" / chain[-1].name
    run.resume()
    good = path.read_bytes()
    path.write_bytes(good[:64] + bytes(len(good) - 64 - 400) + good[-400:])
    run.steps(2)
    assert any("the next checkpoint has all rows" in message for message in run.writer.take_messages())
    with pytest.raises(TornCheckpoint):
        run.folder.load(5)
    run.writer = CheckpointWriter(run.folder, run.config)
    run.steps(1)
    run.check(6)


def test_a_checkpoint_that_cannot_be_written_is_an_error_of_the_next_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Run(tmp_path)
    run.step()
    run.writer.wait()
    shutil.rmtree(tmp_path / "segments")
    (tmp_path / "segments").write_text("in the way")
    run.step()
    for _ in range(2):
        with pytest.raises(CheckpointError, match="segments/g"):
            run.writer.wait()
    assert not run.writer.is_complete
    with pytest.raises(CheckpointError, match="segments/g"):
        run.writer.close()
