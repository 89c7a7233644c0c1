"""Policies of incremental checkpoints, on one format of files, so that only what they write and read differs.

| arm | writes at version v | reads to restore v |
|---|---|---|
| whole | all rows | them |
| differential | rows changed since the base, or all rows if that was half a base (Check-N-Run) | base, v |
| incremental | rows changed since v - 1 (Check-N-Run, consecutive) | base, 2 ... v, in order |
| incrcp | the same; splits earlier chunks in rows that v changed and others (IncrCP) | chunks that v needs |
| headrace | the same; merges segments in the background | base and a few segments |
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.restoring import restored_state
from headrace.embeddings.changes.segments import Segment, SegmentEntry, write_delta
from headrace.training.checkpoint import CheckpointFolder, Snapshot
from headrace.training.checkpoint_writer import CheckpointsConfig, CheckpointWriter

Int64s = npt.NDArray[np.int64]
GROUP = "g"
EXTRACT_ABOVE = 0.05
"""IncrCP splits a chunk if a later one has more than this part of its rows; its published runs use about as much."""


@dataclass
class Policy:
    """A policy: `save` a version, `restore` one. All rows are in one table; ids are numbers.

    Attributes:
        folder: Folder of its files.
        written: Bytes written for each version.
        rewritten: Bytes written later, by splits and merges.
    """

    folder: Path
    written: list[int] = field(default_factory=list)
    rewritten: int = 0

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """Write a version, given what changed since the one before, and the state of the whole table group."""
        raise NotImplementedError

    def close(self) -> None:
        """Finish background work."""

    def files(self, number: int) -> list[Path]:
        """The files that are read to restore a version."""
        raise NotImplementedError

    def restore(self, number: int) -> Int64s:
        """Restore the rows of a version; returns their ids."""
        raise NotImplementedError

    def disk_bytes(self) -> int:
        """Bytes of all files now."""
        return sum(path.stat().st_size for path in self.folder.rglob("*") if path.is_file())

    def _write(self, name: str, delta: Delta, number: int) -> SegmentEntry:
        return write_delta(self.folder / name, delta, first=number)


def everything(delta: Delta, state: dict[str, Any]) -> Delta:
    """A delta with all rows of a state."""
    rows = {name: column for name, column in state.items() if name in delta.rows}
    return replace(delta, since=0, rows=rows)


def rows_of(delta: Delta, places: Int64s) -> Delta:
    """A delta with some of its rows."""
    return replace(delta, rows={name: column[places] for name, column in delta.rows.items()})


class Chains(Policy):
    """A policy that restores a version from some segments, of which later ones replace rows of earlier ones."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.chains: dict[int, list[SegmentEntry]] = {}

    def files(self, number: int) -> list[Path]:
        """See `Policy`."""
        return [self.folder / entry.name for entry in self.chains[number]]

    def restore(self, number: int) -> Int64s:
        """See `Policy`."""
        state = restored_state(self.folder, self.chains[number], {})
        return state["ids"]

    def _add(self, number: int, entry: SegmentEntry, before: Sequence[SegmentEntry]) -> None:
        self.chains[number] = [*before, entry]
        self.written.append(entry.bytes)


class Whole(Chains):
    """All rows at each version."""

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """See `Policy`."""
        self._add(number, self._write(f"{number}.rows", everything(delta, state), number), ())
        if number > 1:  # the disk of the machine is small; a restore of the last version costs as much as any other
            (self.folder / self.chains[number - 1][0].name).unlink()


