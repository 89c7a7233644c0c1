"""`CheckpointWriter`: writes checkpoints in the background, and merges the segments of delta checkpoints."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field

from headrace.config import Config, whole_number_or
from headrace.embeddings.changes.chains import Chain, Chains, plan_merge, replaced
from headrace.embeddings.changes.delta import Columns, Delta
from headrace.embeddings.changes.merging import merge_segments
from headrace.embeddings.changes.segments import SegmentEntry, write_delta
from headrace.embeddings.tables.partitions import joined_columns
from headrace.embeddings.tables.state import TableGroupHeader
from headrace.errors import CheckpointError, TornCheckpoint
from headrace.training.checkpoint import CheckpointFolder, Snapshot

__all__ = ["CheckpointWriter", "CheckpointsConfig"]


class CheckpointsConfig(Config):
    """How checkpoints are written."""

    kind: Literal["delta", "whole"] = "whole"
    """delta writes the rows that changed since the previous checkpoint, in the background; whole writes all rows."""
    base_every: Annotated[int | Literal["auto"], whole_number_or("auto", at_least=1)] = "auto"
    """Checkpoints after which segments are merged into a new base; `auto` merges when they have half its bytes."""
    keep: int = Field(default=3, ge=2)
    """Number of newest checkpoints to keep; at least two, so that there is a fallback if one is damaged."""
    weights: Literal["exact", "int8"] = "exact"
    """int8 stores float32 weights in deltas with an error of 1/254 of the row's maximum; exact resumes bit for bit."""


class CheckpointWriter:
    """Writes one checkpoint at a time in a thread, while training goes on; another thread merges segments.

    Args:
        folder: Folder of the checkpoints.
        config: How checkpoints are written.

    Attributes:
        folder: Folder of the checkpoints.
    """

    def __init__(self, folder: CheckpointFolder, config: CheckpointsConfig) -> None:
        self.folder = folder
        self._messages: deque[str] = deque()
        self._config = config
        self._naming = threading.Lock()  # held while manifests and `_chains` change
        self._chains: Chains = {}  # of the newest checkpoint
        self._damaged: set[str] = set()  # table groups whose chain must not be continued
        self._writing: Future[dict[str, int]] | None = None
        self._merging: Future[None] | None = None
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._merger = ThreadPoolExecutor(1, thread_name_prefix="merge")

    def follow(self, snapshot: Snapshot) -> None:
        """Continue the chains of a checkpoint that was loaded."""
        self._chains = dict(snapshot.chains)

    def has_base(self, table_group: str) -> bool:
        """Whether a delta can continue a chain; otherwise the next one needs everything."""
        return table_group in self._chains and table_group not in self._damaged

    @property
    def is_complete(self) -> bool:
        """Whether the checkpoint that was started last is complete."""
        writing = self._writing
        return writing is None or (writing.done() and writing.exception() is None)

    def take_messages(self) -> list[str]:
        """Lines about merges since the last call."""
        return [self._messages.popleft() for _ in range(len(self._messages))]

    def start(self, snapshot: Snapshot, deltas: Mapping[str, Sequence[Delta]]) -> None:
        """Start to write a checkpoint; `wait` must have been called after the one before.

        Args:
            snapshot: Its contents, without the rows of table groups in this process. Nobody changes them afterwards.
            deltas: The changes of these table groups, see `TableGroup.deltas`.
        """
        assert self._writing is None
        self._writing = self._writer.submit(self._write, snapshot, deltas)

    def wait(self) -> dict[str, int]:
        """Wait until the checkpoint that was started is complete; merges go on.

        Returns:
            The version of each table group in it; empty if none was started since the last call.

        Raises:
            CheckpointError: It cannot be written; the previous one stays the newest.
        """
        writing, self._writing = self._writing, None
        return {} if writing is None else writing.result()

    def close(self) -> None:
        """Wait for the checkpoint that was started and for merges, and end the threads.

        Raises:
            CheckpointError: The checkpoint cannot be written, and nobody has waited for it yet.
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
                chains = {name: self._continued(name, parts) for name, parts in entries.items()}
                self.folder.save(replace(snapshot, columns=columns, chains=chains))
                self._chains = chains
                self._damaged -= {name for name, parts in entries.items() if all(entry.is_base for entry in parts)}
        finally:
            for parts in entries.values():
                for entry in parts:
                    self.folder.segments.forget_name(entry.name)
        if self._merging is None or self._merging.done():
            self._merging = self._merger.submit(self._merge)
        return {name: parts[0].version for name, parts in deltas.items()}

    def _write_segment(self, table_group: str, delta: Delta, number: int) -> SegmentEntry:
        segments = self.folder.segments
        path = segments.place(table_group) / segments.new_name(number, number)
        return write_delta(path, delta, first=number, as_int8=self._config.weights == "int8")

    def _continued(self, table_group: str, entries: Sequence[SegmentEntry]) -> tuple[Chain, ...]:
        """The chains of a table group with new segments."""
        if all(entry.is_base for entry in entries):
            return tuple((entry,) for entry in entries)
        before = zip(self._chains[table_group], entries, strict=True)
        return tuple((entry,) if entry.is_base else (*chain, entry) for chain, entry in before)

    def _merge(self) -> None:
        """Merge segments until there are none to merge."""
        while plan := self._next_merge():
            name, merged, reason = plan
            try:
                self._merge_segments(name, merged, reason)
            except TornCheckpoint as error:
                self._damaged.add(name)
                self._messages.append(f"{error}; the next checkpoint has all rows")
                return
            except CheckpointError as error:
                self._messages.append(f"segments were not merged: {error}")
                return

    def _next_merge(self) -> tuple[str, Chain, str] | None:
        for name, parts in self._chains.items():
            for chain in () if name in self._damaged else parts:
                plan = plan_merge(chain, self._config.base_every)
                if plan is not None:
                    return name, chain[plan.first : plan.last], plan.reason
        return None

    def _merge_segments(self, table_group: str, merged: Chain, reason: str) -> None:
        segments = self.folder.segments
        name = segments.new_name(merged[0].first, merged[-1].last)
        try:
            entry = merge_segments(segments.place(table_group), merged, name)
            with self._naming:
                self.folder.replace_segments(table_group, merged, entry)
                parts = tuple(replaced(chain, merged, entry) for chain in self._chains.get(table_group, ()))
                self._chains = self._chains | {table_group: parts}
        finally:
            segments.forget_name(name)
        self._messages.append(f"{table_group}: merged {len(merged)} segments into {name}: {reason}")


def _whole(deltas: Sequence[Delta]) -> Columns:
    """The columns that are not by key, of a table group or of all of its partitions."""
    wholes = [delta.whole for delta in deltas]
    is_one = len(wholes) == 1 and TableGroupHeader.read(wholes[0]).partition is None
    return wholes[0] if is_one else joined_columns(wholes)
