"""Checkpoints on disk: written atomically, verified when read, and without pickle."""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from headrace.embeddings.changes.chains import Chains, chains_of, chains_to_json, replaced
from headrace.embeddings.changes.segment_folder import RestoredParts, SegmentFolder
from headrace.embeddings.changes.segments import SegmentEntry
from headrace.errors import CheckpointError, TornCheckpoint
from headrace.files import flush, map_array, write_array, writing
from headrace.manifest import Manifest
from headrace.messages import shorten_list
from headrace.paths import local_path

__all__ = ["CheckpointFolder", "Snapshot", "read_arrays", "write_arrays"]

FORMAT = "headrace-checkpoint"
VERSION = 2
"""A checkpoint that has all rows itself."""
VERSION_WITH_CHAINS = 3
"""A checkpoint whose rows are in segments."""

_GROUP = re.compile(r"(?P<group>[^/]+)\.safetensors")
_COLUMN = re.compile(r"tables/(?P<group>[^/]+)/(?P<column>[^/]+)\.npy")
_PART = re.compile(r"tables/(?P<group>[^/]+)/(?P<part>[^/]+)/(?P<column>[^/]+)\.npy")

Columns = dict[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The contents of a checkpoint, as plain values and named arrays.

    Attributes:
        number: Number of the checkpoint within the run, from 1; also its name.
        state: JSON-able values: cursor, window in progress, pipeline state, counts.
        arrays: Small arrays by group and name, for instance `{"dense": {"top.0.weight": ...}}`; one safetensors file
            per group.
        columns: Large arrays by table group and column, for instance `{"dim16": {"rows": ...}}`; one `.npy` file per
            column.
        parts: Columns of table groups whose rows are in shards, one dictionary per shard; see `tables.parts`.
        chains: The segments of table groups; those have the rows, and `columns` and `parts` are written without.
        plans: Of table groups with `chains` and `parts`, how their keys were assigned to shards, see
            `ShardingPlan.to_dict`.
    """

    number: int
    state: dict[str, Any]
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    columns: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    parts: Mapping[str, list[dict[str, NDArray[Any]]]] = field(default_factory=dict)
    chains: Chains = field(default_factory=dict)
    plans: dict[str, Any] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of a run, oldest first, each in a folder named by its number.

    A checkpoint is written under a temporary name, flushed to disk, and renamed. Its manifest lists every file with
    size and SHA-256 and has its own checksum, so a damaged checkpoint is refused as a whole. Only listed files are
    opened. See `docs/checkpoints.md` for the format.
    """

    def __init__(self, path: str | Path, *, keep: int = 3) -> None:
        """Use a folder for checkpoints; it is created with the first one.

        Args:
            path: Folder of the checkpoints.
            keep: Number of newest checkpoints to keep; at least 2, so that there is a fallback if one is damaged.
        """
        self.path = local_path(path, where="checkpoints")
        self.keep = max(2, keep)
        self.segments = SegmentFolder(self.path)
        self._lock = threading.Lock()

    def numbers(self) -> list[int]:
        """Numbers of the existing checkpoints, ascending, without checking for damage. Other files are ignored.

        Raises:
            CheckpointError: The path exists but is not a folder, for example a broken link.
        """
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise CheckpointError(f"{self.path}: not a folder, expected the run's checkpoint folder")
            return []
        return sorted(int(name) for name in os.listdir(self.path) if _is_name(name))

    def save(
        self,
        snapshot: Snapshot,
        write_parts: Callable[[Path], object] | None = None,
        *,
        write_rows: Callable[[Path], Chains] | None = None,
    ) -> Path:
        """Write a checkpoint and delete the oldest beyond `keep`.

        Args:
            snapshot: Contents of the checkpoint.
            write_parts: Writes further files into a given folder, such as shards' parts of table groups.
            write_rows: Does the same without rows, for which it returns the chains.

        Raises:
            CheckpointError: The checkpoint cannot be written; nothing incomplete stays visible.
        """
        with self._lock:
            return self._save(snapshot, write_parts, write_rows)

    def _save(
        self,
        snapshot: Snapshot,
        write_parts: Callable[[Path], object] | None,
        write_rows: Callable[[Path], Chains] | None,
    ) -> Path:
        final = self._place(snapshot.number)
        temporary = self.path / f".{final.name}.{os.getpid()}.partial"
        try:
            with writing(final, CheckpointError):
                self._sweep()
                temporary.mkdir(parents=True)
                write_arrays(temporary, snapshot)
                if write_parts is not None:
                    write_parts(temporary)
                chains = snapshot.chains if write_rows is None else write_rows(temporary)
                content: dict[str, Any] = {"number": snapshot.number, "state": snapshot.state}
                content |= {"chains": chains_to_json(chains), "plans": snapshot.plans} if chains else {}
                version = VERSION_WITH_CHAINS if chains else VERSION
                Manifest.write(temporary, FORMAT, version, content)
                _forget(final)
                temporary.rename(final)
                flush(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for number in self.numbers()[: -self.keep]:
            _forget(self._place(number))
        self._delete_unused_segments()
        return final

    def replace_segments(self, table_group: str, merged: Sequence[SegmentEntry], by: SegmentEntry) -> None:
        """Name a segment in place of those that were merged into it, in all checkpoints that have all of them.

        Raises:
            CheckpointError: A manifest cannot be written.
        """
        with self._lock:
            for number in self.numbers():
                try:
                    manifest = self._manifest(number)
                    chains = chains_of(manifest.content.get("chains", {}))
                except (CheckpointError, ValueError):
                    continue  # it is refused when it is read
                parts = chains.get(table_group, ())
                after = tuple(replaced(chain, merged, by) for chain in parts)
                if after != parts:
                    content = manifest.content | {"chains": chains_to_json(chains | {table_group: after})}
                    manifest.rewrite(self._place(number), content)
            self._delete_unused_segments()

    def _delete_unused_segments(self) -> None:
        if not self.segments.path.is_dir():
            return
        try:
            contents = [self._manifest(number).content for number in self.numbers()]
            chains = [chains_of(content.get("chains", {})) for content in contents]
        except (CheckpointError, ValueError):
            return  # nobody knows what a damaged manifest names
        self.segments.delete_unused(chains)

    def read_manifest(self, number: int) -> tuple[Manifest, Chains]:
        """The manifest of a checkpoint, without its files, and its chains.

        Raises:
            TornCheckpoint, VersionMismatch, CheckpointError: It cannot be used.
        """
        manifest, folder = self._manifest(number), self._place(number)
        given, state = manifest.content.get("number"), manifest.content.get("state")
        if given != number or not isinstance(state, dict):
            raise TornCheckpoint(f"{folder}: its manifest belongs to checkpoint {given}, expected {number}")
        try:
            return manifest, chains_of(manifest.content.get("chains", {}))
        except ValueError as error:
            raise TornCheckpoint(f"{folder}: {error}") from error

    def _manifest(self, number: int) -> Manifest:
        return Manifest.read(self._place(number), FORMAT, VERSION, VERSION_WITH_CHAINS)

    def load(self, number: int) -> Snapshot:
        """Read and verify a checkpoint.

        Raises:
            CheckpointError: There is no checkpoint with that number, or it is not readable.
            TornCheckpoint: The manifest or a file is missing, or a checksum does not match; the message has both.
            VersionMismatch: It has a different version of the format.
        """
        folder = self._place(number)
        if not os.path.lexists(folder):
            numbers = shorten_list(map(str, self.numbers())) or "none"
            raise CheckpointError(f"{self.path}: there is no checkpoint {number}, expected one of: {numbers}")
        manifest, chains = self.read_manifest(number)
        manifest.check_files(folder)
        snapshot = read_arrays(folder, manifest.files, number, manifest.content["state"])
        plans = manifest.content.get("plans", {})
        return replace(self._with_rows(snapshot, chains), plans=plans) if chains else snapshot

    def _with_rows(self, snapshot: Snapshot, chains: Chains) -> Snapshot:
        """Add the rows of segments; those of shards are checked now, and read when they are asked for."""
        if {*snapshot.columns, *snapshot.parts} != {*chains}:
            groups = shorten_list([*snapshot.columns, *snapshot.parts])
            raise TornCheckpoint(f"{self._place(snapshot.number)}: chains of {shorten_list(chains)}, expected {groups}")
        columns = {
            name: self.segments.restored_group(name, chains[name], whole) for name, whole in snapshot.columns.items()
        }
        for name in snapshot.parts:
            for chain in chains[name]:
                self.segments.check(name, chain)
        parts = RestoredParts(self.segments, chains, snapshot.parts)
        return replace(snapshot, columns=columns, parts=parts, chains=chains)

    def load_latest(self) -> tuple[Snapshot | None, list[str]]:
        """Load the newest valid checkpoint; returns it with a line about each newer, damaged one.

        Raises:
            VersionMismatch: The newest valid checkpoint has a different format version; falling back further would
                silently lose training.
            TornCheckpoint: All checkpoints are damaged; starting from scratch would silently lose training.
        """
        refused: list[str] = []
        for number in reversed(self.numbers()):
            try:
                return self.load(number), refused
            except TornCheckpoint as error:
                refused.append(str(error))
        if refused:
            raise TornCheckpoint(f"{self.path}: all checkpoints are damaged: {'; '.join(refused)}")
        return None, refused

    def _place(self, number: int) -> Path:
        return self.path / f"{number:08d}"

    def _sweep(self) -> None:
        """Remove temporary files of killed writers; a run folder has one writer at a time."""
        if self.path.is_dir():
            for leftover in self.path.glob(".*.partial"):
                _remove(leftover)


def write_arrays(folder: Path, snapshot: Snapshot) -> None:
    """Write arrays and columns as files in a folder."""
    for name, arrays in snapshot.arrays.items():
        values = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        save_file(values, folder / f"{name}.safetensors")
    for group, columns in snapshot.columns.items():
        (folder / "tables" / group).mkdir(parents=True)
        for column, array in columns.items():
            write_array(folder / "tables" / group / f"{column}.npy", array)


def read_arrays(folder: Path, names: Iterable[str], number: int, state: dict[str, Any]) -> Snapshot:
    """Read verified files of a folder, the inverse of `write_arrays`."""
    arrays: dict[str, Columns] = {}
    columns: dict[str, Columns] = {}
    parts: dict[str, dict[str, Columns]] = {}
    for name in sorted(names):
        path = folder / name
        if found := _GROUP.fullmatch(name):
            arrays[found["group"]] = _load(path, load_file)
        elif found := _COLUMN.fullmatch(name):
            columns.setdefault(found["group"], {})[found["column"]] = _load(path, map_array)
        elif found := _PART.fullmatch(name):
            of_group = parts.setdefault(found["group"], {})
            of_group.setdefault(found["part"], {})[found["column"]] = _load(path, map_array)
        else:
            raise TornCheckpoint(f"{path}: has no arrays, expected .safetensors or .npy")
    in_order = {group: [of_group[part] for part in sorted(of_group)] for group, of_group in parts.items()}
    return Snapshot(number, state, arrays, columns, in_order)


def _load(path: Path, load: Callable[[Path], T]) -> T:
    try:
        return load(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise TornCheckpoint(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[0-9]{8,}", name) is not None and name == f"{int(name):08d}"


def _forget(place: Path) -> None:
    """Remove a checkpoint, if it exists. If killed meanwhile, no incomplete checkpoint stays under its name."""
    if os.path.lexists(place):
        hidden = place.with_name(f".{place.name}.{os.getpid()}.old.partial")
        place.rename(hidden)
        _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
