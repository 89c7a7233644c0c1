"""`list_checkpoints`: what the checkpoints of a run are and hold, read from their manifests alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from headrace.errors import CheckpointError
from headrace.training.checkpoint import CheckpointFolder

__all__ = ["CheckpointSummary", "list_checkpoints"]


@dataclass(frozen=True)
class CheckpointSummary:
    """A checkpoint.

    Attributes:
        number: Its number.
        step: Number of optimizer steps; None if its manifest is damaged, like everything below.
        window: The window in progress, or the last one that was finished.
        kind: `whole` if it has all rows in files of its own, `base` if all rows are in one segment per part, `delta` if
            its chain has more.
        own_bytes: Bytes of its own files, and of segments with the changes of this checkpoint alone.
        restore_bytes: Bytes that restoring it reads.
        num_segments: Segments of its chains.
        changed_rows: Rows of segments with its changes alone; None if they were merged with others, or for `whole`.
        table_groups: Its table groups.
        refused: Why its manifest cannot be used; None if it can. Files are not read.
    """

    number: int
    step: int | None = None
    window: str = ""
    kind: Literal["whole", "base", "delta"] | None = None
    own_bytes: int = 0
    restore_bytes: int = 0
    num_segments: int = 0
    changed_rows: int | None = None
    table_groups: tuple[str, ...] = ()
    refused: str | None = None


def list_checkpoints(path: str | Path) -> list[CheckpointSummary]:
    """Summaries of the checkpoints in a folder, oldest first.

    Raises:
        CheckpointError: The path is not a folder.
    """
    folder = CheckpointFolder(path)
    return [_summary(folder, number) for number in folder.numbers()]


def _summary(folder: CheckpointFolder, number: int) -> CheckpointSummary:
    try:
        manifest, chains = folder.read_manifest(number)
    except CheckpointError as error:
        return CheckpointSummary(number, refused=str(error))
    state = manifest.content["state"]
    files_bytes = sum(entry.bytes for entry in manifest.files.values())
    entries = [entry for parts in chains.values() for chain in parts for entry in chain]
    own = [entry for entry in entries if entry.first == entry.last == number]
    names = [name.split("/")[1] for name in manifest.files if name.startswith("tables/")]
    parts = [chain for of_group in chains.values() for chain in of_group]
    return CheckpointSummary(
        number,
        step=state.get("step"),
        window=_window_of(state),
        kind="whole" if not chains else "base" if all(len(chain) == 1 for chain in parts) else "delta",
        own_bytes=files_bytes + sum(entry.bytes for entry in own),
        restore_bytes=files_bytes + sum(entry.bytes for entry in entries),
        num_segments=len(entries),
        changed_rows=sum(entry.rows for entry in own) if len(own) == len(parts) and chains else None,
        table_groups=tuple(dict.fromkeys(names)),
    )


def _window_of(state: dict[str, object]) -> str:
    match state:
        case {"window": {"name": str(name)}}:
            return f"{name}, in progress"
        case {"cursor": {"windows": [*_, str(name)]}}:
            return name
    return ""
