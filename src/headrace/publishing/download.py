"""`Download`: fetches one version from a source into a folder of publications; checks it, and resumes partial files."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.segments import Segment, SegmentEntry
from headrace.errors import CheckpointError, HeadraceError, TornCheckpoint
from headrace.files import flush, writing
from headrace.manifest import MANIFEST, FileEntry, Manifest, file_checksum
from headrace.publishing.client import ServerStatus
from headrace.publishing.needed_segments import segments_since
from headrace.publishing.publications import FORMAT, READABLE, Publication, PublicationFolder

__all__ = ["Download", "Source"]


class Source(Protocol):
    """A publisher or replica from which versions can be fetched, see `PublicationClient`; any number of threads may
    call it. All methods raise `PublishingError` if it does not answer, or refuses.

    Attributes:
        address: Address "host:port".
    """

    address: str

    def wait(self, after: int, *, timeout_s: float) -> ServerStatus:
        """Its versions, as soon as there is one after `after`, or after a time."""

    def manifest(self, version: int) -> bytes:
        """The manifest of a version."""

    def read(self, file: str, offset: int = 0) -> Iterator[bytes]:
        """A file from an offset on, by its path below the folder of publications."""


class Download:
    """Fetches versions into a folder.

    Chains continue those of the folder: only segments with changes after its newest version are fetched, never merged
    ones of which it has the parts. The folder has to merge its own.

    Args:
        folder: The folder.

    Attributes:
        num_bytes: Bytes fetched so far from each source.
    """

    def __init__(self, folder: PublicationFolder) -> None:
        self.folder = folder
        self.num_bytes: dict[str, int] = {}
        self._scratch = folder.path / ".fetch"

    def fetch(self, source: Source, version: int, mine: Publication | None, newest_chains: Chains) -> Publication:
        """Fetch a version, which appears in the folder when it is complete.

        Args:
            source: From whom.
            version: The version.
            mine: The newest version of the folder; None if it is empty.
            newest_chains: Its chains, with merges since.

        Raises:
            PublishingError: The source does not answer; what was fetched is kept for the next attempt.
            TornCheckpoint: What it sent is damaged, or of another lineage.
            CheckpointError: The version cannot be written.
        """
        theirs = self._publication(source, version)
        if mine is not None and theirs.lineage != mine.lineage:
            raise TornCheckpoint(
                f"{source.address}: has versions of run {theirs.lineage[:8]}, expected {mine.lineage[:8]}; "
                "use a new folder to follow another run"
            )
        needed = None if mine is None else self._needed(source, theirs, mine.version)
        chains = theirs.chains if needed is None else _continued(newest_chains, needed)
        fetched = [
            (name, entry)
            for name, parts in (theirs.chains if needed is None else needed).items()
            for chain in parts
            for entry in chain
        ]
        for _, entry in fetched:
            self.folder.segments.reserve_name(entry.name)
        try:
            for name, entry in fetched:
                self._fetch_segment(source, name, entry)
            return self._add(source, replace(theirs, chains=chains))
        finally:
            for _, entry in fetched:
                self.folder.segments.forget_name(entry.name)

    def _publication(self, source: Source, version: int) -> Publication:
        place = self._scratch / f"manifest-{version:08d}"
        with writing(place, CheckpointError):
            place.mkdir(parents=True, exist_ok=True)
            (place / MANIFEST).write_bytes(source.manifest(version))
        try:
            return Publication.of_manifest(Manifest.read(place, FORMAT, *READABLE))
        except (TornCheckpoint, ValueError) as error:
            raise TornCheckpoint(f"{source.address}: version {version}: {error}") from error
        finally:
            shutil.rmtree(place, ignore_errors=True)

    def _needed(self, source: Source, theirs: Publication, since: int) -> Chains | None:
        """The segments with changes after a version; None if all of the chains are needed."""
        between: dict[int, Publication | None] = {}

        def publication_at(version: int) -> Publication | None:
            if version not in between:
                try:
                    between[version] = self._publication(source, version)
                except HeadraceError:
                    between[version] = None  # it is too old for the source
            return between[version]

        def chain_at(name: str, part: int) -> Callable[[int], Chain | None]:
            def find(version: int) -> Chain | None:
                publication = publication_at(version)
                parts = () if publication is None else publication.chains.get(name, ())
                return parts[part] if part < len(parts) else None

            return find

        needed: Chains = {}
        for name, parts in theirs.chains.items():
            found = [segments_since(chain, since, chain_at(name, part)) for part, chain in enumerate(parts)]
            if any(each is None for each in found):
                return None
            needed[name] = tuple(each for each in found if each is not None)
        return needed

    def _fetch_segment(self, source: Source, table_group: str, entry: SegmentEntry) -> None:
        place = self.folder.segments.place(table_group)
        if (place / entry.name).exists():
            return
        partial = self._scratch / entry.name
        self._fetch_file(source, f"segments/{table_group}/{entry.name}", partial, entry.bytes)
        try:
            Segment(self._scratch, entry).check()
        except TornCheckpoint as error:
            partial.unlink(missing_ok=True)
            raise TornCheckpoint(f"{source.address}: {error}") from error
        with writing(place / entry.name, CheckpointError):
            place.mkdir(parents=True, exist_ok=True)
            flush(partial)
            partial.replace(place / entry.name)
            flush(place)

    def _fetch_file(self, source: Source, name: str, partial: Path, num_bytes: int) -> None:
        """Fetch a file, or the rest of it; what is there stays if the source is lost."""
        with writing(partial, CheckpointError):
            partial.parent.mkdir(parents=True, exist_ok=True)
            with partial.open("ab") as file:
                offset = file.tell()
                if offset < num_bytes:
                    for data in source.read(name, offset):
                        file.write(data)
                        self.num_bytes[source.address] = self.num_bytes.get(source.address, 0) + len(data)
        size = partial.stat().st_size
        if size != num_bytes:
            partial.unlink()
            raise TornCheckpoint(f"{source.address}: {name}: has {size} bytes, expected {num_bytes}")

    def _add(self, source: Source, publication: Publication) -> Publication:
        def write(place: Path) -> Publication:
            for name, entry in publication.files.items():
                self._fetch_whole(source, publication.version, name, entry).replace(place / name)
            return publication

        added = self.folder.add(publication.version, write)
        shutil.rmtree(self._scratch, ignore_errors=True)
        return added

    def _fetch_whole(self, source: Source, version: int, name: str, entry: FileEntry) -> Path:
        partial = self._scratch / f"{version:08d}-{name}"
        self._fetch_file(source, f"{version:08d}/{name}", partial, entry.bytes)
        found = file_checksum(partial)
        if found != entry.sha256:
            partial.unlink()
            raise TornCheckpoint(
                f"{source.address}: {version:08d}/{name}: has SHA-256 {found[:12]}..., expected {entry.sha256[:12]}..."
            )
        return partial


def _continued(chains: Chains, needed: Chains) -> Chains:
    return {
        name: tuple((*before, *after) for before, after in zip(chains[name], parts, strict=True))
        for name, parts in needed.items()
    }
