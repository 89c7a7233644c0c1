"""The rows of publications, as a reader gets them."""

from pathlib import Path
from typing import Any

import numpy as np

from headrace.publishing.publications import PublicationFolder
from headrace.training.checkpoint import CheckpointFolder


def rows_at(folder: PublicationFolder, version: int) -> dict[tuple[str, int, int], bytes]:
    """The rows of a version, by following all versions before it, and the same in one step."""
    rows: dict[tuple[str, int, int], bytes] = {}
    since = 0
    for each in [*[v for v in folder.versions() if v < version], version]:
        changes = folder.changes(folder.load(each), since)
        rows = {} if changes.is_everything else rows
        _apply(changes.blocks, rows)
        since = each
    at_once: dict[tuple[str, int, int], bytes] = {}
    _apply(folder.changes(folder.load(version), 0).blocks, at_once)
    assert at_once == rows
    return rows


def _apply(blocks: Any, rows: dict[tuple[str, int, int], bytes]) -> None:
    for name, section, block in blocks:
        weights = block["weights"] if section == "rows" else None
        for place, key in enumerate(zip(block["tables"].tolist(), block["ids"].tolist(), strict=True)):
            if weights is None:
                rows.pop((name, *key), None)
            else:
                rows[(name, *key)] = weights[place].tobytes()


def rows_of_checkpoint(run: Path) -> dict[tuple[str, int, int], bytes]:
    snapshot, _ = CheckpointFolder(run / "checkpoints").load_latest()
    assert snapshot is not None
    states = [(name, state) for name, state in snapshot.columns.items()]
    states += [(name, state) for name in snapshot.parts for state in snapshot.parts[name]]
    return {
        (name, table, each): weights.tobytes()
        for name, state in states
        for table, each, weights in zip(
            state["tables"].tolist(), state["ids"].tolist(), np.asarray(state["weights"]), strict=True
        )
    }


def assert_newest_is_the_checkpoint(run: Path) -> int:
    folder = PublicationFolder(run / "publications")
    newest = folder.newest()
    assert newest is not None
    assert rows_at(folder, newest.version) == rows_of_checkpoint(run)
    snapshot, _ = CheckpointFolder(run / "checkpoints").load_latest()
    assert snapshot is not None
    dense = folder.dense(newest)
    assert {name: array.tobytes() for name, array in dense.items()} == {
        name: array.tobytes() for name, array in snapshot.arrays["dense"].items()
    }
    return newest.version
