"""`CheckpointWriter`: writes checkpoints in the background, and merges the segments of delta checkpoints."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal, Protocol

from pydantic import Field

from headrace.config import Config, whole_number_or
from headrace.embeddings.changes.chains import Chain, Chains
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.growing_chains import GrowingChains
from headrace.embeddings.changes.segments import SegmentEntry, write_delta
from headrace.embeddings.tables.partitions import joined_columns
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, TornCheckpoint
from headrace.training.checkpoint import CheckpointFolder, Snapshot

__all__ = ["CheckpointWriter", "CheckpointsConfig", "RowsOfShards"]


class CheckpointsConfig(Config):
    """How checkpoints are written."""

    kind: Literal["delta", "whole"] = "delta"
    """delta writes the rows that changed since the previous checkpoint, in the background; whole writes all rows, and
    checkpoints share no files."""
    base_every: Annotated[int | Literal["auto"], whole_number_or("auto", at_least=1)] = "auto"
    """Checkpoints after which segments are merged into a new base; `auto` merges when they have half its bytes."""
    keep: int = Field(default=3, ge=2)
    """Number of newest checkpoints to keep; at least two, so that there is a fallback if one is damaged."""
    weights: Literal["exact", "int8"] = "exact"
    """exact resumes bit for bit; int8 stores float32 weights with an error of up to 1/253 of the row's maximum, and
    optimizer state as bf16."""


class RowsOfShards(Protocol):
    """The shards of a run, as the writer sees them; see `ShardedTables`."""

    @property
    def divisions(self) -> dict[str, Any]:
        """How table groups are divided into parts."""

    @property
    def num_parts(self) -> dict[str, int]:
        """Number of parts of each table group."""

    def record_changes(self) -> None:
        """Record changes, so that the next checkpoint continues the loaded one."""

    def take_deltas(self, number: int, step: int, *, saved: int | None, everything: Sequence[str]) -> None:
        """Copy what changed since a checkpoint."""

    def write_deltas(
        self, folder: Path, names: Mapping[str, Sequence[str]], *, as_int8: bool
    ) -> dict[str, list[SegmentEntry]]:
        """Write the copies."""


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread, while training goes on; another thread merges segments.

    Args:
        folder: Folder of the checkpoints.
        config: How checkpoints are written.

    Attributes:
        folder: Folder of the checkpoints.
        num_written_bytes: Bytes of segments written for checkpoints so far.
        num_merged_bytes: Bytes of segments written by merges.
    """

    def __init__(self, folder: CheckpointFolder, config: CheckpointsConfig) -> None:
        self.folder = folder
        self._messages: deque[str] = deque()
        self._config = config
        self._naming = threading.Lock()  # held while manifests and `_chains` change
        self._chains = GrowingChains(folder.segments, config.base_every)
        self._saved: int | None = None  # number of the newest checkpoint
        self.num_written_bytes = self.num_merged_bytes = 0
        self._writing: Future[dict[str, int]] | None = None
        self._merging: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="merge")

    def follow(self, snapshot: Snapshot, shards: RowsOfShards | None = None) -> None:
        """Continue the chains of a checkpoint that was loaded, unless shards now have other parts of the tables."""
        now = {} if shards is None else shards.divisions
        others = [name for name in snapshot.chains if snapshot.plans.get(name) != now.get(name)]
        self._chains.follow(snapshot.chains, needs_base=others)
        self._saved = snapshot.number
        if shards is not None and snapshot.chains:
            shards.record_changes()

    def has_base(self, table_group: str) -> bool:
        """Whether a delta can continue a chain; otherwise the next one needs everything."""
        return self._chains.has_base(table_group)

    @property
    def is_complete(self) -> bool:
        """Whether the checkpoint that was started last is complete."""
        writing = self._writing
        return writing is None or (writing.done() and writing.exception() is None)

    def take_messages(self) -> list[str]:
        """Lines about merges since the last call."""
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def start(
        self, snapshot: Snapshot, deltas: Mapping[str, Sequence[Delta]], shards: RowsOfShards | None = None
    ) -> None:
        """Start to write a checkpoint; `wait` must have been called after the one before. With shards, they copy now.

        Args:
            snapshot: Its contents, without the rows of table groups in this process. Nobody changes them afterwards.
            deltas: The changes of these table groups, see `TableGroup.deltas`.
            shards: The shards that have the other table groups.
        """
        assert self._writing is None
        if shards is None:
            self._writing = self._writer.submit(self._write, snapshot, deltas)
            return
        everything = [name for name in shards.num_parts if not self.has_base(name)]
        shards.take_deltas(snapshot.number, snapshot.state["step"], saved=self._saved, everything=everything)
        self._writing = self._writer.submit(self._write_shards, snapshot, shards)

    def wait(self) -> dict[str, int]:
        """Wait until the checkpoint that was started is complete; merges go on.

        Returns:
            The version of each table group in it; empty if none was started since the last call.

        Raises:
            CheckpointError: It cannot be written; the previous one stays the newest.
        """
        versions = {} if self._writing is None else self._writing.result()  # an error is raised by each later call
        self._writing = None
        return versions

    def close(self) -> None:
        """Wait for the checkpoint that was started and for merges, and end the threads.

        Raises:
            CheckpointError: The checkpoint cannot be written.
        """
        try:
            self.wait()
        finally:
            self._writer.shutdown()
            self._merger.shutdown()
        if self._merging is not None:
            self._merging.result()
            self._merge()  # it may have ended just before the last checkpoint

    def _write(self, snapshot: Snapshot, deltas: Mapping[str, Sequence[Delta]]) -> dict[str, int]:
        entries = {
            name: [self._write_segment(name, delta, snapshot.number) for delta in parts]
            for name, parts in deltas.items()
        }
        try:
            columns = {name: _whole(parts) for name, parts in deltas.items()}
            with self._naming:
                chains = self._chains.continued(entries)
                self.folder.save(replace(snapshot, columns=columns, chains=chains))
                self._has_written(snapshot.number, chains)
        finally:
            self._forget_names({name: [entry.name for entry in parts] for name, parts in entries.items()})
        return {name: parts[0].version for name, parts in deltas.items()}

    def _write_shards(self, snapshot: Snapshot, shards: RowsOfShards) -> dict[str, int]:
        number, segments, chains = snapshot.number, self.folder.segments, Chains()
        names = {
            name: [segments.new_name(number, number, f"shard-{part:04d}-of-{count:04d}") for part in range(count)]
            for name, count in shards.num_parts.items()
        }

        def write_rows(folder: Path) -> Chains:
            entries = shards.write_deltas(folder, names, as_int8=self._config.weights == "int8")
            chains.update(self._chains.continued(entries))
            return chains

        try:
            with self._naming:
                self.folder.save(replace(snapshot, plans=shards.divisions), write_rows=write_rows)
                self._has_written(number, chains)
        finally:
            self._forget_names(names)
        return {}

    def _has_written(self, number: int, chains: Chains) -> None:
        self.num_written_bytes += self._chains.has_written(chains)
        self._saved = number
        if self._merging is None or self._merging.done():
            self._merging = self._merger.submit(self._merge)

    def _forget_names(self, names: Mapping[str, Sequence[str]]) -> None:
        for of_group in names.values():
            for name in of_group:
                self.folder.segments.forget_name(name)

    def _write_segment(self, table_group: str, delta: Delta, number: int) -> SegmentEntry:
        segments = self.folder.segments
        path = segments.place(table_group) / segments.new_name(number, number)
        return write_delta(path, delta, first=number, as_int8=self._config.weights == "int8")

    def _merge(self) -> None:
        """Merge segments until there are none to merge."""
        while plan := self._chains.next_merge():
            name, merged, reason = plan
            try:
                self._merge_segments(name, merged, reason)
            except TornCheckpoint as error:
                self._chains.needs_base.add(name)
                self._messages.append(f"{error}; the next checkpoint has all rows")
                return
            except CheckpointError as error:
                self._messages.append(f"segments were not merged: {error}")
                return

    def _merge_segments(self, table_group: str, merged: Chain, reason: str) -> None:
        entry = self._chains.merge(table_group, merged)
        try:
            with self._naming:
                self.folder.replace_segments(table_group, merged, entry)
                self._chains.replace(table_group, merged, entry)
            self.num_merged_bytes += entry.bytes
        finally:
            self.folder.segments.forget_name(entry.name)
        self._messages.append(f"{table_group}: merged {len(merged)} segments into {entry.name}: {reason}")


def _whole(deltas: Sequence[Delta]) -> Columns:
    """The columns that are not by key, of a table group or of all of its partitions."""
    wholes = [delta.whole for delta in deltas]
    is_one = len(wholes) == 1 and TableGroupHeader.read(wholes[0]).partition is None
    return wholes[0] if is_one else joined_columns(wholes)
