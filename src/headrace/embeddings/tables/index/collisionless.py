"""Collisionless: an open-addressing table from (space, id), compared exactly, to a row; it grows, admits and forgets.

An entry is four int64 in one half of a cache line, so that a probe costs one cache miss:

    ID         the id
    SPACE      its space, EMPTY where the slot is free
    ROW        its row, or PENDING (0, the table's zero row) until the id has been seen often enough
    SIGHTINGS  how often a pending id has been seen

Entries are never removed one by one: eviction drops all old ones at once and rebuilds the table, so there are no
tombstones and probe lengths do not grow with age. For the same calls the directory gives the same rows.
"""

from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from headrace.embeddings.ops.hashing import mix64

__all__ = ["NEW", "PENDING", "CollisionlessDirectory", "probe"]

ID, SPACE, ROW, SIGHTINGS = 0, 1, 2, 3
EMPTY = -1
PENDING = 0
NEW = -1
"""What `find` gives in place of a row for an id that the update of the same keys will admit."""
MAX_LOAD = 0.5  # linear probing: about 1.5 probes for a hit, 2.5 for a miss

Entries = npt.NDArray[np.int64]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


@kernel()
def probe(entries: Entries, space: int, key: int) -> int:
    """The slot of (space, id), or of the empty slot where it belongs."""
    mask = len(entries) - 1
    slot = np.int64(mix64(mix64(np.uint64(key)) + np.uint64(space))) & mask
    while entries[slot, SPACE] != EMPTY and not (entries[slot, ID] == key and entries[slot, SPACE] == space):
        slot = (slot + 1) & mask
    return slot  # type: ignore[return-value]


@kernel(parallel=True)
def _resolve(spaces: Int32s, ids: Int64s, first_rows: Int64s, entries: Entries, rows: Int64s) -> None:
    for u in numba.prange(len(ids)):
        space = spaces[u]
        if first_rows[space] >= 0:
            rows[u] = first_rows[space] + ids[u]
        else:
            slot = probe(entries, space, ids[u])
            rows[u] = entries[slot, ROW] if entries[slot, SPACE] != EMPTY else PENDING


@kernel(parallel=True)
def _find(
    spaces: Int32s,
    ids: Int64s,
    counts: Int32s,
    first_rows: Int64s,
    thresholds: Int64s,
    entries: Entries,
    rows: Int64s,
) -> None:
    for u in numba.prange(len(ids)):
        space = spaces[u]
        if first_rows[space] >= 0:
            rows[u] = first_rows[space] + ids[u]
            continue
        slot = probe(entries, space, ids[u])
        is_known = entries[slot, SPACE] != EMPTY
        row = entries[slot, ROW] if is_known else PENDING
        sightings = entries[slot, SIGHTINGS] if is_known else 0
        if row == PENDING and sightings + counts[u] >= thresholds[space]:
            row = NEW
        rows[u] = row


@kernel()
def _admit(
    entries: Entries,
    pending_seen: Int64s,
    spaces: Int32s,
    ids: Int64s,
    counts: Int32s,
    thresholds: Int64s,
    version: int,
    free_rows: Int64s,
    num_free: int,
    next_row: int,
    rows: Int64s,
    admitted: Int64s,
) -> tuple[int, int, int, int]:
    """Counts sightings of every key without a row, and gives rows to those seen often enough, in the order of keys."""
    num_new, num_admitted = 0, 0
    for u in range(len(ids)):
        if rows[u] != PENDING:
            continue
        slot = probe(entries, spaces[u], ids[u])
        if entries[slot, SPACE] == EMPTY:
            entries[slot, ID], entries[slot, SPACE] = ids[u], spaces[u]
            entries[slot, ROW], entries[slot, SIGHTINGS] = PENDING, 0
            num_new += 1
        entries[slot, SIGHTINGS] += counts[u]
        pending_seen[slot] = version
        if entries[slot, SIGHTINGS] >= thresholds[spaces[u]]:
            if num_free > 0:
                num_free -= 1
                row = free_rows[num_free]
            else:
                row = next_row
                next_row += 1
            entries[slot, ROW] = row
            rows[u] = row
            admitted[num_admitted] = u
            num_admitted += 1
    return num_new, num_admitted, num_free, next_row


