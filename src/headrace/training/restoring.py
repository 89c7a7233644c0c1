"""`restore_version`: takes a run back to an earlier checkpoint."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from headrace.config import read_yaml
from headrace.training.checkpoint import CheckpointFolder
from headrace.training.commits import read_state
from headrace.training.run_folder import RunFolder

__all__ = ["restore_version"]


def restore_version(run: str | os.PathLike[str], number: int) -> Iterator[str]:
    """Move everything that is newer than a checkpoint aside, so that training goes on from there.

    Args:
        run: Run folder.
        number: Number of the checkpoint.

    Yields:
        A line about each thing that was done.

    Raises:
        CheckpointError: There is no such checkpoint, or it is damaged; nothing was changed.
        HeadraceError: The run is training.
    """
    folder = RunFolder(Path(run), quarantine=_quarantine_of(Path(run)))
    folder.lock()
    try:
        snapshot = CheckpointFolder(folder.checkpoints).load(number)
        state = read_state(snapshot)
        trainers = sorted((folder.path / "trainers").glob("[0-9]*"))
        for each in (folder, *(RunFolder(path) for path in trainers)):
            if moved := each.rewind(number):
                yield each.describe_rewound(moved)
        folder.set_aside(state.replayed)
        yield f"checkpoint {number}, after {state.step:,} steps, is the newest; go on with: headrace train JOB"
    finally:
        folder.unlock()


def _quarantine_of(run: Path) -> str | None:
    """The quarantine of a run outside of its folder."""
    config = run / "config.yaml"
    values = read_yaml(config) if config.is_file() else {}
    match values:
        case {"data": {"bad_rows": {"path": str(path)}}}:
            return path
    return None
