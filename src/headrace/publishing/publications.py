"""Publications: versions of a model, ready to be served, in a folder; see `docs/publishing.md` for the format.

A publication has the weights of all rows, as chains of segments, and the dense parameters of the same step. A reader
that has an earlier version needs only the segments after it::

    version 7:   base 1-4,  5-6,  7
    version 8:   base 1-4,  5-6,  7,  8         a reader at 6 takes 7 and 8; a new one takes all
    version 9:   base 1-8,  9                   a reader at 6 takes 9 from here, and 7 and 8 from the chain of version 8
"""

from __future__ import annotations

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

from pydantic import TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load_file

from headrace.embeddings.changes.chains import Chain, Chains, chains_of, chains_to_json
from headrace.embeddings.changes.delta import Columns
from headrace.embeddings.changes.merging import merged_blocks
from headrace.embeddings.changes.segment_folder import SegmentFolder
from headrace.embeddings.changes.segments import Segment
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, TornCheckpoint, VersionMismatch
from headrace.files import flush, writing
from headrace.manifest import FileEntry, Manifest
from headrace.publishing.needed_segments import segments_since

__all__ = ["DENSE", "JOB", "Changes", "Publication", "PublicationFolder"]

FORMAT = "headrace-publication"
VERSION = 2
READABLE = (1, 2)
"""Version 1 had int8 rows in columns of their own; without them it is the same."""

DENSE = "dense.safetensors"
"""File of the dense parameters and buffers of a publication, by name."""
JOB = "job.yaml"
"""File of the job: schema, features and model, which are needed to score rows."""

_NAME = re.compile(r"[0-9]{8,}")
_HEADERS: TypeAdapter[dict[str, tuple[TableGroupHeader, ...]]] = TypeAdapter(dict[str, tuple[TableGroupHeader, ...]])


@dataclass(frozen=True)
class Publication:
    """One version of a model.

    Attributes:
        version: Ascending within a lineage, from 1.
        lineage: Identifies the run. Versions of two lineages have nothing in common.
        step: Number of optimizer steps of the model.
        cut_at: When its rows were copied, in seconds since 1970.
        rows_changed: Rows in the segments of this version alone.
        tables: For each table group, the header of each part: tables with kind, size, scale of initial values and row
            format, seed, and under a budget the partition. With it, ids without a row can be answered too.
        chains: For each table group, the segments of each part, oldest first; see `Chain`. Numbers are versions.
        checkpoint: Fingerprint of the checkpoint with the same parameters; None if there is none.
        divisions: How the keys of table groups are divided into parts, if they are in shards.
        weights: How float32 weights are stored, in all segments of its chains; see `PublishConfig`.
        session: Identifies the process that cut it; empty if it is not known.
        files: Its other files by name, `DENSE` and `JOB`.
    """

    version: int
    lineage: str
    step: int
    cut_at: float
    rows_changed: int
    tables: dict[str, tuple[TableGroupHeader, ...]]
    chains: Chains
    checkpoint: str | None = None
    divisions: dict[str, Any] = field(default_factory=dict)
    weights: Literal["exact", "int8"] = "exact"
    session: str = ""
    files: dict[str, FileEntry] = field(default_factory=dict)

    def to_content(self) -> dict[str, Any]:
        """The JSON-able content of the manifest."""
        return {
            "number": self.version,
            "lineage": self.lineage,
            "step": self.step,
            "cut_at": self.cut_at,
            "rows_changed": self.rows_changed,
            "checkpoint": self.checkpoint,
            "divisions": self.divisions,
            "weights": self.weights,
            "session": self.session,
            "tables": {name: [asdict(header) for header in parts] for name, parts in self.tables.items()},
            "chains": chains_to_json(self.chains),
        }

    @classmethod
    def of_manifest(cls, manifest: Manifest) -> Publication:
        """The publication of a manifest.

        Raises:
            ValueError: The content is not that of a publication; the text has the first mistake.
            VersionMismatch: Its int8 rows are of an earlier version of the format.
        """
        content = dict(manifest.content)
        if manifest.version < VERSION and content.get("weights") == "int8":
            given = f"version {content.get('number')}: has int8 rows of {FORMAT} version {manifest.version}"
            raise VersionMismatch(f"{given}, expected version {VERSION}; delete the folder to publish it again")
        try:
            tables = _HEADERS.validate_python(content.pop("tables", None))
            chains = chains_of(content.pop("chains", None))
            content["version"] = content.pop("number", None)
            found = _PUBLICATION.validate_python(content | {"tables": {}, "chains": {}})
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            raise ValueError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from error
        shapes = [{name: len(parts) for name, parts in each.items()} for each in (tables, chains)]
        if shapes[0] != shapes[1]:
            raise ValueError(f"chains of {shapes[1]} parts, expected {shapes[0]}")
        wrong = [
            entry.name for parts in chains.values() for chain in parts for entry in chain if entry.last > found.version
        ]
        if wrong:
            raise ValueError(f"segment {wrong[0]} of a later version, expected up to {found.version}")
        return replace(found, tables=tables, chains=chains, files=dict(manifest.files))


