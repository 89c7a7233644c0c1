"""Shards write what changed in their parts; the parts of a checkpoint are those of one process, whatever is loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from served_tables import GROUPS, SPEC, Serve, batch

from headrace.embeddings import TableGroup
from headrace.embeddings.changes.segments import SegmentEntry
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.tables.parts import join_parts
from headrace.errors import ShardError
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointsConfig, CheckpointWriter


class Rows:
    """The shards as the writer of checkpoints sees them."""

    def __init__(self, group: ShardGroup) -> None:
        self.group = group
        self.divisions, self.num_parts = group.divisions, group.num_parts

    def record_changes(self) -> None:
        self.group.record_changes()

    def take_deltas(self, number: int, step: int, *, saved: int | None, everything: Sequence[str]) -> None:
        self.group.take_deltas(number, step, saved=saved, everything=everything)
        self.group.take_deltas(number, step, saved=saved, everything=everything)  # asked again, as after a lost answer

    def write_deltas(
        self, folder: Path, names: Mapping[str, Sequence[str]], *, as_int8: bool
    ) -> dict[str, list[SegmentEntry]]:
        written = self.group.write_deltas(folder.name, names, as_int8=as_int8)
        assert self.group.write_deltas(folder.name, names, as_int8=as_int8) == written
        return written


def saved_rows(state: dict[str, np.ndarray]) -> dict[str, bytes]:
    order = np.lexsort((state["ids"], state["tables"]))
    names = [name for name in state if name not in ("rows", "header") and not name.startswith(("pending.", "removed."))]
    return {name: np.asarray(state[name])[order].tobytes() for name in names}


def test_any_number_of_shards_continues_a_chain_or_begins_a_new_one(serve: Serve, tmp_path: Path) -> None:
    local, rng, states, bases = TableGroup(SPEC.tables, seed=SPEC.seed), np.random.default_rng(2), {}, {}
    folder, number = CheckpointFolder(tmp_path, keep=20), 0
    addresses = [serve(checkpoints=tmp_path) for _ in range(3)]
    for count in (2, 2, 3):
        writer = CheckpointWriter(folder, CheckpointsConfig(keep=20, base_every=100))
        snapshot, refused = folder.load_latest()
        assert refused == []
        with ShardGroup(addresses[:count], GROUPS, step=local.step, checkpoint=number or None) as group:
            rows = Rows(group)
            if snapshot is not None:
                writer.follow(snapshot, rows)
            for _ in range(4):
                keys, gradients = batch(rng)
                group.store("t").update(keys, gradients).result()
                local.update(keys, gradients)
                if number == 2:
                    gone = keys.take(np.arange(4))
                    group.store("t").evict(gone).result()
                    local.evict(gone)
                number += 1
                states[number] = saved_rows(local.state_dict())
                writer.wait()
                writer.start(Snapshot(number, {"step": local.step}), {}, rows)
            writer.close()
        bases[number] = [chain[0].first for chain in folder.load(number).chains["t"]]
    for each in folder.numbers():
        found = folder.load(each)
        assert saved_rows(join_parts(found.parts["t"])) == states[each], each
    assert bases == {4: [1, 1], 8: [1, 1], 12: [9, 9, 9]}


@pytest.mark.parametrize("name", ["../../x.rows", "00000001-00000001-0123abcd.rows/../x"])
def test_a_shard_writes_nothing_outside_of_its_folder(serve: Serve, tmp_path: Path, name: str) -> None:
    (tmp_path / ".00000001.1.partial").mkdir()
    with ShardGroup([serve(checkpoints=tmp_path)], GROUPS) as group:
        group.take_deltas(1, 0, saved=None, everything=[])
        with pytest.raises(ShardError, match="names"):
            group.write_deltas(".00000001.1.partial", {"t": [name]}, as_int8=False)
        names: Any = {"t": ["00000001-00000001-0123abcd.rows"]}
        with pytest.raises(ShardError, match="expected a checkpoint being written"):
            group.write_deltas("00000001", names, as_int8=False)
        group.write_deltas(".00000001.1.partial", names, as_int8=False)
    assert [path.name for path in tmp_path.rglob("*.rows")] == names["t"]
