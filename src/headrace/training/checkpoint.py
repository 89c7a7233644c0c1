"""Checkpoints on disk: appear whole or not at all, are checked when read, and hold no pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

from headrace.errors import CheckpointError, TornCheckpoint, VersionMismatch

__all__ = ["CheckpointFolder", "Snapshot", "file_checksum"]

FORMAT = "headrace-checkpoint"
VERSION = 1
MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Snapshot:
    """Everything a job needs to go on, as plain values and named arrays.

    Attributes:
        number: Which checkpoint of the run this is, from 1 on; names it.
        state: Values that JSON can hold: cursor, window in progress, pipeline token, counts.
        arrays: Small arrays by group and name, for instance `{"dense": {"top.0.weight": ...}}`; one safetensors file a
            group.
        columns: Large arrays by table and column, for instance `{"dim16": {"rows": ...}}`; one `.npy` file a column.
        parts: The same of tables whose rows live in shards, one dictionary of columns a shard; see `table_parts`.
    """

    number: int
    state: dict[str, Any]
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    columns: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    parts: dict[str, list[dict[str, NDArray[Any]]]] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run, oldest first, each a folder named by its number.

    A checkpoint is written beside its place under a temporary name, flushed to disk, and appears by one rename. Its
    manifest lists every file with size and SHA-256, so a checkpoint that lost a part is refused, never half used. See
    `docs/checkpoints.md` for the format.
    """

    def __init__(self, path: str | Path, *, keep: int = 3) -> None:
        """Use a folder for checkpoints; it is made when the first one is written.

        Args:
            path: Folder of the checkpoints.
            keep: How many of the newest to keep; at least 2, so that a torn one always has one before it.
        """
        self.path = Path(path)
        self.keep = max(2, keep)

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints at hand, rising; not checked for damage."""
        if not self.path.is_dir():
            return []
        return sorted(int(entry.name) for entry in self.path.iterdir() if entry.name.isdigit())

    def save(self, snapshot: Snapshot, write_parts: Callable[[Path], object] | None = None) -> Path:
        """Write a checkpoint and forget the oldest beyond `keep`.

        Args:
            snapshot: What it holds.
            write_parts: Writes further files into the folder it is given, such as shards' parts of tables.

        Raises:
            CheckpointError: If the disk does not take it; nothing half-written stays visible.
        """
        final = self._place(snapshot.number)
        temporary = self.path / f".{final.name}.{os.getpid()}.partial"
        try:
            self._sweep()
            temporary.mkdir(parents=True)
            for name, arrays in snapshot.arrays.items():
                save_file(
                    {key: np.ascontiguousarray(array) for key, array in arrays.items()},
                    temporary / f"{name}.safetensors",
                )
            for table, columns in snapshot.columns.items():
                (temporary / "tables" / table).mkdir(parents=True)
                for column, array in columns.items():
                    np.save(temporary / "tables" / table / f"{column}.npy", array, allow_pickle=False)
            if write_parts is not None:
                write_parts(temporary)
            _write_manifest(temporary, snapshot)
            if final.exists():  # torn, and taken back when the run was resumed
                shutil.rmtree(final)
            temporary.rename(final)
            _flush(self.path)
        except OSError as error:
            raise CheckpointError(f"{final}: cannot be written: {error.strerror or error}") from error
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for number in self.numbers()[: -self.keep]:
            shutil.rmtree(self._place(number))
        return final

    def load(self, number: int) -> Snapshot:
        """Read and check one checkpoint.

        Raises:
            CheckpointError: There is none of that number.
            TornCheckpoint: A file is missing, or its size or checksum is not the manifest's; both are in the text.
            VersionMismatch: It was written in another version of the format.
        """
        folder = self._place(number)
        if not folder.is_dir():
            numbers = ", ".join(map(str, self.numbers())) or "none"
            raise CheckpointError(f"{self.path}: there is no checkpoint {number}, expected one of: {numbers}")
        manifest = _read_manifest(folder)
        _check_files(folder, manifest["files"])
        arrays = {p.stem: load_file(p) for p in sorted(folder.glob("*.safetensors"))}
        columns: dict[str, dict[str, NDArray[Any]]] = {}
        for path in sorted(folder.glob("tables/*/*.npy")):
            columns.setdefault(path.parent.name, {})[path.stem] = np.load(path, mmap_mode="r", allow_pickle=False)
        parts: dict[str, list[dict[str, NDArray[Any]]]] = {}
        for part in sorted(folder.glob("tables/*/*/")):
            loaded = {p.stem: np.load(p, mmap_mode="r", allow_pickle=False) for p in sorted(part.glob("*.npy"))}
            parts.setdefault(part.parent.name, []).append(loaded)
        return Snapshot(manifest["number"], manifest["state"], arrays, columns, parts)

    def load_latest(self) -> tuple[Snapshot | None, list[str]]:
        """The newest checkpoint that is whole, and a line for each newer one that was refused.

        Raises:
            VersionMismatch: The newest whole checkpoint was written by another version; going back further would
                silently lose training.
            TornCheckpoint: There are checkpoints, but none is whole; starting anew would silently lose training.
        """
        refused: list[str] = []
        for number in reversed(self.numbers()):
            try:
                return self.load(number), refused
            except TornCheckpoint as error:
                refused.append(str(error))
        if refused:
            raise TornCheckpoint(f"{self.path}: no checkpoint is whole: {'; '.join(refused)}")
        return None, refused

    def _place(self, number: int) -> Path:
        return self.path / f"{number:08d}"

    def _sweep(self) -> None:
        """Remove what killed writers left behind; one run folder has one writer at a time."""
        if self.path.is_dir():
            for leftover in self.path.glob(".*.partial"):
                shutil.rmtree(leftover)


def _write_manifest(folder: Path, snapshot: Snapshot) -> None:
    files = {}
    for path in _files(folder):
        files[str(path.relative_to(folder))] = {"bytes": path.stat().st_size, "sha256": file_checksum(path)}
        _flush(path)
    manifest = {
        "format": FORMAT,
        "version": VERSION,
        "number": snapshot.number,
        "files": files,
        "state": snapshot.state,
        "state_sha256": _state_checksum(snapshot.state),
    }
    path = folder / MANIFEST
    path.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
    _flush(path)
    for parent in {p.parent for p in _files(folder)} | {folder}:
        _flush(parent)


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise TornCheckpoint(f"{folder}: has no {MANIFEST}") from error
    except ValueError as error:
        raise TornCheckpoint(f"{path}: is not JSON: {error}") from error
    given = (manifest.get("format"), manifest.get("version"))
    if given != (FORMAT, VERSION):
        raise VersionMismatch(f"{folder}: is {given[0]} version {given[1]}, expected {FORMAT} version {VERSION}")
    if _state_checksum(manifest["state"]) != manifest["state_sha256"]:
        raise TornCheckpoint(f"{path}: state does not match its checksum")
    return dict(manifest)


def _check_files(folder: Path, files: dict[str, dict[str, Any]]) -> None:
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            raise TornCheckpoint(f"{path}: is missing, expected {expected['bytes']} bytes")
        size = path.stat().st_size
        if size != expected["bytes"]:
            raise TornCheckpoint(f"{path}: has {size} bytes, expected {expected['bytes']}")
        found = file_checksum(path)
        if found != expected["sha256"]:
            raise TornCheckpoint(f"{path}: has SHA-256 {found[:12]}..., expected {expected['sha256'][:12]}...")
    unknown = {str(p.relative_to(folder)) for p in _files(folder)} - set(files) - {MANIFEST}
    if unknown:
        raise TornCheckpoint(f"{folder}: holds files its manifest does not list: {', '.join(sorted(unknown))}")


def _files(folder: Path) -> Iterator[Path]:
    return (path for path in sorted(folder.rglob("*")) if path.is_file())


def file_checksum(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_checksum(state: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(state, sort_keys=True).encode()).hexdigest()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
