"""Checkpoints on disk: appear whole or not at all, are checked when read, and hold no pickle."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from headrace.errors import CheckpointError, TornCheckpoint
from headrace.files import flush, write_array, writing
from headrace.manifest import Manifest
from headrace.messages import shorten_list
from headrace.paths import local_path

__all__ = ["CheckpointFolder", "Snapshot", "read_arrays", "write_arrays"]

FORMAT = "headrace-checkpoint"
VERSION = 2

_GROUP = re.compile(r"(?P<group>[^/]+)\.safetensors")
_COLUMN = re.compile(r"tables/(?P<group>[^/]+)/(?P<column>[^/]+)\.npy")
_PART = re.compile(r"tables/(?P<group>[^/]+)/(?P<part>[^/]+)/(?P<column>[^/]+)\.npy")

Columns = dict[str, NDArray[Any]]
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """Everything a job needs to go on, as plain values and named arrays.

    Attributes:
        number: Which checkpoint of the run this is, from 1 on; names it.
        state: Values that JSON can hold: cursor, window in progress, pipeline token, counts.
        arrays: Small arrays by group and name, for instance `{"dense": {"top.0.weight": ...}}`; one safetensors file a
            group.
        columns: Large arrays by table group and column, such as `{"dim16": {"rows": ...}}`; one `.npy` file a column.
        parts: The same of groups whose rows live in shards, one dictionary of columns a shard; see `tables.parts`.
    """

    number: int
    state: dict[str, Any]
    arrays: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    columns: dict[str, dict[str, NDArray[Any]]] = field(default_factory=dict)
    parts: dict[str, list[dict[str, NDArray[Any]]]] = field(default_factory=dict)


class CheckpointFolder:
    """The checkpoints of one run, oldest first, each a folder named by its number.

    A checkpoint is written beside its place under a temporary name, flushed to disk, and appears by one rename. Its
    manifest lists every file with size and SHA-256 and has a checksum of its own, so a checkpoint that was damaged is
    refused, never half used. Only listed files are opened. See `docs/checkpoints.md` for the format.
    """

    def __init__(self, path: str | Path, *, keep: int = 3) -> None:
        """Use a folder for checkpoints; it is made when the first one is written.

        Args:
            path: Folder of the checkpoints.
            keep: How many of the newest to keep; at least 2, so that a torn one always has one before it.
        """
        self.path = local_path(path, where="checkpoints")
        self.keep = max(2, keep)

    def numbers(self) -> list[int]:
        """Numbers of the checkpoints at hand, rising; not checked for damage. Other names do not matter.

        Raises:
            CheckpointError: The place is taken by something that is not a folder, such as a broken link.
        """
        if not self.path.is_dir():
            if os.path.lexists(self.path):
                raise CheckpointError(f"{self.path}: is not a folder, expected the run's checkpoint folder")
            return []
        return sorted(int(name) for name in os.listdir(self.path) if _is_name(name))

    def save(self, snapshot: Snapshot, write_parts: Callable[[Path], object] | None = None) -> Path:
        """Write a checkpoint and forget the oldest beyond `keep`.

        Args:
            snapshot: What it holds.
            write_parts: Writes further files into the folder it is given, such as shards' parts of table groups.

        Raises:
            CheckpointError: If the disk does not take it; nothing half-written stays visible.
        """
        final = self._place(snapshot.number)
        temporary = self.path / f".{final.name}.{os.getpid()}.partial"
        try:
            with writing(final, CheckpointError):
                self._sweep()
                temporary.mkdir(parents=True)
                write_arrays(temporary, snapshot)
                if write_parts is not None:
                    write_parts(temporary)
                content = {"number": snapshot.number, "state": snapshot.state}
                Manifest.write(temporary, FORMAT, VERSION, content)
                _forget(final)
                temporary.rename(final)
                flush(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        for number in self.numbers()[: -self.keep]:
            _forget(self._place(number))
        return final

    def load(self, number: int) -> Snapshot:
        """Read and check one checkpoint.

        Raises:
            CheckpointError: There is none of that number, or it may not be read.
            TornCheckpoint: The manifest or a file is missing or does not match its checksum; both sides are in the
                text.
            VersionMismatch: It was written in another version of the format.
        """
        folder = self._place(number)
        if number not in self.numbers():
            numbers = shorten_list(map(str, self.numbers())) or "none"
            raise CheckpointError(f"{self.path}: there is no checkpoint {number}, expected one of: {numbers}")
        manifest = Manifest.read(folder, FORMAT, VERSION)
        given, state = manifest.content.get("number"), manifest.content.get("state")
        if given != number or not isinstance(state, dict):
            raise TornCheckpoint(f"{folder}: its manifest belongs to checkpoint {given}, expected {number}")
        manifest.check_files(folder)
        return read_arrays(folder, manifest.files, number, state)

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
            raise TornCheckpoint(f"{self.path}: all checkpoints are damaged: {'; '.join(refused)}")
        return None, refused

    def _place(self, number: int) -> Path:
        return self.path / f"{number:08d}"

    def _sweep(self) -> None:
        """Remove what killed writers left behind; one run folder has one writer at a time."""
        if self.path.is_dir():
            for leftover in self.path.glob(".*.partial"):
                _remove(leftover)


def write_arrays(folder: Path, snapshot: Snapshot) -> None:
    """Write arrays and columns as files of a folder."""
    for name, arrays in snapshot.arrays.items():
        values = {key: np.ascontiguousarray(array) for key, array in arrays.items()}
        save_file(values, folder / f"{name}.safetensors")
    for group, columns in snapshot.columns.items():
        (folder / "tables" / group).mkdir(parents=True)
        for column, array in columns.items():
            write_array(folder / "tables" / group / f"{column}.npy", array)


def read_arrays(folder: Path, names: Iterable[str], number: int, state: dict[str, Any]) -> Snapshot:
    """What checked files of a folder hold; undoes `write_arrays`."""
    arrays: dict[str, Columns] = {}
    columns: dict[str, Columns] = {}
    parts: dict[str, dict[str, Columns]] = {}
    for name in sorted(names):
        path = folder / name
        if found := _GROUP.fullmatch(name):
            arrays[found["group"]] = _load(path, load_file)
        elif found := _COLUMN.fullmatch(name):
            columns.setdefault(found["group"], {})[found["column"]] = _load(path, _map_array)
        elif found := _PART.fullmatch(name):
            of_group = parts.setdefault(found["group"], {})
            of_group.setdefault(found["part"], {})[found["column"]] = _load(path, _map_array)
        else:
            raise TornCheckpoint(f"{path}: has no arrays, expected .safetensors or .npy")
    in_order = {group: [of_group[part] for part in sorted(of_group)] for group, of_group in parts.items()}
    return Snapshot(number, state, arrays, columns, in_order)


def _map_array(path: Path) -> NDArray[Any]:
    array: NDArray[Any] = np.lib.format.open_memmap(path, mode="r")  # of numbers, and never of an archive
    return array


def _load(path: Path, load: Callable[[Path], T]) -> T:
    try:
        return load(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise TornCheckpoint(f"{path}: cannot be read: {' '.join(str(error).split())}") from error


def _is_name(name: str) -> bool:
    return re.fullmatch(r"[0-9]{8,}", name) is not None and name == f"{int(name):08d}"


def _forget(place: Path) -> None:
    """Remove a checkpoint, if there is one; killed meanwhile, it leaves no half of it under its name."""
    if os.path.lexists(place):
        hidden = place.with_name(f".{place.name}.{os.getpid()}.old.partial")
        place.rename(hidden)
        _remove(hidden)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
