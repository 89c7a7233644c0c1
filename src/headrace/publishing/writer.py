"""`PublicationWriter`: writes publications in the background, while training goes on."""

from __future__ import annotations

import shutil
import uuid
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from safetensors.numpy import save_file

from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.segments import Segment, SegmentEntry, write_delta
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, HeadraceError, TornCheckpoint
from headrace.files import map_array
from headrace.publishing.config import PublishConfig
from headrace.publishing.forgotten import Cursor, forgotten_keys
from headrace.publishing.publications import DENSE, JOB, Publication, PublicationFolder
from headrace.publishing.published_chains import PublishedChains

__all__ = ["Cut", "PublicationWriter", "RowsInShards"]


@dataclass(frozen=True)
class Cut:
    """A model at a step, without the rows of its tables.

    Attributes:
        step: The step.
        dense: Copies of the dense parameters and buffers by name.
        job: The job as YAML.
        checkpoint: Fingerprint of the checkpoint with the same parameters, if there is one.
        cut_at: When it was made, in seconds since 1970.
        divisions: How table groups are divided into parts, if the rows are not in this process.
    """

    step: int
    dense: Columns
    job: str
    checkpoint: str | None
    cut_at: float
    divisions: dict[str, Any] = field(default_factory=dict)


class RowsInShards(Protocol):
    """The shards of a run, as the writer sees them; see `ShardedTables.publications`."""

    @property
    def divisions(self) -> dict[str, Any]:
        """How table groups are divided into parts."""

    @property
    def num_parts(self) -> dict[str, int]:
        """Number of parts of each table group."""

    def record_changes(self, number: int) -> None:
        """Record changes, so that the next version continues this one."""

    def take_deltas(self, number: int, step: int, *, saved: int | None, everything: Sequence[str]) -> None:
        """Copy what changed since a version."""

    def write_deltas(
        self, folder: Path, names: Mapping[str, Sequence[str]], *, as_int8: bool
    ) -> dict[str, list[SegmentEntry]]:
        """Write the copies."""