_PUBLICATION: TypeAdapter[Publication] = TypeAdapter(Publication)


@dataclass(frozen=True)
class Changes:
    """What a reader has to apply to get a version.

    Attributes:
        is_everything: Whether these are all rows, because the reader's version is too old; rows that it has, and that
            are not among them, are gone.
        blocks: Table group, section (`removed` or `rows`) and columns of each block. `removed` of a table group come
            before its `rows`, where some of its ids may be again. Otherwise each id occurs once. Columns are `tables`
            int32 [R], `ids` int64 [R], and of rows `weights`: float32 [R, D], or as they are stored in tables of other
            row formats, see `tables.state`.
    """

    is_everything: bool
    blocks: Iterator[tuple[str, str, Columns]]


class PublicationFolder:
    """Publications in a folder: `00000042/` with manifest and dense parameters, and `segments/<table group>/*.rows`.

    One process writes; others may read meanwhile. Files never change, so they can be passed on as they are.
    Thread-safe.

    Args:
        path: The folder; it is created with the first publication.
        keep: Number of newest versions to keep.

    Attributes:
        path: The folder.
        segments: The segments.
        pinned: Versions that are kept although they are older.
    """

    def __init__(self, path: str | Path, *, keep: int = 100) -> None:
        self.path = Path(path)
        self.keep = keep
        self.segments = SegmentFolder(self.path)
        self.pinned: frozenset[int] = frozenset()
        self._lock = threading.Lock()
        self._chains: dict[int, Chains] = {}  # of versions that were read

    def versions(self) -> list[int]:
        """Versions in the folder, ascending, without checking for damage."""
        try:
            return sorted(int(name) for name in os.listdir(self.path) if _NAME.fullmatch(name))
        except FileNotFoundError:
            return []
        except OSError as error:
            raise CheckpointError(f"{self.path}: cannot be read: {error.strerror}") from error

    def place(self, version: int) -> Path:
        """Folder of a version."""
        return self.path / f"{version:08d}"

    def load(self, version: int, *, check_files: bool = True) -> Publication:
        """Read a version. Its segments are checked when they are read.

        Args:
            version: The version.
            check_files: Whether to also check its other files.

        Raises:
            TornCheckpoint: It is missing, or damaged.
            VersionMismatch: It has another version of the format.
        """
        folder = self.place(version)
        manifest = Manifest.read(folder, FORMAT, *READABLE)
        try:
            publication = Publication.of_manifest(manifest)
        except ValueError as error:
            raise TornCheckpoint(f"{folder}: {error}") from error
        if publication.version != version:
            raise TornCheckpoint(f"{folder}: is of version {publication.version}, expected {version}")
        if check_files:
            manifest.check_files(folder)
        self._chains[version] = publication.chains
        return publication

    def newest(self) -> Publication | None:
        """The newest version that is not damaged; its segments are not checked."""
        for version in reversed(self.versions()):
            try:
                return self.load(version)
            except TornCheckpoint:
                continue
        return None

    def dense(self, publication: Publication) -> Columns:
        """The dense parameters and buffers by name.

        Raises:
            TornCheckpoint: The file cannot be read.
        """
        path = self.place(publication.version) / DENSE
        try:
            arrays: Columns = load_file(path)
        except (OSError, SafetensorError) as error:
            raise TornCheckpoint(f"{path}: cannot be read: {error}") from error
        return arrays

    def add(self, version: int, write: Callable[[Path], Publication]) -> Publication:
        """Add a version, which appears when all its files are on disk, and delete the oldest beyond `keep`.

        Args:
            version: The version.
            write: Writes files into a given folder, and the segments; returns the publication, without `files`.

        Raises:
            CheckpointError: It cannot be written; nothing incomplete stays visible.
        """
        final = self.place(version)
        temporary = self.path / f".{final.name}.{os.getpid()}.partial"
        try:
            with writing(final, CheckpointError):
                shutil.rmtree(temporary, ignore_errors=True)
                temporary.mkdir(parents=True)
                publication = write(temporary)
                assert publication.version == version
                Manifest.write(temporary, FORMAT, VERSION, publication.to_content())
                files = dict(Manifest.read(temporary, FORMAT, VERSION).files)
                temporary.rename(final)
                flush(self.path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._chains[version] = publication.chains
        self.delete_beyond_keep()
        return replace(publication, files=files)

    def delete_beyond_keep(self) -> None:
        """Delete the oldest versions, and segments that no version names."""
        with self._lock:
            versions = self.versions()
            kept = {*versions[-self.keep :], *self.pinned}
            for version in versions:
                if version not in kept:
                    self._remove(version)
            try:
                chains = [self._chains_of(version) for version in versions if version in kept]
            except CheckpointError:
                return  # nobody knows what a damaged manifest names
            self.segments.delete_unused(chains)

    def _remove(self, version: int) -> None:
        self._chains.pop(version, None)
        hidden = self.path / f".{version:08d}.gone"
        try:
            self.place(version).rename(hidden)  # at once, for other processes
        except OSError:
            return
        shutil.rmtree(hidden, ignore_errors=True)

    def remove(self, version: int) -> None:
        """Take a version out, for example because it is damaged; its segments stay until the next one is added."""
        with self._lock:
            self._remove(version)

    def sweep(self) -> None:
        """Remove what killed writers left; for the process that writes."""
        for leftover in [*self.path.glob(".*.partial"), *self.path.glob(".*.gone")]:
            shutil.rmtree(leftover, ignore_errors=True)

    def needed(self, publication: Publication, since: int) -> Chains | None:
        """The segments, oldest first, that a reader of version `since` lacks; None if it needs all those of the chains.

        Args:
            publication: The version that it wants.
            since: Its version, of the same lineage; 0 for none.
        """

        def chain_at(name: str, part: int, version: int) -> Chain | None:
            try:
                parts = self._chains_of(version).get(name, ())
            except CheckpointError:
                return None
            return parts[part] if len(parts) == len(publication.chains[name]) else None

        found: Chains = {}
        for name, parts in publication.chains.items():
            of_parts = []
            for part, chain in enumerate(parts):
                of_part = segments_since(chain, since, partial(chain_at, name, part))
                if of_part is None:
                    return None
                of_parts.append(of_part)
            found[name] = tuple(of_parts)
        return found

    def changes(self, publication: Publication, since: int) -> Changes:
        """What changed between two versions, or everything if the earlier one is too old.

        Args:
            publication: The later version.
            since: The earlier version, of the same lineage; 0 for none.

        Raises:
            TornCheckpoint: A segment is missing or damaged, also while the blocks are taken; the text has the place.
        """
        needed = self.needed(publication, since)
        chains = publication.chains if needed is None else needed
        return Changes(needed is None, self._blocks(chains, everything=needed is None))

    def _blocks(self, chains: Chains, *, everything: bool) -> Iterator[tuple[str, str, Columns]]:
        for name, parts in chains.items():
            for chain in parts:
                segments = [Segment(self.segments.place(name), entry) for entry in chain]
                for section in ("rows",) if everything else ("removed", "rows"):
                    for block in merged_blocks(segments, section):
                        yield name, section, block

    def _chains_of(self, version: int) -> Chains:
        if version not in self._chains:
            self.load(version, check_files=False)
        return self._chains[version]
