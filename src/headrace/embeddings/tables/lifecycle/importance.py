"""Retention by importance, the default under a budget: rows go to the ids whose gradients are largest over time.

The importance of an id is its frequency times its mean gradient norm, as in AdaEmbed (Lai et al., OSDI 2023, section
4.1), decayed by a half-life. It is a by-product of the gradients that are pushed anyway. To compare ids of different
tables, norms are divided by the mean norm per occurrence of the table. Importance of an id with a row is a float32; of
ids without a row, a sketch keeps the most important in 6 bytes each, see `importance_sketch`.

After an update, each important id without a row is compared with the least important of the next 64 rows; a hand moves
over all rows in turn (as in the CLOCK algorithm). If the id is more important by a margin, the row is its own from now
on. So swaps are spread over steps, and no step looks at all rows. The margin keeps two ids from taking turns.

Decay costs nothing: increments grow by 2^(rows / half-life) instead (as in CAFE+, Liu et al., TOIS 2025, section 4),
and all values are rescaled once in 32 half-lives.

Unlike AdaEmbed, ids without a row read and train a shared row of their table, an admitted id starts from initial values
of its own and a part of the shared row, with optimizer state, and metadata of an id without a row takes 6 bytes, not
12, and none in the tail. CAFE (Zhang et al., SIGMOD 2024, section 3.3) copies the shared row. But that row is what ids
without a row are like, and those that get one differ: on a log of news, they are the popular ones.
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
from headrace.embeddings.ops.hashing import mix64, unit_float
from headrace.embeddings.ops.prefetch import AHEAD, prefetch
from headrace.embeddings.storage.protocol import MakeStorage
from headrace.embeddings.tables.budgeted_table_group import BudgetedTableGroup
from headrace.embeddings.tables.index.key_index import KeyIndex
from headrace.embeddings.tables.lifecycle.importance_sketch import (
    SLOT_BYTES,
    SLOTS,
    exchange,
    find_slot,
    remember,
    scale_values,
    slot_of,
    values_of,
)
from headrace.embeddings.tables.lifecycle.row_retention import NO_SWAPS, Demand, Swaps, exact_ids
from headrace.embeddings.tables.partitions import Partition
from headrace.embeddings.tables.row_plan import RowPlan

__all__ = ["ImportanceConfig", "ImportanceRetention"]

IMPORTANCE_BYTES = 4

EXAMINED = 64
"""Rows that are compared with an id: four cache lines of importances."""
SWAP_SHARE = 64
"""At most one in this many rows moves per step, so that no step takes much longer than others."""
MIN_SWAPS = 64

REBASE_AT = 32.0
"""Half-lives after which all values are rescaled; float32 and bf16 have room for 127."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Float64s = npt.NDArray[np.float64]
Uint32s = npt.NDArray[np.uint32]
Uint16s = npt.NDArray[np.uint16]

_NOBODY = np.empty(0, dtype=np.int32), np.empty(0, dtype=np.int64), np.empty(0, dtype=np.float32)


class ImportanceConfig(RetentionConfig):
    """Rows for the ids with the largest decayed sum of gradient norms; other ids share rows."""

    has_partitions: ClassVar[bool] = True
    kind: Literal["importance"] = "importance"
    shared_ratio: float = Field(default=0.0, ge=0, lt=1)
    """Part of the budget for shared rows. Each table has at least one: what an unknown id of the table is like."""
    candidates_per_row: float = Field(default=1.0, gt=0)
    """Ids without a row whose importance is tracked, per row; each takes 6 bytes."""
    half_life_rows: float | None = Field(default=1_000_000, gt=0)
    """Rows of the log after which importance counts half; None for no decay."""
    admission: float = Field(default=1.5, ge=0)
    """Importance at which an id can get a row, in occurrences of mean gradient norm; with 0, free rows are given out at
    first sight. Until then, an id trains its shared row."""
    margin: float = Field(default=0.2, ge=0)
    """An id takes over a row if it is more important than the row's id by this part."""
    inherited_ratio: float = Field(default=0.5, ge=0, le=1)
    """Part of its shared row that an admitted id begins with, in addition to the initial values of its own."""

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
            metadata_bytes=IMPORTANCE_BYTES,
            sketch_bytes=SLOT_BYTES * self.candidates_per_row,
            bytes_per_table=32,
        )

        def make_retention(plan: RowPlan, first_row: int) -> ImportanceRetention:
            num_candidates = plan.sketch_bytes // SLOT_BYTES
            return ImportanceRetention(self, len(tables), plan.num_rows, num_candidates, first_row=first_row, seed=seed)

        return BudgetedTableGroup(
            tables, plan, make_retention, policy=self.kind, seed=seed, make_storage=make_storage, partition=partition
        )


