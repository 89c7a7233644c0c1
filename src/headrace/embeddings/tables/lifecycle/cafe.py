"""Retention as in CAFE+ (Liu et al., TOIS 2025; CAFE: Zhang et al., SIGMOD 2024): a sketch finds hot ids.

HotSketch (SIGMOD 2024, section 3.2) has a bucket of four slots per row that hot ids may have; a slot of 12 bytes holds
an id, its importance and its row. Importance is the sum of gradient norms, in each step divided by the mean norm of the
feature. New ids begin in ColdSifter (TOIS 2025), a smaller sketch whose buckets forget the id seen longest ago, unless
its importance has reached 5. An id is hot once its importance reaches a threshold: it gets a row, which begins as a
copy of its hashed row. A bucket of HotSketch replaces its least important id without a row, and adds up both
importances. Once 1.2 times as many ids are hot as there are rows, the threshold becomes the importance at the last row,
and rows below it are freed in that step. Increments grow by 1 / (1 - 5e-7) in each step, which is a decay of all
others.

Other ids share hashed rows, a part of the budget. Left out: a second hashed layer for medium ids. Added: an owner for
each row (12 bytes), so that consumers of changes know whose row it is. As in the authors' code, optimizer state begins
anew.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from pydantic import Field

from headrace.compiling import kernel
from headrace.embeddings.budget import RetentionConfig
from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.hashing import mix64, multiply_shift
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.lifecycle.row_retention import NO_SWAPS, Swaps, exact_ids
from headrace.embeddings.tables.partitions import Partition
from headrace.embeddings.tables.row_plan import RowPlan
from headrace.embeddings.tables.shared_rows import SharedRows

__all__ = ["CafeConfig", "CafeRetention"]

SLOTS = 4
SLOT_BYTES = 12
OWNER_BYTES = 12
KEEPS = 5.0
"""An id with this importance moves from ColdSifter to HotSketch rather than being forgotten."""
TOO_MANY = 1.2
GROWTH = 1 / (1 - 5e-7)

SEEN, THRESHOLD, INCREMENT, FREE, NUM_FREE, NUM_HOT = range(6)
"""Entries of the sketch's counters: ids seen, threshold of hot ids, factor of increments, first free place plus one,
free rows, and ids that have reached the threshold."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Uint32s = npt.NDArray[np.uint32]


class CafeConfig(RetentionConfig):
    """CAFE+ as published: a sketch finds hot ids, which have rows; others share hashed rows."""

    has_partitions: ClassVar[bool] = True
    kind: Literal["cafe"] = "cafe"
    shared_ratio: float = Field(default=0.3, gt=0, lt=1)
    """Part of the budget for hashed rows."""
    sifter_ratio: float = Field(default=0.1, ge=0, lt=1)
    """Part of the buckets that are ColdSifter's; 0 for none, as in CAFE."""
    threshold: float = Field(default=2.0, gt=0)
    """First threshold of hot ids, in mean gradient norms; raised once too many are hot."""

    def keyed(self, tables: Sequence[TableConfig], budget_bytes: int) -> tuple[TableConfig, ...]:
        """See `RetentionConfig.keyed`."""
        return exact_ids(tables)

    def build_partition(
        self,
        tables: Sequence[TableConfig],
        budget_bytes: int,
        partition: Partition | None,
        *,
        seed: int,
        make_storage: MakeStorage,
    ) -> BudgetedTableGroup:
        """See `RetentionConfig.build_partition`."""
        plan = RowPlan.of(
            tables,
            budget_bytes,
            shared_ratio=self.shared_ratio,
            metadata_bytes=0,
            index_bytes=lambda num_rows: (
                SLOT_BYTES * SLOTS * sum(_num_buckets(num_rows, self.sifter_ratio)) + OWNER_BYTES * num_rows + 8 * 6
            ),
        )

        def make_retention(plan: RowPlan, first_row: int) -> CafeRetention:
            return CafeRetention(self, plan.num_rows, len(tables), first_row=first_row)

        return BudgetedTableGroup(
            tables, plan, make_retention, policy=self.kind, seed=seed, make_storage=make_storage, partition=partition
        )


