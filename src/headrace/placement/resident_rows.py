"""`ResidentRows`: the values of resident rows, with optimizer state, metadata, and counts of ids that wait for a row.

They are trained by the kernels of a table group, so parameters are bit-identical to those of rows in a shard. A row
number here is a place for a key, which may have no row yet: it was never trained on, or not seen often enough.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import numba
import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel_of_rule
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.storage.host import HostStorage
from headrace.embeddings.storage.protocol import NEW
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.lifecycle import IdHistory, admission_of, retention_of
from headrace.embeddings.tables.metadata import RowMetadata
from headrace.embeddings.tables.table_group import row_layout

__all__ = ["ResidentRows"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class ResidentRows:
    """Rows 1 to the capacity of collisionless tables. Not thread-safe.

    Args:
        tables: Configs of the tables, as in a shard.
        seed: Seed of the table group.
        capacity: Maximum number of rows.

    Attributes:
        is_changed: bool [capacity + 1], whether a row was updated since its state was last copied.
    """

    def __init__(self, tables: Sequence[TableConfig], seed: int, capacity: int) -> None:
        self._storage = HostStorage(row_layout(tables, seed), capacity + 1)
        self._metadata = RowMetadata(capacity + 1)
        admission = admission_of(tables)
        self._numbers = admission.numbers
        self._may_wait = bool((admission.numbers > 1).any())
        self._find, self._count = find_kernel(admission.is_admitted), count_kernel(admission.is_admitted)
        self._sightings = np.zeros(capacity + 1 if self._may_wait else 1, dtype=np.int64)
        self._last_seen = np.zeros_like(self._sightings)
        self._retention = retention_of(tables)
        self.is_changed = np.zeros(capacity + 1, dtype=np.bool_)

    @staticmethod
    def row_bytes(tables: Sequence[TableConfig], seed: int) -> int:
        """Bytes of a row with optimizer state and metadata."""
        one, two = (ResidentRows(tables, seed, capacity).num_bytes for capacity in (1, 2))
        return two - one

    @property
    def num_bytes(self) -> int:
        """Bytes of all arrays."""
        arrays = self._metadata.records, self._sightings, self._last_seen, self.is_changed
        return self._storage.num_bytes + sum(array.nbytes for array in arrays)

    @property
    def has_retention(self) -> bool:
        """Whether `expire` may evict ids."""
        return bool(self._retention)

    @property
    def num_windows(self) -> int:
        """Number of recent windows that retention needs."""
        return max((policy.num_windows for policy in self._retention), default=0)

    def grow(self, capacity: int) -> None:
        """Make room for more rows."""
        more = capacity + 1 - self._storage.capacity
        if more <= 0:
            return
        self._storage.grow(capacity + 1)
        self._metadata.grow(capacity + 1)
        self.is_changed = np.concatenate([self.is_changed, np.zeros(more, dtype=np.bool_)])
        if self._may_wait:
            self._sightings = np.concatenate([self._sightings, np.zeros(more, dtype=np.int64)])
            self._last_seen = np.concatenate([self._last_seen, np.zeros(more, dtype=np.int64)])

    def read(self, rows: Int64s, keys: Keys) -> Float32s:
        """Rows float32 [U, dim] as the next update of the keys, at rows [U], finds them; see `TableGroup.read`."""
        found = np.empty(len(rows), dtype=np.int64)
        self._find(
            rows, keys.tables, keys.ids, keys.counts, self._metadata.records, self._sightings, self._numbers, found
        )
        return self._storage.gather(found, keys)

    def update(
        self,
        rows: Int64s,
        keys: Keys,
        gradients: Float32s,
        *,
        step: int,
        version: int,
        num_rows: int = 1,
        lr_factor: float = 1.0,
    ) -> None:
        """Apply one step to the keys at rows [U]; see `TableGroup.update`."""
        self.is_changed[rows] = True
        if self._may_wait:
            rows = rows.copy()
            self._count(
                rows,
                keys.tables,
                keys.ids,
                keys.counts,
                self._metadata.records,
                self._sightings,
                self._last_seen,
                self._numbers,
                version,
            )
        new = self._metadata.mark_updated(rows, keys.counts, version=version)
        if len(new):
            self._storage.initialize(rows[new], keys.take(new))
        self._storage.update(rows, keys, gradients, step=step, num_rows=num_rows, lr_factor=lr_factor)

    def states(self, rows: Int64s) -> KeyStates:
        """Copies of the states of the keys at rows [K]."""
        places = np.flatnonzero(self._metadata.versions[rows])
        waiting = np.empty(0, dtype=np.int64)
        if self._may_wait:
            waiting = np.flatnonzero((self._sightings[rows] > 0) & (self._metadata.versions[rows] == 0))
        here = rows[places]
        columns = {**self._storage.columns(here), **self._metadata.columns(here)}
        return KeyStates(places, columns, waiting, self._sightings[rows[waiting]], self._last_seen[rows[waiting]])

    def set_states(self, rows: Int64s, states: KeyStates) -> None:
        """Inverse of `states` for rows that are clear."""
        here = rows[states.places]
        self._storage.set_columns(here, states.columns)
        self._metadata.set_columns(here, states.columns)
        if len(states.waiting):
            self._sightings[rows[states.waiting]] = states.sightings
            self._last_seen[rows[states.waiting]] = states.last_seen

    @property
    def packed_bytes(self) -> int:
        """Bytes of a key in `packed`."""
        return sum(column[:0].itemsize * int(np.prod(column.shape[1:])) for column in self._columns())

    def packed(self, rows: Int64s) -> npt.NDArray[np.uint8]:
        """Copies of the states of the keys at rows [K], uint8 [K packed_bytes]: column by column, equally long for all
        keys, whether they have a row or not."""
        columns = [np.ascontiguousarray(column[rows]) for column in self._columns()]
        return np.concatenate([column.reshape(-1).view(np.uint8) for column in columns])

    def set_packed(self, rows: Int64s, data: npt.NDArray[np.uint8]) -> None:
        """Inverse of `packed`; the rows count as changed."""
        first = 0
        for column in self._columns():
            last = first + len(rows) * column.itemsize * int(np.prod(column.shape[1:]))
            column[rows] = data[first:last].copy().view(column.dtype).reshape(len(rows), *column.shape[1:])
            first = last
        self.is_changed[rows] = True

    def _columns(self) -> list[npt.NDArray[Any]]:
        """All that is known of a key, as views of columns [capacity + 1, ...]."""
        records = self._metadata.records
        columns = [self._storage.weights, self._storage.state, records["version"], records["frequency"]]
        return [*columns, self._sightings, self._last_seen] if self._may_wait else columns

    def clear(self, rows: Int64s) -> None:
        """Forget the states at rows, as if their keys had never been trained on."""
        self._metadata.clear(rows)
        self.is_changed[rows] = False
        if self._may_wait:
            self._sightings[rows] = self._last_seen[rows] = 0

    def expire(self, rows: Int64s, keys: Keys, window_starts: Sequence[int]) -> None:
        """Evict what retention evicts of the keys [K] at rows [K]; see `TableGroup.end_window`."""
        records = self._metadata.records[rows]
        last_seen, sightings = records["version"].copy(), records["frequency"].astype(np.int64)
        if self._may_wait:
            is_waiting = last_seen == 0
            last_seen[is_waiting] = self._last_seen[rows[is_waiting]]
            sightings[is_waiting] = self._sightings[rows[is_waiting]]
        known = np.flatnonzero(last_seen)
        history = IdHistory(keys.tables[known], keys.ids[known], last_seen[known], sightings[known])
        expired = np.zeros(len(known), dtype=np.bool_)
        for policy in self._retention:
            expired |= policy.expired(history, window_starts)
        self.clear(rows[known[expired]])


@cache
def find_kernel(is_admitted: Callable[..., bool]) -> Callable[..., None]:
    """Compile the loop of `ResidentRows.read` for an admission rule."""

    def find_resident(
        rows: Int64s,
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        records: npt.NDArray[Any],
        sightings: Int64s,
        numbers: Int64s,
        found: Int64s,
    ) -> None:
        for u in numba.prange(len(rows)):
            row = rows[u]
            if records[row].version != 0:
                found[u] = row
            else:
                before = sightings[row] if len(sightings) > 1 else 0  # nothing waits if there is only row 0
                is_new = is_admitted(before + counts[u], tables[u], ids[u], numbers)
                found[u] = NEW if is_new else 0

    return kernel_of_rule(find_resident, is_admitted, parallel=True)


@cache
def count_kernel(is_admitted: Callable[..., bool]) -> Callable[..., None]:
    """Compile the loop that counts ids without a row, for an admission rule; the rows of others become 0."""

    def count_resident(
        rows: Int64s,
        tables: Int32s,
        ids: Int64s,
        counts: Int32s,
        records: npt.NDArray[Any],
        sightings: Int64s,
        last_seen: Int64s,
        numbers: Int64s,
        version: int,
    ) -> None:
        for u in numba.prange(len(rows)):
            row = rows[u]
            if records[row].version == 0:
                sightings[row] += counts[u]
                last_seen[row] = version
                if not is_admitted(sightings[row], tables[u], ids[u], numbers):
                    rows[u] = 0

    return kernel_of_rule(count_resident, is_admitted, parallel=True)
