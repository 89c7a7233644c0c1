"""Interface of retention under a budget: which ids have rows, and when a row moves to another id."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.tables.shared_rows import SharedRows

__all__ = ["NO_SWAPS", "Demand", "ResizableRetention", "RowRetention", "Swaps", "bounded_ids", "exact_ids"]

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]
Float32s = npt.NDArray[np.float32]
Columns = Mapping[str, npt.NDArray[Any]]

_NO_ROWS: Int64s = np.empty(0, dtype=np.int64)
_NO_KEYS = Keys(np.empty(0, np.int32), np.empty(0, np.int64), np.empty(0, np.int32))


@dataclass(frozen=True, eq=False)
class Swaps:
    """Rows that moved from ids to other ids.

    Attributes:
        freed_rows: int64 [E], rows that lost their id.
        evicted: The ids [E] that had them.
        rows: int64 [A], rows that have a new id; rows of `freed_rows` may be among them.
        admitted: The ids [A] that have them now.
        occurrences: float32 [A], about how often each of these occurred before. Optimizer state of the shared row that
            is a sum over its updates is divided in this proportion.
    """

    freed_rows: Int64s
    evicted: Keys
    rows: Int64s
    admitted: Keys
    occurrences: Float32s

    def followed_by(self, later: Swaps) -> Swaps:
        """These, and others of the same step."""
        if not len(later.rows) or not len(self.rows):
            return later if len(later.rows) else self
        keys = [
            Keys(*(np.concatenate(pair) for pair in zip(_columns(mine), _columns(others), strict=True)))
            for mine, others in ((self.evicted, later.evicted), (self.admitted, later.admitted))
        ]
        freed_rows, rows = np.concatenate([self.freed_rows, later.freed_rows]), np.concatenate([self.rows, later.rows])
        return Swaps(freed_rows, keys[0], rows, keys[1], np.concatenate([self.occurrences, later.occurrences]))


def _columns(keys: Keys) -> tuple[npt.NDArray[Any], ...]:
    return keys.tables, keys.ids, keys.counts


NO_SWAPS = Swaps(_NO_ROWS, _NO_KEYS, _NO_ROWS, _NO_KEYS, np.empty(0, dtype=np.float32))


class RowIndexOfFixedSize(Protocol):
    """A map between ids and a fixed number of rows, see `KeyIndex`."""

    @property
    def num_rows(self) -> int:
        """Rows in use."""

    @property
    def num_bytes(self) -> int:
        """Bytes of the map."""

    def resolve(self, keys: Keys) -> Int64s:
        """Rows int64 [U] of keys; 0 for keys without a row."""

    def find(self, keys: Keys, shared: SharedRows, records: npt.NDArray[np.void]) -> tuple[Int64s, int]:
        """Rows int64 [U] that keys read: their own, or shared ones; `NEW` for shared rows that were never updated.

        Returns:
            The rows, and how many are `NEW`.
        """

    def owners(self, rows: Int64s) -> tuple[Int32s, Int64s]:
        """The (table, id) of rows [R]."""

    def rows(self) -> Int64s:
        """The rows in use, ascending."""


class RowRetention(Protocol):
    """Decides which ids have rows. The table group keeps the rows, and starts those of newly admitted ids.

    Decisions must be a function of the calls so far. Not thread-safe.
    """

    @property
    def index(self) -> RowIndexOfFixedSize:
        """Which id has which row."""

    @property
    def num_bytes(self) -> int:
        """Bytes of all metadata of ids beside `index`."""

    @property
    def inherited_ratio(self) -> float | None:
        """Part of its shared row that is added to the initial values of an id that gets a row in `observe`; None for a
        copy of the shared row instead."""

    def may_admit(self, keys: Keys, rows: Int64s) -> npt.NDArray[np.bool_]:
        """Whether each key [U] will get a free row in the update that follows, so that it reads its initial value.

        Only asked for tables whose other ids read zeros.
        """

    def admit(self, keys: Keys, rows: Int64s) -> Int64s:
        """Give free rows to keys before they are updated.

        Args:
            keys: Unique keys of an update.
            rows: int64 [U], the keys' own rows, or shared ones, which have lower numbers, or 0; filled in for keys that
                get one.

        Returns:
            Positions int64 [A] of these keys.
        """

    def observe(self, keys: Keys, rows: Int64s, norms: Float32s, *, step: int, num_rows: int) -> Swaps:
        """Take note of an update, after it, and move rows.

        Args:
            keys: Unique keys, with their counts.
            rows: int64 [U], the keys' own rows in the update; the number of a shared row, or 0, for other keys.
            norms: float32 [U], L2 norm of the gradient of each key.
            step: Number of the step.
            num_rows: Rows of the batch, of all trainers.
        """

    def release(self, rows: Int64s) -> None:
        """Free rows [R] in use and forget their ids."""

    def columns(self) -> dict[str, npt.NDArray[Any]]:
        """State beside the index, for a checkpoint; names begin with `retention.`."""

    def load(self, columns: Columns, keys: Keys, rows: Int64s) -> None:
        """Inverse of `columns`, in a new policy.

        Args:
            columns: The saved columns.
            keys: The ids that have rows and were updated.
            rows: int64 [R], their rows.
        """


BUCKETS_PER_OCTAVE, ZERO_BUCKET, NUM_BUCKETS = 4, 64, 128
"""Importance is counted in buckets of 19 %, from 2^-16 to 2^16 occurrences of mean gradient norm."""


@dataclass(frozen=True)
class Demand:
    """How many rows a partition could use.

    Attributes:
        num_rows: Number of rows that it has.
        histogram: Number of its ids, with and without a row, by importance: bucket b is for importance of at least
            2^((b - 64) / 4), and the first also for anything below. None if it cannot be resized.
    """

    num_rows: int
    histogram: tuple[int, ...] | None

    @classmethod
    def of(cls, num_rows: int, importance: Float32s) -> Demand:
        """The demand of ids of some importance [N], in occurrences of mean gradient norm."""
        logarithms = np.log2(np.maximum(importance.astype(np.float64), 2.0**-30))
        buckets = np.floor(BUCKETS_PER_OCTAVE * logarithms).astype(np.int64) + ZERO_BUCKET
        counts = np.bincount(np.clip(buckets, 0, NUM_BUCKETS - 1), minlength=NUM_BUCKETS)
        return cls(num_rows, tuple(counts.tolist()))


@runtime_checkable
class ResizableRetention(RowRetention, Protocol):
    """A `RowRetention` whose number of rows can change between steps."""

    def demand(self) -> Demand:
        """How many rows it could use."""

    def least_important(self, num_rows: int) -> Int64s:
        """The rows in use, ascending, whose ids would lose them if so many had to."""

    def give_up(self, rows: Int64s) -> None:
        """Free rows [R] in use; their ids are known as ids without a row."""

    def resize(self, num_rows: int) -> Int64s:
        """Change the number of rows, to at least those in use.

        Returns:
            The rows int64 [R] that are kept, ascending: in their order they are the first rows now. All of them if rows
            are added, those in use otherwise.
        """


def exact_ids(tables: Sequence[TableConfig]) -> tuple[TableConfig, ...]:
    """The tables with keys that are ids; those of hashed tables are not hashed."""
    return tuple(
        table.model_copy(update={"kind": "collisionless", "init_scale": table.scale})
        if table.kind == "hashed"
        else table
        for table in tables
    )


def bounded_ids(tables: Sequence[TableConfig]) -> tuple[TableConfig, ...]:
    """The tables with keys that are numbers below `num_embeddings`; ids of all but direct tables are hashed."""
    return tuple(
        table
        if table.kind == "direct"
        else table.model_copy(update={"kind": "hashed", "init_scale": table.scale, "evict_after": None})
        for table in tables
    )