class ImportanceRetention:
    """A `RowRetention` by importance.

    Args:
        config: Settings.
        num_tables: Number of tables T.
        num_rows: Number of rows K.
        num_candidates: Number of ids without a row that are tracked; rounded down to whole buckets.
        first_row: Number of the first row.
        seed: Seed of the random decisions of the sketch.

    Attributes:
        importance: float32 [K] of the id of each row, in units that grow over time.
        tags, values: uint32, uint16 [C], the sketch of ids without a row; tag 0 is a free slot.
    """

    def __init__(
        self,
        config: ImportanceConfig,
        num_tables: int,
        num_rows: int,
        num_candidates: int,
        *,
        first_row: int,
        seed: int,
    ) -> None:
        self._config = config
        self._first_row, self._seed = first_row, np.uint64(seed & (2**64 - 1))
        self.index = KeyIndex(first_row, num_rows=num_rows)
        self.importance: Float32s = np.zeros(num_rows, dtype=np.float32)
        num_slots = max(1, num_candidates // SLOTS) * SLOTS
        self.tags: Uint32s = np.zeros(num_slots, dtype=np.uint32)
        self.values: Uint16s = np.zeros(num_slots, dtype=np.uint16)
        self._norms: Float64s = np.zeros((num_tables, 2), dtype=np.float64)  # decayed sums of norms and of occurrences
        self._age = 0.0  # half-lives since the values were last rescaled
        self._hand = 0  # the next place to examine
        self._cut = 0.0  # running mean of the importance of the least important rows that were examined

    @property
    def num_bytes(self) -> int:
        """See `RowRetention`."""
        return sum(each.nbytes for each in (self.importance, self.tags, self.values, self._norms))

    @property
    def inherited_ratio(self) -> float:
        """See `RowRetention.inherited_ratio`."""
        return self._config.inherited_ratio

    @property
    def growth(self) -> float:
        """How much more an occurrence counts now than when the values were last rescaled."""
        return float(2.0**self._age)

    def may_admit(self, keys: Keys, rows: Int64s) -> npt.NDArray[np.bool_]:
        """See `RowRetention.may_admit`."""
        return np.zeros(len(keys), dtype=np.bool_)  # ids without a row read shared rows

    def admit(self, keys: Keys, rows: Int64s) -> Int64s:
        """See `RowRetention.admit`: while rows are free, every id gets one, unless ids must be important first."""
        if not self.index.num_free or self._config.admission > 0:
            return np.empty(0, dtype=np.int64)
        places = np.flatnonzero((rows < self._first_row) & (keys.counts > 0))[: self.index.num_free]
        rows[places] = self.index.allocate(keys.take(places))
        self.importance[rows[places] - self._first_row] = 0
        return places

    def observe(self, keys: Keys, rows: Int64s, norms: Float32s, *, step: int, num_rows: int) -> Swaps:
        """See `RowRetention.observe`."""
        candidates, wanted = np.empty(len(keys), dtype=np.int64), np.empty(len(keys), dtype=np.float32)
        num_candidates = _observe(
            keys.tables,
            keys.ids,
            keys.counts,
            norms,
            rows,
            self._first_row,
            np.float32(self.growth),
            self._seed,
            step,
            np.float32(max(self._least_wanted(), self._config.admission * self.growth)),
            self._norms,
            self.importance,
            self.tags,
            self.values,
            candidates,
            wanted,
        )
        swaps = NO_SWAPS
        if num_candidates:
            swaps = self._move(keys, candidates[:num_candidates], wanted[:num_candidates])
        self._grow_older(num_rows)
        return swaps

    def _least_wanted(self) -> float:
        """Importance below which an id has hardly a chance to take over a row; 0 while rows are free."""
        return 0.0 if self.index.num_free else (1 + self._config.margin) * self._cut

    def release(self, rows: Int64s) -> None:
        """See `RowRetention.release`."""
        self.index.release(rows)
        self.importance[rows - self._first_row] = 0

    def demand(self) -> Demand:
        """See `ResizableRetention.demand`."""
        held = self.importance[self.index.rows() - self._first_row] / self.growth
        others = values_of(self.values) / self.growth
        others = others[(others > 0) & (others > self._config.admission)]
        return Demand.of(len(self.importance), np.concatenate([held, others]))

    def least_important(self, num_rows: int) -> Int64s:
        """See `ResizableRetention.least_important`."""
        rows = self.index.rows()
        return np.sort(rows[np.argsort(self.importance[rows - self._first_row], kind="stable")[:num_rows]])

    def give_up(self, rows: Int64s) -> None:
        """See `ResizableRetention.give_up`."""
        tables, ids = self.index.owners(rows)
        importance = self.importance[rows - self._first_row].copy()
        self.release(rows)
        remember(self.tags, self.values, tables, ids, importance)

    def resize(self, num_rows: int) -> Int64s:
        """See `ResizableRetention.resize`."""
        kept = np.arange(len(self.importance))
        if num_rows < len(kept):
            kept = self.index.rows() - self._first_row
            self._hand = int(np.searchsorted(kept, self._hand))
        in_use = self.index.rows()
        keys = Keys(*self.index.owners(in_use), np.zeros(len(in_use), dtype=np.int32))
        importance = np.zeros(num_rows, dtype=np.float32)
        importance[: len(kept)] = self.importance[kept]
        rows = self._first_row + np.searchsorted(kept, in_use - self._first_row)
        self.index, self.importance = KeyIndex(self._first_row, num_rows=num_rows), importance
        self.index.insert(keys, rows)
        self._hand %= num_rows
        return kept + self._first_row

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """See `RowRetention.columns`."""
        return {
            "retention.importance": self.importance.copy(),
            "retention.tags": self.tags.copy(),
            "retention.values": self.values.copy(),
            "retention.norms": self._norms.copy(),
            "retention.clock": np.array([self._age, self._hand, self._cut], dtype=np.float64),
        }

    def load(self, columns: Mapping[str, npt.NDArray[Any]], keys: Keys, rows: Int64s) -> None:
        """See `RowRetention.load`."""
        self.index.insert(keys, rows)
        for name, array in (
            ("importance", self.importance),
            ("tags", self.tags),
            ("values", self.values),
            ("norms", self._norms),
        ):
            array[...] = columns[f"retention.{name}"]
        age, hand, cut = columns["retention.clock"].tolist()
        self._age, self._hand, self._cut = age, int(hand), cut

    def _move(self, keys: Keys, candidates: Int64s, wanted: Float32s) -> Swaps:
        """Give free rows, and rows of less important ids, to the most important ids that want one.

        Args:
            keys: The keys of the update.
            candidates: int64 [C], positions of ids that want a row, ascending.
            wanted: float32 [C], their importance.
        """
        num_free, max_swaps = self.index.num_free, max(MIN_SWAPS, len(self.importance) // SWAP_SHARE)
        order = _largest(wanted, num_free + max_swaps)
        candidates, wanted = candidates[order], wanted[order]
        given = taken = NO_SWAPS
        if num_free and self._config.admission > 0:  # otherwise free rows were given out in `admit`
            given = self._give_free_rows(keys.take(candidates[:num_free]), wanted[:num_free])
        if len(candidates) > num_free:
            taken = self._take_over(keys, candidates[num_free:], wanted[num_free:])
        return given.followed_by(taken)

    def _give_free_rows(self, admitted: Keys, wanted: Float32s) -> Swaps:
        """Give free rows to ids [A] of some importance."""
        rows = self.index.allocate(admitted)
        self.importance[rows - self._first_row] = wanted
        exchange(self.tags, self.values, admitted.tables, admitted.ids, *_NOBODY)
        return Swaps(NO_SWAPS.freed_rows, NO_SWAPS.evicted, rows, admitted, self._occurrences(wanted))

    def _take_over(self, keys: Keys, candidates: Int64s, wanted: Float32s) -> Swaps:
        """Give rows of less important ids to candidates [O] in descending order of importance."""
        takers, rows = np.empty(len(wanted), dtype=np.int64), np.empty(len(wanted), dtype=np.int64)
        freed, margin = np.empty(len(wanted), dtype=np.float32), np.float32(1 + self._config.margin)
        num_taken, self._hand, self._cut = _find_victims(
            wanted, margin, self._first_row, self.importance, self._hand, self._cut, takers, rows, freed
        )
        if not num_taken:
            return NO_SWAPS
        takers, rows, freed = takers[:num_taken], rows[:num_taken], freed[:num_taken]
        admitted = keys.take(candidates[takers])
        tables, ids = self.index.replace(rows, admitted)
        exchange(self.tags, self.values, admitted.tables, admitted.ids, tables, ids, freed)
        evicted = Keys(tables, ids, np.zeros(num_taken, dtype=np.int32))
        return Swaps(rows, evicted, rows, admitted, self._occurrences(wanted[takers]))

    def _occurrences(self, importance: Float32s) -> Float32s:
        """Importance [A] in occurrences of mean gradient norm."""
        return (importance / self.growth).astype(np.float32)

    def _grow_older(self, num_rows: int) -> None:
        if self._config.half_life_rows is None:
            return
        self._age += num_rows / self._config.half_life_rows
        if self._age < REBASE_AT:
            return
        factor = 2.0 ** -float(int(self._age))  # a power of two, so that no value is rounded
        self._age -= int(self._age)
        self.importance *= np.float32(factor)
        self._norms *= factor
        self._cut *= factor
        scale_values(self.values, np.float32(factor))


def _largest(wanted: Float32s, count: int) -> Int64s:
    """Positions of the `count` largest values, in descending order and then in their own."""
    if len(wanted) <= count:
        return np.argsort(-wanted, kind="stable")
    least = np.partition(wanted, len(wanted) - count)[len(wanted) - count]
    positions = np.flatnonzero(wanted >= least)
    return positions[np.argsort(-wanted[positions], kind="stable")[:count]]


@kernel()
def _observe(
    tables: Int32s,
    ids: Int64s,
    counts: Int32s,
    norms: Float32s,
    rows: Int64s,
    first_row: int,
    growth: np.float32,
    seed: np.uint64,
    step: int,
    cut: np.float32,
    table_norms: Float64s,
    importance: Float32s,
    tags: Uint32s,
    values: Uint16s,
    candidates: Int64s,
    wanted: Float32s,
) -> int:
    """Add to the importance of ids. Those without a row, if it is above `cut`, are candidates; returns their number."""
    for u in range(len(ids)):
        if np.isfinite(norms[u]):
            table_norms[tables[u], 0] += np.float64(growth * norms[u])
            table_norms[tables[u], 1] += np.float64(growth) * counts[u]
    means = np.empty(len(table_norms), dtype=np.float64)
    for table in range(len(means)):
        means[table] = table_norms[table, 0] / max(table_norms[table, 1], 1e-300)
    of_step = mix64(seed ^ mix64(np.uint64(step)))
    scratch = np.empty(1, dtype=np.float32)
    bits = scratch.view(np.uint32)
    firsts, its_tags = np.empty(AHEAD, dtype=np.int64), np.empty(AHEAD, dtype=np.uint32)  # of the next keys
    importance_at, tags_at, values_at = importance.ctypes.data, tags.ctypes.data, values.ctypes.data
    num_candidates = 0
    for ahead in range(len(ids) + AHEAD):
        u, place = ahead - AHEAD, ahead % AHEAD
        first, tag = firsts[place], its_tags[place]
        if ahead < len(ids):
            if rows[ahead] >= first_row:
                prefetch(importance_at + (rows[ahead] - first_row) * importance.itemsize)
            else:
                firsts[place], its_tags[place] = slot_of(tags, tables[ahead], ids[ahead])
                prefetch(tags_at + firsts[place] * tags.itemsize)
                prefetch(values_at + firsts[place] * values.itemsize)
        if u < 0:
            continue
        mean = means[tables[u]]
        more = np.float32(growth * norms[u] / mean) if mean > 0 else np.float32(0.0)
        if not 0 < more < np.inf:  # also if the gradient is not a number
            continue
        if rows[u] >= first_row:
            importance[rows[u] - first_row] += more
            continue
        slot, is_found = find_slot(tags, values, first, tag)
        bits[0] = np.uint32(values[slot]) << np.uint32(16)
        total = scratch[0] + more
        random = mix64(of_step + mix64(np.uint64(ids[u]) ^ (np.uint64(tables[u]) << np.uint64(40))))
        if not is_found and unit_float(random, np.uint64(0)) * total >= more:
            continue
        scratch[0] = total
        tags[slot] = tag
        values[slot] = np.uint16((bits[0] + (np.uint32(random >> np.uint64(48)))) >> np.uint32(16))
        if total > cut:
            candidates[num_candidates], wanted[num_candidates] = u, total
            num_candidates += 1
    return num_candidates


@kernel()
def _find_victims(
    wanted: Float32s,
    margin: np.float32,
    first_row: int,
    importance: Float32s,
    hand: int,
    cut: float,
    takers: Int64s,
    rows: Int64s,
    freed: Float32s,
) -> tuple[int, int, float]:
    """For each candidate, take the least important of the next rows if it is less important by the margin.

    Candidates are in descending order, so that no row is taken twice; `freed` is the importance of the ids that lose
    their rows. Returns the number of these, the hand and the cut.
    """
    num_taken = 0
    for i in range(len(wanted)):
        least, least_value = hand, importance[hand]
        for _ in range(min(EXAMINED, len(importance))):
            if importance[hand] < least_value:
                least, least_value = hand, importance[hand]
            hand += 1
            if hand == len(importance):
                hand = 0
        cut += 0.1 * (least_value - cut)
        if wanted[i] > margin * least_value:
            takers[num_taken], rows[num_taken], freed[num_taken] = i, first_row + least, least_value
            num_taken += 1
            importance[least] = wanted[i]
    return num_taken, hand, cut