class CafeSketch:
    """HotSketch and ColdSifter, and the owner of each row.

    Args:
        num_rows: Number of rows K.
        first_row: Number of the first row.
        sifter_ratio: Part of the buckets that are ColdSifter's.
        threshold: First threshold of hot ids.
    """

    def __init__(self, num_rows: int, first_row: int, sifter_ratio: float, threshold: float) -> None:
        self.first_row = first_row
        num_hot, num_cold = (SLOTS * buckets for buckets in _num_buckets(num_rows, sifter_ratio))
        self.hot_tags: Uint32s = np.zeros(num_hot, dtype=np.uint32)  # 0: free
        self.hot_importance: Float32s = np.zeros(num_hot, dtype=np.float32)
        self.hot_places: Int32s = np.zeros(num_hot, dtype=np.int32)  # place of the row plus one; 0 for none
        self.cold_tags: Uint32s = np.zeros(num_cold, dtype=np.uint32)
        self.cold_importance: Float32s = np.zeros(num_cold, dtype=np.float32)
        self.cold_seen: Float32s = np.zeros(num_cold, dtype=np.float32)
        self.tables: Int32s = np.full(num_rows, -1, dtype=np.int32)  # -1: free
        self.ids: Int64s = np.arange(2, num_rows + 2, dtype=np.int64)  # of a free row: next free place plus one
        self.ids[-1] = 0
        self.counters: Float64s = np.array([0, threshold, 1, 1, num_rows, 0], dtype=np.float64)

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """All arrays by name."""
        return {name: array for name, array in vars(self).items() if isinstance(array, np.ndarray)}

    @property
    def num_rows(self) -> int:
        """Rows in use."""
        return len(self.ids) - int(self.counters[NUM_FREE])

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays."""
        return sum(array.nbytes for array in self.arrays().values())

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for keys without a row."""
        rows = np.empty(len(keys), dtype=np.int64)
        _resolve(keys.tables, keys.ids, self.hot_tags, self.hot_places, self.tables, self.ids, self.first_row, rows)
        return rows

    def find(self, keys: Keys, shared: SharedRows, records: npt.NDArray[np.void]) -> tuple[Int64s, int]:
        """See `RowIndexOfFixedSize.find`."""
        rows = self.resolve(keys)
        return rows, shared.find(keys, rows, records)

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows [R]."""
        return self.tables[rows - self.first_row], self.ids[rows - self.first_row]

    def rows(self) -> Int64s:
        """The rows in use, ascending."""
        return np.flatnonzero(self.tables >= 0) + self.first_row

    def release(self, rows: Int64s) -> None:
        """Free some rows [R] in use; their ids stay in the sketch without importance."""
        for place in (rows - self.first_row).tolist():
            slots = np.flatnonzero(self.hot_places == place + 1)
            self.hot_places[slots], self.hot_importance[slots] = 0, 0
            self.tables[place], self.ids[place] = -1, int(self.counters[FREE])
            self.counters[FREE] = place + 1
            self.counters[NUM_FREE] += 1


class CafeRetention:
    """A `RowRetention` as in CAFE+.

    Args:
        config: Settings.
        num_rows: Number of rows K.
        num_tables: Number of tables.
        first_row: Number of the first row.
    """

    num_bytes = 0  # the sketch is the index

    inherited_ratio = None

    def __init__(self, config: CafeConfig, num_rows: int, num_tables: int, *, first_row: int) -> None:
        self._num_tables = num_tables
        self.index = CafeSketch(num_rows, first_row, config.sifter_ratio, config.threshold)

    def may_admit(self, keys: Keys, rows: Int64s) -> npt.NDArray[np.bool_]:
        """See `RowRetention.may_admit`."""
        return np.zeros(len(keys), dtype=np.bool_)  # ids without a row read shared rows

    def admit(self, keys: Keys, rows: Int64s) -> Int64s:
        """See `RowRetention.admit`: none, ids become hot by their gradients."""
        return np.empty(0, dtype=np.int64)

    def observe(self, keys: Keys, rows: Int64s, norms: Float32s, *, step: int, num_rows: int) -> Swaps:
        """See `RowRetention.observe`."""
        sketch = self.index
        freed = self._raise_threshold()
        evicted = Keys(sketch.tables[freed], sketch.ids[freed], np.zeros(len(freed), dtype=np.int32))
        _free_places(freed, sketch.tables, sketch.ids, sketch.counters)
        sketch.counters[INCREMENT] *= GROWTH
        places = np.full(len(keys), -1, dtype=np.int64)
        _observe(
            keys.tables,
            keys.ids,
            _relative(keys.tables, norms, self._num_tables),
            sketch.hot_tags,
            sketch.hot_importance,
            sketch.hot_places,
            sketch.cold_tags,
            sketch.cold_importance,
            sketch.cold_seen,
            sketch.tables,
            sketch.ids,
            sketch.counters,
            places,
        )
        admitted = np.flatnonzero(places >= 0)
        if not len(freed) and not len(admitted):
            return NO_SWAPS
        return Swaps(
            freed + sketch.first_row,
            evicted,
            places[admitted] + sketch.first_row,
            keys.take(admitted),
            np.zeros(len(admitted), dtype=np.float32),
        )

    def release(self, rows: Int64s) -> None:
        """See `RowRetention.release`."""
        self.index.release(rows)

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `RowRetention.columns`."""
        return {f"retention.{name}": array.copy() for name, array in self.index.arrays().items()}

    def load(self, columns: Mapping[str, npt.NDArray[Any]], keys: Keys, rows: Int64s) -> None:
        """See `RowRetention.load`."""
        for name, array in self.index.arrays().items():
            array[...] = columns[f"retention.{name}"]

    def _raise_threshold(self) -> Int64s:
        """If too many ids are hot, raise the threshold to the importance at the last row.

        Returns:
            Places int64 [E] of rows whose ids are no longer hot.
        """
        sketch, num_rows = self.index, len(self.index.ids)
        if sketch.counters[NUM_HOT] <= TOO_MANY * num_rows:
            return np.empty(0, dtype=np.int64)
        chosen = np.flatnonzero((sketch.hot_importance >= sketch.counters[THRESHOLD]) | (sketch.hot_places > 0))
        chosen = chosen[np.argsort(-sketch.hot_importance[chosen], kind="stable")]
        sketch.counters[NUM_HOT] = min(num_rows, len(chosen))
        if len(chosen) <= num_rows:
            return np.empty(0, dtype=np.int64)
        sketch.counters[THRESHOLD] = sketch.hot_importance[chosen[num_rows - 1]]
        cold = chosen[num_rows:]
        places = sketch.hot_places[cold].astype(np.int64) - 1
        sketch.hot_places[cold] = 0
        return places[places >= 0]


