"""`KeyLog`: keys by the version of a table group that changed them, each once at its last version."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

__all__ = ["COMPACT_ABOVE", "KeyLog", "unique_keys"]

COMPACT_ABOVE = 1 << 16
"""A log is not compacted below this number of entries."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class KeyLog:
    """Keys that were changed in some way, by version, ascending.

    Keys that are in later entries too are dropped when they outnumber the others, so the log is never longer than about
    twice the number of different keys.
    """

    def __init__(self) -> None:
        self._entries: list[tuple[int, Int32s, Int64s]] = []
        self._num_keys = self._num_compacted = 0

    def add(self, version: int, tables: Int32s, ids: Int64s) -> None:
        """Add keys [K] of a version."""
        if not len(ids):
            return
        self._entries.append((version, tables, ids))
        self._num_keys += len(ids)
        if self._num_keys > max(COMPACT_ABOVE, 2 * self._num_compacted):
            self._keep(_is_last(*self._all(0)))
            self._num_compacted = self._num_keys

    def since(self, version: int) -> tuple[Int32s, Int64s]:
        """Keys [K] of later versions, unique, ascending by (table, id)."""
        tables, ids = self._all(version)
        last = np.flatnonzero(_is_last(tables, ids))
        last = last[np.lexsort((ids[last], tables[last]))]
        return tables[last], ids[last]

    def drop_until(self, version: int) -> int:
        """Drop keys up to a version; returns the highest version among the dropped ones, or 0."""
        dropped = [each for each, _, _ in self._entries if each <= version]
        self._entries = [entry for entry in self._entries if entry[0] > version]
        self._num_keys = sum(len(ids) for _, _, ids in self._entries)
        return max(dropped, default=0)

    def newest_until(self, version: int) -> int:
        """The highest version of the log up to a version, or 0."""
        return max((each for each, _, _ in self._entries if each <= version), default=0)

    def columns(self, since: int) -> tuple[Int64s, Int32s, Int64s]:
        """Version, table and id of keys of later versions, as arrays."""
        entries = [entry for entry in self._entries if entry[0] > since]
        versions = [np.full(len(ids), version, dtype=np.int64) for version, _, ids in entries]
        return np.concatenate([np.empty(0, np.int64), *versions]), *self._all(since)

    def _all(self, since: int) -> tuple[Int32s, Int64s]:
        entries = [entry for entry in self._entries if entry[0] > since]
        tables, ids = [tables for _, tables, _ in entries], [ids for _, _, ids in entries]
        return np.concatenate([np.empty(0, np.int32), *tables]), np.concatenate([np.empty(0, np.int64), *ids])

    def _keep(self, is_kept: Bools) -> None:
        entries, first = [], 0
        for version, tables, ids in self._entries:
            kept = is_kept[first : first + len(ids)]
            first += len(ids)
            if kept.any():
                entries.append((version, tables[kept], ids[kept]))
        self._entries = entries
        self._num_keys = int(is_kept.sum())


def unique_keys(keys: Iterable[tuple[Int32s, Int64s]]) -> tuple[Int32s, Int64s]:
    """Tables and ids [K] of the keys of all parts, each once, ascending by (table, id)."""
    log = KeyLog()
    for tables, ids in keys:
        log.add(1, tables, ids)
    return log.since(0)


def _is_last(tables: Int32s, ids: Int64s) -> Bools:
    """Whether each of some keys does not occur again later."""
    order = np.lexsort((ids, tables))  # stable, so that equal keys stay in order
    is_last = np.ones(len(ids), dtype=np.bool_)
    is_last[:-1] = (np.diff(tables[order]) != 0) | (np.diff(ids[order]) != 0)
    result = np.empty(len(ids), dtype=np.bool_)
    result[order] = is_last
    return result
