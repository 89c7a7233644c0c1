"""What a policy plans: movements of rows between trainers and the shards, and what each costs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import numpy as np
import numpy.typing as npt

__all__ = ["ALL", "SHARD", "Action", "Drop", "Kind", "Move", "Plan", "RowBytes"]

Int32s = npt.NDArray[np.int32]
Float64s = npt.NDArray[np.float64]

SHARD = -1
"""Source or target of a move: the shards, which keep all rows."""

ALL = -2
"""Source and target of an all-reduce: every trainer."""


class Kind(IntEnum):
    """Kinds of movements.

    READ        values of rows, without optimizer state, to a trainer that will not update the row itself
    FETCH       rows with optimizer state from the shards to a trainer
    HAND_OVER   rows with optimizer state from one trainer to another
    GRADIENT    a trainer's own gradients since it last sent any, to the shards or to another trainer
    ALL_REDUCE  gradients of the same rows of all trainers, summed, to all of them
    WRITE_BACK  rows with optimizer state from a trainer to the shards
    CHECK       ids and versions of cached rows, to ask whether they are outdated
    """

    READ = 0
    FETCH = 1
    HAND_OVER = 2
    GRADIENT = 3
    ALL_REDUCE = 4
    WRITE_BACK = 5
    CHECK = 6


@dataclass(frozen=True)
class RowBytes:
    """Bytes of a row, from which each kind of movement has its price.

    An id is 8 bytes. Fetches, hand-overs and write-backs carry 20 bytes of id and metadata beside row and state,
    gradients 12 (id and count), checks an id and a version. In an all-reduce every trainer knows the order, so ids are
    not sent.

    Attributes:
        row: Bytes of the values.
        state: Bytes of the optimizer state.
    """

    row: int = 64
    state: int = 4

    def by_kind(self) -> Float64s:
        """float64 [kinds], bytes per row of each `Kind`."""
        whole = self.row + self.state + 20
        return np.array([8 + self.row, whole, whole, 12 + self.row, self.row, whole, 16], dtype=np.float64)

    def of(self, kind: Kind) -> int:
        """Bytes per row of a kind of movement."""
        return int(self.by_kind()[kind])


@dataclass(frozen=True, eq=False)
class Move:
    """Rows that move together.

    Attributes:
        kind: Kind of movement.
        source: Trainer, `SHARD`, or `ALL`.
        target: Trainer, `SHARD`, or `ALL`.
        rows: int32 [n], different rows.
        hidden: Whether work of the same step that does not need the rows runs meanwhile, so nothing waits.
    """

    kind: Kind
    source: int
    target: int
    rows: Int32s
    hidden: bool = False


@dataclass(frozen=True, eq=False)
class Drop:
    """Copies that a trainer discards, with all updates that it has not sent.

    Attributes:
        trainer: The trainer.
        rows: int32 [n], different rows.
    """

    trainer: int
    rows: Int32s


Action = Move | Drop


@dataclass(frozen=True)
class Plan:
    """Actions around one step, in order.

    Attributes:
        before: After the updates of the previous step and before this step reads: the step waits for them.
        during: While the step computes, so they see rows as they were before its updates.
    """

    before: Sequence[Action] = field(default_factory=list)
    during: Sequence[Action] = field(default_factory=list)