class Differential(Chains):
    """Rows changed since a base."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._since_base: Int64s = np.empty(0, dtype=np.int64)

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """See `Policy`."""
        base = [] if number == 1 else self.chains[number - 1][:1]
        self._since_base = np.union1d(self._since_base, delta.rows["ids"])
        is_base = not base or (len(self.chains[number - 1]) > 1 and self.written[-1] > 0.5 * base[0].bytes)
        if is_base:
            self._since_base = np.empty(0, dtype=np.int64)
            self._add(number, self._write(f"{number}.rows", everything(delta, state), number), ())
            return
        places = np.flatnonzero(np.isin(state["ids"], self._since_base))
        self._add(number, self._write(f"{number}.rows", rows_of(everything(delta, state), places), number), base)
        self.chains[number][-1] = replace(self.chains[number][-1], is_base=False)


class Incremental(Chains):
    """Rows changed since the version before; a restore applies all of them in order."""

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """See `Policy`."""
        before = self.chains.get(number - 1, [])
        self._add(number, self._write(f"{number}.rows", delta, number), before)

    def restore(self, number: int) -> Int64s:
        """See `Policy`."""
        table: dict[str, npt.NDArray[Any]] = {}
        for entry in self.chains[number]:
            segment = Segment(self.folder, entry)
            for block in segment.blocks_of("rows"):
                columns = {name: segment.read(block, name) for name in block.columns}
                _apply(table, columns)
        ids: Int64s = np.flatnonzero(table["version"])
        return ids


def _apply(table: dict[str, npt.NDArray[Any]], columns: dict[str, npt.NDArray[Any]]) -> None:
    """Set rows of arrays that are indexed by id."""
    ids = columns["ids"]
    for name, column in columns.items():
        size = int(ids.max(initial=-1)) + 1
        if name not in table:
            table[name] = np.zeros((size, *column.shape[1:]), dtype=column.dtype)
        elif size > len(table[name]):
            room = np.zeros((size - len(table[name]), *column.shape[1:]), dtype=column.dtype)
            table[name] = np.concatenate([table[name], room])
        table[name][ids] = column


@dataclass
class _Chunk:
    """A piece of a version: its rows, and the file that has them."""

    delta: Delta
    entry: SegmentEntry


class IncrCP(Policy):
    """Two-dimensional chunks: column v has the rows of version v, level 0 those that no later version changed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self._columns: list[list[_Chunk]] = []
        self._names = 0

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """See `Policy`."""
        changed = np.sort(delta.rows["ids"])
        for column in self._columns[1:]:  # the base stays
            retained = column[0]
            is_hit = np.isin(retained.delta.rows["ids"], changed, assume_unique=True)
            if is_hit.sum() > EXTRACT_ABOVE * len(changed):
                pieces = [rows_of(retained.delta, np.flatnonzero(part)) for part in (~is_hit, is_hit)]
                (self.folder / retained.entry.name).unlink()
                column[:1] = [self._chunk(piece, number) for piece in pieces]
                self.rewritten += sum(chunk.entry.bytes for chunk in column[:2])
            else:
                column.insert(1, self._empty(number, retained))
        chunk = self._chunk(delta, number)
        self._columns.append([chunk])
        self.written.append(chunk.entry.bytes)

    def _chunk(self, delta: Delta, number: int) -> _Chunk:
        self._names += 1
        return _Chunk(delta, self._write(f"{self._names}.rows", delta, number))

    def _empty(self, number: int, like: _Chunk) -> _Chunk:
        """A level without rows, which costs nothing."""
        nothing = rows_of(like.delta, np.empty(0, dtype=np.int64))
        return _Chunk(nothing, replace(like.entry, name="", rows=0, bytes=0))

    def _chunks(self, number: int) -> list[SegmentEntry]:
        """The chunks of a version, oldest first: levels below the depth of its column, of it and all before."""
        depth = len(self._columns[number - 1])
        found = [chunk.entry for column in self._columns[:number] for chunk in reversed(column[:depth])]
        return [entry for entry in found if entry.rows]

    def files(self, number: int) -> list[Path]:
        """See `Policy`."""
        return [self.folder / entry.name for entry in self._chunks(number)]

    def restore(self, number: int) -> Int64s:
        """See `Policy`."""
        state = restored_state(self.folder, self._chunks(number), {})
        return state["ids"]


class Ours(Policy):
    """The writer of checkpoints of this library, with every version kept."""

    def __init__(self, folder: Path, keep: int, *, weights: str = "exact") -> None:
        super().__init__(folder)
        config = CheckpointsConfig(keep=keep, weights=weights)  # type: ignore[arg-type]
        self._folder = CheckpointFolder(folder, keep=keep)
        self._writer = CheckpointWriter(self._folder, config)

    def save(self, number: int, delta: Delta, state: dict[str, Any]) -> None:
        """See `Policy`."""
        self._writer.wait()
        self._writer.start(Snapshot(number, {"step": number}), {GROUP: [delta]})
        self._writer.wait()
        self.written.append(self._writer.num_written_bytes - sum(self.written))

    def close(self) -> None:
        """See `Policy`."""
        self._writer.close()
        self.rewritten = self._writer.num_merged_bytes

    def files(self, number: int) -> list[Path]:
        """See `Policy`."""
        _, chains = self._folder.read_manifest(number)
        return [self._folder.segments.place(GROUP) / entry.name for entry in chains[GROUP][0]]

    def restore(self, number: int) -> Int64s:
        """See `Policy`."""
        snapshot = self._folder.load(number)
        ids: Int64s = snapshot.columns[GROUP]["ids"]
        return ids


def drop_cache(paths: Sequence[Path]) -> None:
    """Have the operating system forget the contents of files, so that they are read from the disk."""
    for path in paths:
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(descriptor)