def _num_buckets(num_rows: int, sifter_ratio: float) -> tuple[int, int]:
    """Buckets of HotSketch and of ColdSifter; one per row in total."""
    num_cold = max(1, int(sifter_ratio * num_rows)) if sifter_ratio else 0
    return max(1, num_rows - num_cold), num_cold


def _relative(tables: Int32s, norms: Float32s, num_tables: int) -> Float32s:
    """Norms divided by the mean of the table in this batch; 0 where they are not finite."""
    norms = np.where(np.isfinite(norms), norms, np.float32(0))
    sums = np.bincount(tables, weights=norms, minlength=num_tables)
    means = sums / np.maximum(np.bincount(tables, minlength=num_tables), 1)
    relative: Float32s = (norms / np.where(means > 0, means, 1)[tables]).astype(np.float32)
    return relative


@kernel()
def _slot_of(tags: Uint32s, table: int, key: int, salt: np.uint64) -> tuple[Any, Any]:
    """The first slot of the bucket of an id, and its tag."""
    hashed = mix64(mix64(np.uint64(key) ^ np.uint64(0x8CB92BA72F3D8DD7)) + np.uint64(table))
    tag = np.uint32(hashed & np.uint64(0xFFFFFFFF))
    tag = tag if tag != np.uint32(0) else np.uint32(1)
    return _bucket_of(tags, tag, salt), tag


