"""`CachedRows`: rows of another source, of which the most wanted stay in memory, up to a number of bytes.

Each entry counts how often it was wanted, up to 255. A row that is not there takes the place of the least wanted one
of its set if that has no count left, and takes one off its count otherwise. So rows that are wanted once pass by
those that are wanted often, which in turn age where they are not (a set-associative form of frequency-based
admission, as in TinyLFU).

A cache is of one version. When another one comes, the ids that changed lose their entries, and all others stay. Reads
of other versions go past the cache, so no row of another version is ever returned.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.keys import Keys
from headrace.publishing.changed_ids import ChangedIds
from headrace.serving.rows.source import RowSource

__all__ = ["CachedRows", "RowCache", "warm_up_cache"]

WAYS = 8
EMPTY = -1

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Uint8s = npt.NDArray[np.uint8]


@dataclass
class CacheCounts:
    """Keys that were asked for, and those that were there."""

    keys: int = 0
    hits: int = 0


class RowCache:
    """Entries of one table group at one version. For one thread at a time.

    Args:
        num_bytes: Maximum bytes of the arrays.
        dim: Dimension of rows D.

    Attributes:
        dim: Dimension of rows D.
        version: The version of the entries.
        counts: What was found.
    """

    def __init__(self, num_bytes: int, dim: int) -> None:
        entry_bytes = 8 + 4 + 1 + 4 * dim
        num_sets = max(num_bytes // (WAYS * entry_bytes), 1)
        self.dim = dim
        self.version = 0
        self.counts = CacheCounts()
        self._ids: Int64s = np.zeros((num_sets, WAYS), np.int64)
        self._tables: Int32s = np.full((num_sets, WAYS), EMPTY, np.int32)
        self._wanted: Uint8s = np.zeros((num_sets, WAYS), np.uint8)
        self._rows: Float32s = np.zeros((num_sets, WAYS, dim), np.float32)

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(each.nbytes for each in (self._ids, self._tables, self._wanted, self._rows))

    def find(self, keys: Keys, out: Float32s) -> Int64s:
        """Copy the rows that are there to `out`, float32 [U, D]; returns the places of the others, int64 [M]."""
        missing = np.empty(len(keys), np.int64)
        count = _find(self._ids, self._tables, self._wanted, self._rows, *_columns(keys), out, missing)
        self.counts.keys += len(keys)
        self.counts.hits += len(keys) - count
        return missing[:count]

    def offer(self, keys: Keys, places: Int64s, rows: Float32s) -> None:
        """Keep rows, float32 [M, D], of the keys at some places, if they are wanted more than others."""
        _offer(self._ids, self._tables, self._wanted, self._rows, *_columns(keys), places, rows)

    def forget(self, changed: ChangedIds | None) -> None:
        """Drop the entries of ids that changed; all of them for None."""
        if changed is None:
            self._tables[:] = EMPTY
            return
        for table in changed.whole:
            self._tables[self._tables == table] = EMPTY
        tables, ids = np.ascontiguousarray(changed.tables, np.int32), np.ascontiguousarray(changed.ids, np.int64)
        _forget(self._ids, self._tables, tables, ids)


class CachedRows:
    """A `RowSource` in front of another one.

    Args:
        source: The other one.
        num_bytes: Maximum bytes of all caches.
        dims: Dimension of rows by table group.
    """

    def __init__(self, source: RowSource, num_bytes: int, dims: Mapping[str, int]) -> None:
        self._source = source
        share = num_bytes // max(len(dims), 1)
        self._caches = {name: RowCache(share, dim) for name, dim in dims.items()}
        self._locks = {name: threading.Lock() for name in dims}

    @property
    def num_bytes(self) -> int:
        """Bytes of the caches."""
        return sum(cache.num_bytes for cache in self._caches.values())

    @property
    def hit_ratio(self) -> float | None:
        """Part of the keys so far that were there; None before the first."""
        counts = [cache.counts for cache in self._caches.values()]
        total = sum(each.keys for each in counts)
        return sum(each.hits for each in counts) / total if total else None

    def read(self, version: int, table_group: str, keys: Keys) -> Float32s:
        """See `RowSource.read`."""
        cache, lock = self._caches[table_group], self._locks[table_group]
        rows = np.empty((len(keys), cache.dim), np.float32)
        with lock:
            missing = cache.find(keys, rows) if cache.version == version else None
        if missing is None:
            return self._source.read(version, table_group, keys)
        if len(missing):
            asked = Keys(keys.tables[missing], keys.ids[missing], keys.counts[missing])
            found = np.ascontiguousarray(self._source.read(version, table_group, asked))
            rows[missing] = found
            with lock:
                if cache.version == version:  # another one may have come meanwhile
                    cache.offer(keys, missing, found)
        return rows

    def advance(self, version: int, changed: Mapping[str, ChangedIds | None]) -> None:
        """Go over to another version.

        Args:
            version: The version.
            changed: For each table group, the ids whose rows may differ from those of the present version.
        """
        for name, cache in self._caches.items():
            with self._locks[name]:
                cache.forget(changed.get(name))
                cache.version = version

    def version(self, table_group: str) -> int:
        """The version of the entries of a table group; 0 before the first."""
        return self._caches[table_group].version


def warm_up_cache() -> None:
    """Compile the kernels ahead of time."""
    cache = RowCache(1 << 12, 4)
    keys = Keys(np.zeros(1, np.int32), np.zeros(1, np.int64), np.zeros(1, np.int32))
    missing = cache.find(keys, np.empty((1, 4), np.float32))
    cache.offer(keys, missing, np.zeros((1, 4), np.float32))
    cache.forget(ChangedIds(keys.tables, keys.ids, np.zeros(0, np.int32)))


def _columns(keys: Keys) -> tuple[Int32s, Int64s]:
    return np.ascontiguousarray(keys.tables, np.int32), np.ascontiguousarray(keys.ids, np.int64)


@kernel()
def _set_of(table: np.int32, key: np.int64, num_sets: int) -> np.int64:
    mixed = np.uint64(key) * np.uint64(0x9E3779B97F4A7C15) + np.uint64(table) * np.uint64(0xC2B2AE3D27D4EB4F)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    return np.int64(mixed % np.uint64(num_sets))


@kernel()
def _find(
    ids: Int64s,
    tables: Int32s,
    wanted: Uint8s,
    rows: Float32s,
    key_tables: Int32s,
    key_ids: Int64s,
    out: Float32s,
    missing: Int64s,
) -> int:
    num_missing, num_sets, ways = 0, ids.shape[0], ids.shape[1]
    for place in range(len(key_ids)):
        table, key = key_tables[place], key_ids[place]
        where = _set_of(table, key, num_sets)
        found = -1
        for way in range(ways):
            if ids[where, way] == key and tables[where, way] == table:
                found = way
                break
        if found < 0:
            missing[num_missing] = place
            num_missing += 1
            continue
        if wanted[where, found] < 255:
            wanted[where, found] += 1
        for d in range(rows.shape[2]):
            out[place, d] = rows[where, found, d]
    return num_missing


@kernel()
def _offer(
    ids: Int64s,
    tables: Int32s,
    wanted: Uint8s,
    rows: Float32s,
    key_tables: Int32s,
    key_ids: Int64s,
    places: Int64s,
    given: Float32s,
) -> None:
    num_sets, ways = ids.shape[0], ids.shape[1]
    for number in range(len(places)):
        table, key = key_tables[places[number]], key_ids[places[number]]
        where = _set_of(table, key, num_sets)
        victim = 0
        for way in range(ways):
            if tables[where, way] == -1 or (ids[where, way] == key and tables[where, way] == table):
                victim = way
                wanted[where, way] = 0
                break
            if wanted[where, way] < wanted[where, victim]:
                victim = way
        if wanted[where, victim] > 0:
            wanted[where, victim] -= 1
            continue
        ids[where, victim], tables[where, victim] = key, table
        for d in range(rows.shape[2]):
            rows[where, victim, d] = given[number, d]


@kernel()
def _forget(ids: Int64s, tables: Int32s, key_tables: Int32s, key_ids: Int64s) -> None:
    num_sets, ways = ids.shape[0], ids.shape[1]
    for number in range(len(key_ids)):
        where = _set_of(key_tables[number], key_ids[number], num_sets)
        for way in range(ways):
            if ids[where, way] == key_ids[number] and tables[where, way] == key_tables[number]:
                tables[where, way] = -1
