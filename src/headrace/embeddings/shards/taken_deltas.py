"""`TakenDeltas`: what a shard has copied for the next checkpoint or publication, until it is written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.segments import SegmentEntry, write_delta
from headrace.embeddings.tables.state import Columns
from headrace.errors import CheckpointError, ShardError
from headrace.files import flush, write_array, writing

__all__ = ["TakenDeltas", "write_columns"]


class TakenDeltas:
    """The deltas of a shard's parts of each table group. Not thread-safe.

    Args:
        saved: The checkpoint that the session began with, or the publication that has the same rows.
        versions: Versions of the table groups in it.
    """

    def __init__(self, saved: int | None, versions: Mapping[str, int]) -> None:
        self._numbers = dict.fromkeys(versions, saved)
        self._versions: dict[str, dict[int | None, int]] = {name: {saved: each} for name, each in versions.items()}
        self._deltas: dict[str, list[Delta]] = {}
        self._entries: dict[str, list[SegmentEntry]] = {}

    def number(self, table_group: str) -> int | None:
        """The checkpoint for which a table group was copied last."""
        return self._numbers[table_group] if table_group in self._deltas or table_group in self._entries else None

    def version(self, table_group: str, saved: int | None) -> int | None:
        """Version of a table group in a complete checkpoint, of which later ones may not have been completed; None if
        it is not known."""
        if saved is None:
            return None
        known = self._versions[table_group]
        self._versions[table_group] = {number: each for number, each in known.items() if (number or 0) >= saved}
        return known.get(saved)

    def put(self, table_group: str, number: int, deltas: list[Delta]) -> None:
        """Keep the copies of a table group for a checkpoint."""
        self._numbers[table_group] = number
        self._versions[table_group][number] = deltas[0].version
        self._deltas[table_group] = deltas
        self._entries.pop(table_group, None)

    def write(
        self, table_group: str, folders: Sequence[Path], segments: Path, names: Sequence[str], *, as_int8: bool
    ) -> None:
        """Write the copies of a table group, unless that was done.

        Args:
            table_group: The table group.
            folders: Folders of its parts in the checkpoint.
            segments: Folder of its segments.
            names: File names of the segments.
            as_int8: Whether weights are stored as int8.

        Raises:
            ShardError: There are no copies, or not as many as names.
            CheckpointError: The files cannot be written.
        """
        if table_group in self._entries:
            return
        deltas = self._deltas.get(table_group, [])
        if len(deltas) != len(names) or not deltas:
            raise ShardError(f"table group {table_group}: {len(names)} names for {len(deltas)} copies of changes")
        entries = []
        for delta, folder, name in zip(deltas, folders, names, strict=True):
            with writing(folder, CheckpointError):
                write_columns(delta.whole, folder)
            number = self._numbers[table_group]
            assert number is not None
            entries.append(write_delta(segments / name, delta, first=number, as_int8=as_int8))
        self._entries[table_group] = entries
        del self._deltas[table_group]

    def entries(self, table_group: str) -> list[SegmentEntry]:
        """The segments that were written last."""
        return self._entries[table_group]


def write_columns(columns: Columns, place: Path) -> list[Path]:
    """Write one file per column, atomically, because a repeated save may run in parallel with the first."""
    place.mkdir(parents=True, exist_ok=True)
    for column, array in columns.items():
        unfinished = place / f"{column}.npy.writing"
        write_array(unfinished, array)
        flush(unfinished)
        unfinished.replace(place / f"{column}.npy")
    return [place / f"{column}.npy" for column in columns]