@kernel()
def _bucket_of(tags: Uint32s, tag: np.uint32, salt: np.uint64) -> Any:
    """The first slot of the bucket of a tag."""
    hashed = mix64(np.uint64(tag) + (salt << np.uint64(40)))
    return np.int64(multiply_shift(hashed, np.uint64(len(tags) // SLOTS))) * SLOTS


@kernel()
def _resolve(
    tables: Int32s,
    ids: Int64s,
    hot_tags: Uint32s,
    hot_places: Int32s,
    row_tables: Int32s,
    row_ids: Int64s,
    first_row: int,
    rows: Int64s,
) -> None:
    for u in range(len(ids)):
        rows[u] = 0
        first, tag = _slot_of(hot_tags, tables[u], ids[u], np.uint64(0))
        for slot in range(first, first + SLOTS):
            place = hot_places[slot] - 1
            if hot_tags[slot] == tag and place >= 0 and row_tables[place] == tables[u] and row_ids[place] == ids[u]:
                rows[u] = first_row + place


@kernel()
def _take_place(table: int, key: int, row_tables: Int32s, row_ids: Int64s, counters: Float64s) -> np.int64:
    place = np.int64(counters[FREE]) - 1
    counters[FREE] = row_ids[place]
    counters[NUM_FREE] -= 1
    row_tables[place], row_ids[place] = table, key
    return place


@kernel()
def _free_places(places: Int64s, row_tables: Int32s, row_ids: Int64s, counters: Float64s) -> None:
    for i in range(len(places)):
        row_tables[places[i]], row_ids[places[i]] = -1, np.int64(counters[FREE])
        counters[FREE] = places[i] + 1
        counters[NUM_FREE] += 1


@kernel()
def _enter(
    tag: np.uint32, importance: np.float32, first: int, tags: Uint32s, importances: Float32s, places: Int32s
) -> np.int64:
    """Put an id into a bucket of HotSketch; its slot, or -1 if the least important id there has a row."""
    least = np.int64(first)
    for slot in range(first, first + SLOTS):
        if tags[slot] == 0:
            tags[slot], importances[slot] = tag, importance
            return np.int64(slot)
        if importances[slot] < importances[least]:
            least = np.int64(slot)
    if places[least] != 0:
        return np.int64(-1)
    tags[least] = tag
    importances[least] += importance
    return least


@kernel()
def _observe(
    tables: Int32s,
    ids: Int64s,
    norms: Float32s,
    hot_tags: Uint32s,
    hot_importance: Float32s,
    hot_places: Int32s,
    cold_tags: Uint32s,
    cold_importance: Float32s,
    cold_seen: Float32s,
    row_tables: Int32s,
    row_ids: Int64s,
    counters: Float64s,
    places: Int64s,
) -> None:
    """Add to the importance of ids, and give free rows to hot ones: `places` [U], -1 for the others."""
    threshold = counters[THRESHOLD]
    for u in range(len(ids)):
        more = np.float32(norms[u] * counters[INCREMENT])
        first, tag = _slot_of(hot_tags, tables[u], ids[u], np.uint64(0))
        found = np.int64(-1)
        for slot in range(first, first + SLOTS):
            if hot_tags[slot] == tag:
                found = np.int64(slot)
        if found >= 0:
            counters[NUM_HOT] += hot_importance[found] < threshold and hot_importance[found] + more >= threshold
            hot_importance[found] += more
        elif len(cold_tags) == 0:
            found = _enter(tag, more, first, hot_tags, hot_importance, hot_places)
            if found < 0:
                continue
            counters[NUM_HOT] += hot_importance[found] >= threshold
        else:
            counters[SEEN] += 1
            cold, _ = _slot_of(cold_tags, tables[u], ids[u], np.uint64(1))
            oldest, held = np.int64(cold), np.int64(-1)
            for slot in range(cold, cold + SLOTS):
                if cold_tags[slot] == tag:
                    held = np.int64(slot)
                if cold_seen[slot] < cold_seen[oldest]:
                    oldest = np.int64(slot)
            if held < 0:
                if cold_importance[oldest] >= KEEPS:  # not hot, as the threshold is higher
                    moved = cold_tags[oldest]
                    bucket = _bucket_of(hot_tags, moved, np.uint64(0))
                    _enter(moved, cold_importance[oldest], bucket, hot_tags, hot_importance, hot_places)
                held = oldest
                cold_tags[held], cold_importance[held] = tag, np.float32(0)
            cold_seen[held] = np.float32(counters[SEEN])
            cold_importance[held] += more
            if cold_importance[held] < threshold:
                continue
            counters[NUM_HOT] += 1
            found = _enter(tag, cold_importance[held], first, hot_tags, hot_importance, hot_places)
            if found < 0:
                continue
            cold_tags[held], cold_importance[held], cold_seen[held] = np.uint32(0), np.float32(0), np.float32(0)
        if hot_importance[found] >= threshold and hot_places[found] == 0 and counters[NUM_FREE] > 0:
            places[u] = _take_place(tables[u], ids[u], row_tables, row_ids, counters)
            hot_places[found] = places[u] + 1
