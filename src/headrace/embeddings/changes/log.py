"""Change log of a table group, for consumers that copy it: delta checkpoints, replicas, resident sets.

Every row has the version of the group that changed it last, so finding the changes since a version needs no flags per
consumer. A log of the rows of each version finds them without scanning the other rows::

    version     1          2          3
    rows      4 7 9       7 8        4 8        rows now: 4 -> 3, 7 -> 2, 8 -> 3, 9 -> 1
    since 1                7         4 8        each row once, at its last version

Entries whose row changed again later are dropped when they outnumber the others, so the log is never longer than about
twice the number of rows that changed since the oldest cursor. Nothing is recorded while there is no cursor. Ids that
lost their rows, and ids that wait for one, have no row to hold a version, so they have logs of their keys.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.key_log import COMPACT_ABOVE, KeyLog

__all__ = ["BLOCK_ROWS", "CHECKPOINTS", "PUBLICATIONS", "WRITERS", "ChangeLog", "RowBlock"]

BLOCK_ROWS = 1 << 16
"""Rows per block: 4 MiB of weights at dim 16, small compared with a batch, large compared with the cost of a call."""

CHECKPOINTS = "/checkpoints"
"""The consumer that writes checkpoints."""
PUBLICATIONS = "/publications"
"""The consumer that publishes rows to servers."""
WRITERS = (CHECKPOINTS, PUBLICATIONS)
"""Consumers that are part of a run. They are not saved: after loading, they say which version they have."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Columns = dict[str, npt.NDArray[Any]]


@dataclass(frozen=True, eq=False)
class RowBlock:
    """A block of changed ids of a table group, consistent at one version.

    Tombstones (ids that lost their rows) are in separate blocks before all others; an id that has a row again also
    follows in a later block. Otherwise each id occurs once.

    Attributes:
        version: Version of the table group.
        tables: int32 [R], table number of each id.
        ids: int64 [R].
        columns: `weights` [R, dim], of int8 rows [R, dim + 1], `slot.NAME` [R, width], `version` int64 [R], `frequency`
            int32 [R]; empty in a block of tombstones.
    """

    version: int
    tables: Int32s
    ids: Int64s
    columns: Columns

    @property
    def is_tombstones(self) -> bool:
        """Whether these ids no longer have rows."""
        return not self.columns