@kernel()
def _copy_live(
    old: Entries, old_seen: Int64s, new: Entries, new_seen: Int64s, row_seen: Int64s, first_row: int, oldest: Int64s
) -> int:
    """Moves entries last seen after their space's `oldest` version into the empty table `new`."""
    num_kept = 0
    for slot in range(len(old)):
        space = old[slot, SPACE]
        if space == EMPTY:
            continue
        row = old[slot, ROW]
        seen = old_seen[slot] if row == PENDING else row_seen[row - first_row]
        if seen <= oldest[space]:
            continue
        target = probe(new, space, old[slot, ID])
        new[target] = old[slot]
        new_seen[target] = old_seen[slot]
        num_kept += 1
    return num_kept


@kernel()
def _insert(
    entries: Entries, pending_seen: Int64s, spaces: Int32s, ids: Int64s, rows: Int64s, sightings: Int64s, seen: Int64s
) -> None:
    for i in range(len(ids)):
        slot = probe(entries, spaces[i], ids[i])
        entries[slot, ID], entries[slot, SPACE] = ids[i], spaces[i]
        entries[slot, ROW], entries[slot, SIGHTINGS] = rows[i], sightings[i]
        pending_seen[slot] = seen[i]


class CollisionlessDirectory:
    """Rows of the ids of all collisionless spaces of one table. Not thread-safe.

    Args:
        first_rows: int64 [S], where a space's rows begin for spaces whose keys are rows already, -1 for the
            collisionless ones.
        thresholds: int64 [S], the sighting at which an id gets a row; 0 for spaces in which every id has one, and
            reads its first value before it is seen.
        first_row: Where the rows this directory gives out begin.
        capacity: How many ids to make room for at first.
    """

    def __init__(self, first_rows: Int64s, thresholds: Int64s, *, first_row: int, capacity: int) -> None:
        self.first_rows = first_rows
        self.thresholds = thresholds
        self.first_row = first_row
        self.clear(capacity)

    def clear(self, capacity: int) -> None:
        """Forget everything."""
        self.entries, self.pending_seen = _empty_table(capacity)
        self.num_entries = 0
        self.next_row = self.first_row
        self.free_rows: Int64s = np.empty(0, dtype=np.int64)  # descending: the lowest free row is given out first

    def resolve(self, spaces: Int32s, ids: Int64s) -> Int64s:
        """Rows int64 [U] of the keys; 0 for a collisionless key without a row."""
        rows = np.empty(len(ids), dtype=np.int64)
        _resolve(spaces, ids, self.first_rows, self.entries, rows)
        return rows

    def find(self, spaces: Int32s, ids: Int64s, counts: Int32s) -> Int64s:
        """Rows int64 [U] as an update of the same keys and counts will find or make them, without making any.

        Returns:
            A row; `NEW` for a key that the update admits; 0 for one that stays without a row.
        """
        rows = np.empty(len(ids), dtype=np.int64)
        _find(spaces, ids, counts, self.first_rows, self.thresholds, self.entries, rows)
        return rows

    def admit(self, spaces: Int32s, ids: Int64s, counts: Int32s, rows: Int64s, *, version: int) -> Int64s:
        """Count sightings of the keys that `resolve` found no row for, and give rows where they are due.

        Args:
            spaces: int32 [U].
            ids: int64 [U], unique per space.
            counts: int32 [U], sightings now.
            rows: int64 [U] from `resolve`; filled in for admitted keys.
            version: Of the table, remembered as when a pending id was last seen.

        Returns:
            int64 [A], positions in `ids` of the admitted keys.
        """
        num_missing = len(rows) - int(np.count_nonzero(rows))
        if num_missing == 0:
            return np.empty(0, dtype=np.int64)
        if self.num_entries + num_missing > MAX_LOAD * len(self.entries):
            self._rebuild(2 * (self.num_entries + num_missing))
        admitted = np.empty(num_missing, dtype=np.int64)
        num_new, num_admitted, num_free, self.next_row = _admit(
            self.entries,
            self.pending_seen,
            spaces,
            ids,
            counts,
            self.thresholds,
            version,
            self.free_rows,
            len(self.free_rows),
            self.next_row,
            rows,
            admitted,
        )
        self.free_rows = self.free_rows[:num_free]
        self.num_entries += num_new
        return admitted[:num_admitted]

    def evict(self, row_seen: Int64s, oldest: Int64s) -> None:
        """Forget ids last seen at or before their space's `oldest` version; `free` then tells of their rows.

        Args:
            row_seen: int64 [next_row - first_row], when each given-out row was last seen.
            oldest: int64 [S]; -1 forgets none.
        """
        self._rebuild(self.num_entries, row_seen, oldest)

    def free(self, rows: Int64s) -> None:
        """Make rows available again."""
        self.free_rows = np.sort(np.concatenate([self.free_rows, rows]))[::-1].copy()

    def pending(self) -> dict[str, npt.NDArray[Any]]:
        """Ids that have been seen but have no row yet, in the order of (space, id)."""
        where = np.flatnonzero((self.entries[:, SPACE] != EMPTY) & (self.entries[:, ROW] == PENDING))
        found = self.entries[where]
        order = np.lexsort((found[:, ID], found[:, SPACE]))
        return {
            "spaces": found[order, SPACE].astype(np.int32),
            "ids": found[order, ID],
            "sightings": found[order, SIGHTINGS],
            "last_seen": self.pending_seen[where][order],
        }

    def restore(self, live: dict[str, npt.NDArray[Any]], pending: dict[str, npt.NDArray[Any]]) -> None:
        """Become the directory in which `live` (spaces, ids, rows) have rows and `pending` is what `pending()` gave.

        Rows below the highest live one that nobody holds are free.
        """
        rows = live["rows"].astype(np.int64)
        num_entries = len(rows) + len(pending["ids"])
        self.clear(2 * num_entries)
        zeros = np.zeros(len(rows), dtype=np.int64)
        _insert(self.entries, self.pending_seen, live["spaces"], live["ids"], rows, zeros, zeros)
        none = np.full(len(pending["ids"]), PENDING, dtype=np.int64)
        _insert(
            self.entries,
            self.pending_seen,
            pending["spaces"],
            pending["ids"],
            none,
            pending["sightings"],
            pending["last_seen"],
        )
        self.num_entries = num_entries
        self.next_row = int(rows.max()) + 1 if len(rows) else self.first_row
        is_free = np.ones(self.next_row - self.first_row, dtype=bool)
        is_free[rows - self.first_row] = False
        self.free_rows = np.ascontiguousarray(np.flatnonzero(is_free)[::-1]) + self.first_row

    def _rebuild(self, capacity: int, row_seen: Int64s | None = None, oldest: Int64s | None = None) -> None:
        if row_seen is None or oldest is None:
            row_seen = np.zeros(self.next_row - self.first_row, dtype=np.int64)
            oldest = np.full(len(self.thresholds), -1, dtype=np.int64)
        entries, pending_seen = _empty_table(capacity)
        self.num_entries = _copy_live(
            self.entries, self.pending_seen, entries, pending_seen, row_seen, self.first_row, oldest
        )
        self.entries, self.pending_seen = entries, pending_seen


def _empty_table(num_ids: int) -> tuple[Entries, Int64s]:
    """A table with room for `num_ids` at the highest load: a power of two slots, so that a mask finds the slot."""
    num_slots = 1 << max(6, int(np.ceil(num_ids / MAX_LOAD)) - 1).bit_length()
    entries = np.empty((num_slots, 4), dtype=np.int64)
    entries[:, SPACE] = EMPTY
    return entries, np.empty(num_slots, dtype=np.int64)