class PublicationWriter:
    """Writes one version at a time in a thread; another thread merges segments. A version that cannot be written is
    left out, and its changes are in the next one.

    Merged segments are named by later versions only, so that files never change.

    Args:
        folder: Where to write.
        config: How.

    Attributes:
        num_written: Versions written by this object.
        num_failed: Versions that could not be written.
        num_written_bytes: Bytes of their segments, without merges.
        num_merged_bytes: Bytes of segments written by merges.
        forgotten: For each table group and part, the keys (see `forgotten_keys`) in which the version that is continued
            may differ from the tables, beside what changes from now on.
    """

    def __init__(self, folder: PublicationFolder, config: PublishConfig) -> None:
        self.folder = folder
        self.num_written = self.num_failed = 0
        self.num_written_bytes = self.num_merged_bytes = 0
        self._config = config
        self._chains = PublishedChains(folder.segments, config.base_every)
        self.forgotten: dict[str, list[Columns]] = {}
        self._lineage = uuid.uuid4().hex
        self._session = uuid.uuid4().hex
        self._number = 0  # of the version that was started last
        self._continues: int | None = None  # the version up to which changes are acknowledged
        self._messages: deque[tuple[bool, str]] = deque()
        self._writing: Future[dict[str, int]] | None = None
        self._merging: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="publish")
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="publish-merge")

    def follow(
        self,
        checkpoint: str | None,
        num_parts: Mapping[str, int],
        divisions: Mapping[str, Any] | None = None,
        *,
        cursor: Cursor | None = None,
    ) -> int | None:
        """Continue the newest version in the folder, if it is that of the checkpoint that was loaded, or if it is known
        in which keys it may differ.

        Otherwise the next version, of the same lineage, has all rows: training may have forgotten steps that earlier
        versions have.

        Args:
            checkpoint: Its fingerprint; None without one.
            num_parts: Number of parts of each table group.
            divisions: How table groups are divided into parts, if they are in shards.
            cursor: What `cursor` was when the checkpoint was made; None if that is not known, or if nobody can tell the
                tables of `forgotten`.

        Returns:
            The version that is continued, with `forgotten`; None if there is none.

        Raises:
            CheckpointError: The folder cannot be read.
        """
        self.folder.sweep()
        newest = self.folder.newest()
        self._number = max(self.folder.versions(), default=0)
        if newest is None:
            return None
        self._lineage = newest.lineage
        parts = {name: len(each) for name, each in newest.chains.items()}
        is_same = checkpoint is not None and checkpoint == newest.checkpoint
        if newest.version != self._number or not (is_same or cursor):
            reason = "it is not that of the checkpoint"
        elif newest.weights != self._config.weights:
            reason = f"its weights are {newest.weights}"
        elif parts != dict(num_parts) or newest.divisions != dict(divisions or {}):
            reason = "its rows are divided in another way"
        else:
            reason = self._missing_segment(newest)
        if not reason and not is_same and cursor is not None:
            reason = self._find_forgotten(newest, cursor)
        if reason:
            self._warn(f"version {self._number} is not continued, the next one has all rows: {reason}")
            return None
        self._chains.follow(newest.chains)
        self._continues = newest.version
        return newest.version

    def _find_forgotten(self, newest: Publication, cursor: Cursor) -> str:
        """Set `forgotten`; returns why it is not known, if it is not."""
        try:
            keys, reason = forgotten_keys(self.folder, newest, cursor)
        except TornCheckpoint as error:
            return str(error)
        self.forgotten = keys or {}
        if keys is not None:
            count = sum(len(part["ids"]) for parts in keys.values() for part in parts)
            line = f"version {newest.version} has steps after the checkpoint; the next one takes {count:,} rows back"
            self._messages.append((False, line))
        return reason

    @property
    def cursor(self) -> Cursor:
        """Where this writer is, for `follow` after a checkpoint that is made now is loaded."""
        return Cursor(self._lineage, self._session, self._number)

    def _missing_segment(self, publication: Publication) -> str:
        """What is wrong with the segments of a version, as far as it is seen without reading them; "" if nothing is."""
        try:
            for name, parts in publication.chains.items():
                for entry in (entry for chain in parts for entry in chain):
                    Segment(self.folder.segments.place(name), entry)
        except TornCheckpoint as error:
            return str(error)
        return ""

    def has_base(self, table_group: str) -> bool:
        """Whether a delta can continue a chain; otherwise the next one needs everything."""
        return self._chains.has_base(table_group)

    def start_anew(self) -> None:
        """Have the next version begin new chains, because its rows do not follow those of the last one."""
        self._chains.needs_base |= set(self._chains.newest)

    @property
    def is_idle(self) -> bool:
        """Whether `settle` would not wait."""
        return self._writing is None or self._writing.done()

    def take_messages(self) -> list[tuple[bool, str]]:
        """Lines since the last call: about failures, which are for the user (True), and about merges (False)."""
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def _warn(self, line: str) -> None:
        self._messages.append((True, line))

    def start(self, cut: Cut, deltas: Mapping[str, Sequence[Delta]], shards: RowsInShards | None = None) -> None:
        """Start to write a version; `settle` must have been called after the one before. With shards, they copy now.

        Args:
            cut: The model; nobody changes it afterwards.
            deltas: What changed in each part of the table groups in this process, see `TableGroup.deltas`.
            shards: The shards that have the other table groups.
        """
        assert self._writing is None
        self._number += 1  # a number is never used twice, so that no shard takes one copy for another
        if shards is not None:
            everything = [name for name in shards.num_parts if not self.has_base(name)]
            shards.take_deltas(self._number, cut.step, saved=self._continues, everything=everything)
        self._writing = self._writer.submit(self._write, cut, deltas, shards)

    def settle(self) -> dict[str, int]:
        """Wait until the version that was started is complete, or has failed.

        Returns:
            The version of each table group in it, for `TableGroup.mark_saved`; empty if it failed.
        """
        writing, self._writing = self._writing, None
        if writing is None:
            return {}
        try:
            return writing.result()
        except HeadraceError as error:
            self.num_failed += 1
            self._warn(f"a version was not published, the next one has its changes: {error}")
            return {}

    def close(self) -> None:
        """Wait for the version that was started and for merges, and end the threads."""
        self.settle()
        self._writer.shutdown()
        self._merger.shutdown()

    def _write(self, cut: Cut, deltas: Mapping[str, Sequence[Delta]], shards: RowsInShards | None) -> dict[str, int]:
        number, segments = self._number, self.folder.segments
        counts = {name: len(parts) for name, parts in deltas.items()} if shards is None else shards.num_parts
        names = {
            name: [segments.new_name(number, number, _part(part, count)) for part in range(count)]
            for name, count in counts.items()
        }

        def write(place: Path) -> Publication:
            save_file(cut.dense, place / DENSE)
            (place / JOB).write_text(cut.job, encoding="utf-8")
            if shards is None:
                entries, headers = self._write_segments(names, deltas, number)
            else:
                entries = shards.write_deltas(place, names, as_int8=self._config.weights == "int8")
                headers = _take_headers(place, counts)
            chains = self._chains.continued(entries)
            rows = sum(entry.rows for parts in entries.values() for entry in parts)
            divisions = cut.divisions if shards is None else shards.divisions
            about = number, self._lineage, cut.step, cut.cut_at, rows
            return Publication(
                *about,
                headers,
                chains,
                checkpoint=cut.checkpoint,
                divisions=divisions,
                weights=self._config.weights,
                session=self._session,
            )

        try:
            with self._chains.naming:
                written = self.folder.add(number, write)
                self.num_written_bytes += self._chains.has_written(written.chains)
                self._continues = number
        finally:
            for name in (name for of_group in names.values() for name in of_group):
                segments.forget_name(name)
        self.num_written += 1
        if self._merging is None or self._merging.done():
            self._merging = self._merger.submit(self._merge)
        return {name: parts[0].version for name, parts in deltas.items()}

    def _write_segments(
        self, names: Mapping[str, Sequence[str]], deltas: Mapping[str, Sequence[Delta]], number: int
    ) -> tuple[dict[str, list[SegmentEntry]], dict[str, tuple[TableGroupHeader, ...]]]:
        entries: dict[str, list[SegmentEntry]] = {}
        as_int8 = self._config.weights == "int8"
        for table_group, parts in deltas.items():
            place, entries[table_group] = self.folder.segments.place(table_group), []
            for name, delta in zip(names[table_group], parts, strict=True):
                entries[table_group].append(write_delta(place / name, delta, first=number, as_int8=as_int8))
        headers = {name: tuple(TableGroupHeader.read(each.whole) for each in parts) for name, parts in deltas.items()}
        return entries, headers

    def _merge(self) -> None:
        """Merge segments until there are none to merge."""
        while plan := self._chains.next_merge():
            name, merged, reason = plan
            try:
                entry = self._chains.merge(name, merged)
            except TornCheckpoint as error:
                self._chains.needs_base.add(name)
                self._warn(f"{error}; the next version has all rows")
                return
            except CheckpointError as error:
                self._warn(f"segments were not merged: {error}")
                return
            self.num_merged_bytes += entry.bytes
            self._messages.append((False, f"{name}: merged {len(merged)} segments into {entry.name}: {reason}"))


def _part(part: int, count: int) -> str:
    return "" if count == 1 else f"shard-{part:04d}-of-{count:04d}"


def _take_headers(place: Path, counts: Mapping[str, int]) -> dict[str, tuple[TableGroupHeader, ...]]:
    """The headers that shards wrote into the folder of a version, which goes on without them."""
    headers: dict[str, tuple[TableGroupHeader, ...]] = {}
    for name in counts:
        paths = sorted((place / "tables" / name).glob("*/header.npy"))
        columns: list[dict[str, Any]] = [{"header": map_array(path)} for path in paths]
        headers[name] = tuple(TableGroupHeader.read(each) for each in columns)
    shutil.rmtree(place / "tables")
    return headers
