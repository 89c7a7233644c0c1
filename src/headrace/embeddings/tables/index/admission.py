"""Compiled loops of `RowIndex` that close over an admission rule: predict it, and carry it out."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel_of_rule
from headrace.embeddings.ops.prefetch import prefetch
from headrace.embeddings.storage.protocol import NEW
from headrace.embeddings.tables.index.hash_table import (
    BLOCK,
    CHUNK,
    MAX_COUNT,
    HashTable,
    candidate,
    drop_waiting,
    hash_of,
    is_waiting,
    place_of,
    prefetch_slot,
    probe,
    set_owner,
    set_seen,
    set_waiting,
    sightings_of,
    value_from,
    value_of,
    write,
)
from headrace.embeddings.tables.index.key_index import lowest_free

__all__ = ["admit_kernel", "find_kernel"]

Records = npt.NDArray[np.void]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@cache
def find_kernel(is_admitted: Callable[..., bool]) -> Callable[..., None]:
    """Compile the loop of `RowIndex.find` for an admission rule."""

    def find(
        index: HashTable,
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        fixed_rows: Int64s,
        first_row: int,
        records: Records,
        numbers: Int64s,
        rows: Int64s,
    ) -> None:
        records_at = records.ctypes.data
        for chunk in numba.prange((len(ids) + CHUNK - 1) // CHUNK):
            hashes = np.empty(BLOCK, dtype=np.uint64)
            for begin in range(chunk * CHUNK, min((chunk + 1) * CHUNK, len(ids)), BLOCK):
                end = min(begin + BLOCK, len(ids))
                for u in range(begin, end):
                    if fixed_rows[tables[u]] >= 0:
                        prefetch(records_at + (fixed_rows[tables[u]] + ids[u]) * records.itemsize)
                    else:
                        hashes[u - begin] = hash_of(index, tables[u], ids[u])
                        prefetch_slot(index, hashes[u - begin])
                for u in range(begin, end):
                    if fixed_rows[tables[u]] < 0:
                        rows[u] = candidate(index, hashes[u - begin])
                for u in range(begin, end):
                    table = tables[u]
                    if fixed_rows[table] >= 0:
                        row = fixed_rows[table] + ids[u]
                        rows[u] = row if records[row].version != 0 else NEW
                        continue
                    value = value_from(index, hashes[u - begin], rows[u], table, ids[u])
                    if value != 0 and not is_waiting(value):
                        rows[u] = first_row + place_of(value)
                        continue
                    sightings = sightings_of(index, value) if value != 0 else np.int64(0)
                    rows[u] = NEW if is_admitted(sightings + counts[u], table, ids[u], numbers) else 0

    return kernel_of_rule(find, is_admitted, parallel=True)


@cache
def admit_kernel(is_admitted: Callable[..., bool]) -> Callable[..., tuple[int, int, int]]:
    """Compile the loop of `RowIndex.admit` for an admission rule: (waiting keys, next free row, next row)."""

    def admit(
        index: HashTable,
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        numbers: Int64s,
        seen: int,
        num_waiting: int,
        first_row: int,
        next_free: int,
        next_row: int,
        missing: Int64s,
        rows: Int64s,
    ) -> tuple[int, int, int]:
        hashes = np.empty(BLOCK, dtype=np.uint64)
        for begin in range(0, len(missing), BLOCK):
            end = min(begin + BLOCK, len(missing))
            for i in range(begin, end):
                hashes[i - begin] = hash_of(index, tables[missing[i]], ids[missing[i]])
                prefetch_slot(index, hashes[i - begin])
            for i in range(begin, end):
                candidate(index, hashes[i - begin])
            for i in range(begin, end):
                u, hashed = missing[i], hashes[i - begin]
                at, value = probe(index, hashed, tables[u], ids[u])
                place = place_of(value) if value != 0 else num_waiting
                sightings = np.int64(counts[u])
                if value != 0:
                    sightings = min(sightings + sightings_of(index, value), np.int64(MAX_COUNT))
                if is_admitted(sightings, tables[u], ids[u], numbers):
                    if value != 0:
                        drop_waiting(index, place, num_waiting)
                        num_waiting -= 1
                    row = lowest_free(index, first_row, next_free, next_row)
                    next_free, next_row = row + 1, max(next_row, row + 1)
                    write(index, at, hashed, value_of(row - first_row, False))
                    set_owner(index, row - first_row, tables[u], ids[u])
                    rows[u] = row
                    continue
                if value == 0:
                    num_waiting += 1
                    write(index, at, hashed, value_of(place, True))
                    set_waiting(index, place, tables[u], ids[u])
                set_seen(index, place, sightings, seen)
        return num_waiting, next_free, next_row

    return kernel_of_rule(admit, is_admitted)
