"""Finds columns that change together within sessions, and estimates the savings of storing them once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from headrace.logs.break_even import dedupe_factor, pays, saved_bytes
from headrace.logs.inspection.hashing import NULL_HASH, Hashes
from headrace.logs.nested.choose import ColumnChanges, find_groups

__all__ = ["BATCH_ROWS", "FoundGroup", "GroupSample", "found_groups"]

MAX_BYTES = 64 << 20

BATCH_ROWS = 4096
"""Rows per batch, in log order, for counting rows per session."""

MAX_BATCHES = 64


@dataclass(frozen=True)
class FoundGroup:
    """Columns that change together, evaluated by the model of `headrace.logs.break_even`.

    Attributes:
        columns: Column names.
        duplication: Share of rows that repeat all values of their session's previous row, among rows that have one.
        row_bytes: Bytes per row of their values.
        factor: Rows per distinct value if the rows of a session are adjacent.
        batch_factor: Rows per distinct value in a batch of 4096 rows in log order.
    """

    columns: tuple[str, ...]
    duplication: float
    row_bytes: float
    factor: float
    batch_factor: float

    @property
    def saved_bytes(self) -> float:
        """Bytes saved per row in memory; may be negative."""
        return saved_bytes(self.factor, self.row_bytes)

    @property
    def pays(self) -> bool:
        """Whether the reader of a nested log would keep it as a group."""
        return pays(self.factor, self.row_bytes)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return asdict(self) | {"saved_bytes": self.saved_bytes, "pays": self.pays}


class GroupSample:
    """Hashes of a sample of whole sessions, chosen by the hash of their id, in at most 64 MiB.

    Args:
        names: Columns to compare.
        max_bytes: Maximum bytes of the sample.
        num_columns: Total columns of all samples of the log, if it is read in blocks. Samples with the same total that
            see the same rows choose the same sessions.
    """

    def __init__(self, names: Sequence[str], *, max_bytes: int = MAX_BYTES, num_columns: int | None = None) -> None:
        self._names = tuple(names)
        width = len(names) if num_columns is None else num_columns
        self._max_rows = max(1, max_bytes // (16 * (width + 1)))  # held twice while it is reduced
        self._mask = np.uint64(0)
        self._parts: list[tuple[Hashes, Hashes]] = []
        self._num_rows = 0
        self._batches: list[float] = []

    def add(self, sessions: Hashes, values: Hashes) -> None:
        """Add rows in log order; see `SessionTracker.add`."""
        for start in range(0, len(sessions) - BATCH_ROWS + 1, BATCH_ROWS):
            if len(self._batches) < MAX_BATCHES:
                batch = sessions[start : start + BATCH_ROWS]
                self._batches.append(BATCH_ROWS / len(np.unique(batch)))
        self._keep(sessions, values)
        while self._num_rows > self._max_rows:
            self._mask = (self._mask << np.uint64(1)) | np.uint64(1)
            parts, self._parts, self._num_rows = self._parts, [], 0
            for part in parts:
                self._keep(*part)

    @property
    def batch_rows_per_session(self) -> float | None:
        """Mean rows per session in a batch of 4096 rows in log order; None for smaller logs."""
        return float(np.mean(self._batches)) if self._batches else None

    def groups(self, widths: Mapping[str, float], *, without: Sequence[str]) -> list[FoundGroup]:
        """See `found_groups`."""
        return found_groups([self], widths, without=without)

    def _keep(self, sessions: Hashes, values: Hashes) -> None:
        kept = (sessions != NULL_HASH) & (sessions & self._mask == 0)
        if kept.any():
            self._parts.append((sessions[kept], values[kept]))
            self._num_rows += int(kept.sum())

    def changes(self) -> ColumnChanges | None:
        """The rows of the sample in which each column changes; None if no session has two rows."""
        if not self._parts or not self._names:
            return None
        sessions = np.concatenate([part[0] for part in self._parts])
        order = np.argsort(sessions, kind="stable")  # rows of a session stay in log order
        following = np.diff(sessions[order]) == 0
        num_pairs = int(following.sum())
        if not num_pairs:
            return None
        words = np.zeros((len(self._names), -(-num_pairs // 64)), dtype=np.uint64)
        counts = np.zeros(len(self._names), dtype=np.int64)
        for column in range(len(self._names)):
            values = np.concatenate([part[1][:, column] for part in self._parts])[order]
            differs = (values[1:] != values[:-1])[following]
            bits = np.packbits(differs, bitorder="little")
            words[column].view(np.uint8)[: len(bits)] = bits
            counts[column] = differs.sum()
        return ColumnChanges(self._names, words, counts, len(sessions) - num_pairs, len(sessions))


def found_groups(
    samples: Sequence[GroupSample], widths: Mapping[str, float], *, without: Sequence[str]
) -> list[FoundGroup]:
    """Find the groups that the nested layout would make of the samples' columns, largest savings first.

    Args:
        samples: Samples of the column blocks of a log. Samples with other rows than the first, because of damaged row
            groups, are ignored.
        widths: Bytes per row of each column.
        without: Columns that always belong to a single row.
    """
    parts = [changes for sample in samples if (changes := sample.changes()) is not None]
    parts = [part for part in parts if part[3:] == parts[0][3:]]
    if not parts:
        return []
    changes = parts[0]._replace(
        names=tuple(name for part in parts for name in part.names),
        words=np.concatenate([part.words for part in parts]),
        counts=np.concatenate([part.counts for part in parts]),
    )
    rows_per_session = changes.num_rows / changes.num_sessions
    in_batch = samples[0].batch_rows_per_session or rows_per_session
    found = []
    for names, factor in find_groups(changes, widths, without=without):
        repeats = 1.0 - (changes.num_rows / factor - changes.num_sessions) / changes.num_pairs
        width = sum(widths[name] for name in names)
        found.append(FoundGroup(names, repeats, width, factor, dedupe_factor(in_batch, repeats)))
    return sorted(found, key=lambda group: -group.saved_bytes)