@dataclass
class ChangeLog:
    """Changed rows and evicted ids by version, back to the oldest cursor.

    Attributes:
        cursors: For each consumer, the version up to which it has safely stored all changes.
        rows_from: Rows changed after this version are in the log; earlier changes are found by scanning the rows'
            versions.
        removed_from: Ids evicted after this version are in the log; earlier evictions are unknown.
    """

    cursors: dict[str, int] = field(default_factory=dict)
    rows_from: int = 0
    removed_from: int = 0
    _changed: list[tuple[int, Int64s]] = field(default_factory=list)
    _removed: KeyLog = field(default_factory=KeyLog)
    _waiting: KeyLog = field(default_factory=KeyLog)
    _num_entries: int = 0
    _num_compacted: int = 0
    _numbered_from: int = 0  # version from which on rows have the numbers that they have now

    def record(self, version: int, rows: Int64s, versions: Int64s) -> None:
        """Record the rows [U] changed by a version.

        Args:
            version: Version of the group after the change.
            rows: Row numbers, unique except for 0, which means no row.
            versions: int64 [capacity], current version of every row.
        """
        if not self.cursors:
            self.rows_from = version
            return
        self._changed.append((version, rows[rows != 0]))
        self._num_entries += len(self._changed[-1][1])
        if self._num_entries > max(COMPACT_ABOVE, 2 * self._num_compacted):
            newest = [(version, rows[versions[rows] == version]) for version, rows in self._changed]
            self._changed = [entry for entry in newest if len(entry[1])]
            self._num_entries = self._num_compacted = sum(len(rows) for _, rows in self._changed)

    def record_removed(self, version: int, tables: Int32s, ids: Int64s) -> None:
        """Record the ids [E] that lost their rows in a version."""
        if not self.cursors:
            self.removed_from = version
        else:
            self._removed.add(version, tables, ids)

    def record_waiting(self, version: int, tables: Int32s, ids: Int64s) -> None:
        """Record ids [K] without a row whose count may have changed; for the writer of checkpoints only."""
        if CHECKPOINTS in self.cursors:
            self._waiting.add(version, tables, ids)

    def rows_since(self, since: int, versions: Int64s) -> Int64s | None:
        """Rows changed after a version, unique and ascending; None if the log does not go back that far."""
        if since < self.rows_from:
            return None
        found = [rows[versions[rows] == version] for version, rows in self._changed if version > since]
        return np.sort(np.concatenate(found)) if found else np.empty(0, dtype=np.int64)

    def removed_since(self, since: int) -> tuple[Int32s, Int64s] | None:
        """Tables and ids [E] that lost their rows after a version; None if the log does not go back that far."""
        return None if since < self.removed_from else self._removed.since(since)

    def waiting_since(self, since: int) -> tuple[Int32s, Int64s]:
        """Tables and ids [K] whose count may have changed after a version, which the writer of checkpoints has."""
        assert since >= self.cursors[CHECKPOINTS]
        return self._waiting.since(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """Record that a consumer has all changes up to a version; a new consumer starts at that version."""
        self.cursors[consumer] = version
        oldest = min(self.cursors.values())
        self._changed = [entry for entry in self._changed if entry[0] > oldest]
        self._num_entries = sum(len(rows) for _, rows in self._changed)
        self.rows_from = max(self.rows_from, oldest)
        self.removed_from = max(self.removed_from, self._removed.drop_until(oldest))
        self._waiting.drop_until(self.cursors.get(CHECKPOINTS, version))

    def forget_saved(self, version: int) -> None:
        """Have the next delta contain everything, because rows have other numbers, on which decisions depend.

        Args:
            version: Version from which on they have them; checkpoints of earlier ones, of which one may be about to be
                complete, cannot be continued.
        """
        self.cursors.pop(CHECKPOINTS, None)
        self._numbered_from = version

    def mark_saved(self, version: int, consumer: str = CHECKPOINTS) -> None:
        """Record that one of `WRITERS` has written all changes up to a version."""
        if consumer != CHECKPOINTS or version >= self._numbered_from:
            self.acknowledge(consumer, version)

    def renumber(self, kept: Int64s) -> None:
        """Renumber rows after a compaction: row `kept[i]`, ascending, is now row i; all others are gone."""
        for place, (version, rows) in enumerate(self._changed):
            moved = np.minimum(np.searchsorted(kept, rows), len(kept) - 1)
            self._changed[place] = version, moved[kept[moved] == rows]
        self._num_entries = sum(len(rows) for _, rows in self._changed)

    def saved_cursors(self) -> tuple[dict[str, int], int]:
        """The cursors of a saved group, and its `removed_from`."""
        cursors = {consumer: version for consumer, version in self.cursors.items() if consumer not in WRITERS}
        return cursors, max(self.removed_from, self._removed.newest_until(_oldest(cursors)))

    def columns(self) -> Columns:
        """Columns for a saved table group: `removed.version`, `.tables` and `.ids` of evicted ids."""
        versions, tables, ids = self._removed.columns(_oldest(self.saved_cursors()[0]))
        return {"removed.version": versions, "removed.tables": tables, "removed.ids": ids}

    @classmethod
    def restored(cls, version: int, cursors: Mapping[str, int], removed_from: int, state: Columns) -> ChangeLog:
        """The log of a table group loaded at a version; `state` has the columns returned by `columns`."""
        log = cls(dict(cursors), rows_from=version, removed_from=removed_from)
        versions = state["removed.version"]
        for each in np.unique(versions).tolist():
            where = versions == each
            log._removed.add(each, state["removed.tables"][where], state["removed.ids"][where])
        return log


def _oldest(cursors: Mapping[str, int]) -> int:
    """The oldest of some cursors; later than any version if there are none."""
    return min(cursors.values(), default=int(np.iinfo(np.int64).max))
