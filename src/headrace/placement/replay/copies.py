"""`Copies`: which updates each copy of each row contains, from which stale reads and lost updates are counted.

Every trainer that uses a row in a step makes one update of it. Updates of one trainer are applied in order, so a copy
is described by how many updates of each trainer it contains: a vector clock per copy. A read is fresh if the copy
contains all updates of all earlier steps.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from headrace.placement.replay.movement import ALL, SHARD, Drop, Kind, Move

__all__ = ["Copies", "InvalidPlan"]

Int32s = npt.NDArray[np.int32]
Bools = npt.NDArray[np.bool_]


class InvalidPlan(ValueError):
    """A policy planned something impossible: a row that its source does not hold, or more rows than fit."""


class Copies:
    """Copies of all rows at the shards and at each trainer. At first, only the shards have rows.

    Args:
        num_rows: Number of rows.
        num_trainers: Number of trainers W.
        capacity: Maximum number of rows per trainer; None for no limit.

    Attributes:
        resident: bool [W, rows], whether a trainer holds a copy.
        num_resident: int64 [W], number of copies.
        most_resident: Maximum of `num_resident` so far.
        num_misapplied: Gradients that could not be applied, because updates before them are missing, or are repeated.
    """

    def __init__(self, num_rows: int, num_trainers: int, capacity: int | None = None) -> None:
        self._num_trainers = num_trainers
        self._capacity = capacity
        self.resident: Bools = np.zeros((num_trainers, num_rows), dtype=np.bool_)
        self.num_resident = np.zeros(num_trainers, dtype=np.int64)
        self.most_resident = 0
        self.num_misapplied = 0
        # Updates made by each trainer, those it has sent, and those in the copy of each holder; the last is the shards.
        self._made: Int32s = np.zeros((num_rows, num_trainers), dtype=np.int32)
        self._sent: Int32s = np.zeros((num_rows, num_trainers), dtype=np.int32)
        self._clock: Int32s = np.zeros((num_trainers + 1, num_rows, num_trainers), dtype=np.int32)
        self._flushed: list[tuple[int, Int32s]] = []

    def drop(self, drop: Drop) -> None:
        """Discard copies of a trainer, with the updates that it has not sent."""
        self._check_held(drop.trainer, drop.rows, "drops")
        self.resident[drop.trainer, drop.rows] = False
        self.num_resident[drop.trainer] -= len(drop.rows)
        self._sent[drop.rows, drop.trainer] = self._made[drop.rows, drop.trainer]

    def move(self, move: Move) -> None:
        """Carry out a movement.

        Raises:
            InvalidPlan: The source or the target of a gradient does not hold a row, or the target has no room.
        """
        if move.kind == Kind.CHECK:
            self._check_held(move.source, move.rows, "checks")
        elif move.kind == Kind.ALL_REDUCE:
            self._all_reduce(move.rows)
        elif move.kind == Kind.GRADIENT:
            self._send_gradient(move.source, move.target, move.rows)
        else:
            self._copy(move)

    def are_trained(self, rows: Int32s) -> Bools:
        """bool [n], whether rows have any updates."""
        trained: Bools = self._made[rows].sum(axis=1) > 0
        return trained

    def end_phase(self) -> None:
        """Forget gradients that were sent since the last call: until then, one may be sent to several targets."""
        for trainer, rows in self._flushed:
            self._sent[rows, trainer] = self._made[rows, trainer]
        self._flushed.clear()

    def missing(self, trainer: int, rows: Int32s) -> Int32s:
        """int32 [n], the number of updates that a trainer's copies do not contain; -1 for rows it does not hold."""
        missing = (self._made[rows] - self._clock[trainer, rows]).sum(axis=1, dtype=np.int32)
        return np.where(self.resident[trainer, rows], missing, np.int32(-1))

    def update(self, trainer: int, rows: Int32s) -> None:
        """Record the updates of a step, which are in the trainer's own copies at once."""
        made = self._made[rows, trainer]
        is_whole = self._clock[trainer, rows, trainer] == made
        self._made[rows, trainer] = made + 1
        whole = rows[is_whole]
        self._clock[trainer, whole, trainer] = made[is_whole] + 1

    def num_lost(self) -> int:
        """Number of updates that the shards do not have."""
        return int(np.maximum(self._made - self._clock[SHARD], 0).sum(dtype=np.int64))

    def _copy(self, move: Move) -> None:
        source, target, rows = move.source, move.target, move.rows
        if source != SHARD:
            self._check_held(source, rows, f"is the source of a {move.kind.name}")
            if move.kind != Kind.READ:  # the row contains its gradients
                self._sent[rows, source] = self._made[rows, source]
        sent = self._sent[rows, target] if target != SHARD else None
        self._clock[target, rows] = self._clock[source, rows]
        if target == SHARD:
            return
        if move.kind == Kind.READ:  # a trainer applies its unsent gradients to the values it reads
            unsent = rows[self._clock[target, rows, target] == sent]
            self._clock[target, unsent, target] = self._made[unsent, target]
        else:
            self._sent[rows, target] = self._made[rows, target]
        self._hold(target, rows)

    def _hold(self, trainer: int, rows: Int32s) -> None:
        self.num_resident[trainer] += len(rows) - int(np.count_nonzero(self.resident[trainer, rows]))
        self.resident[trainer, rows] = True
        self.most_resident = max(self.most_resident, int(self.num_resident[trainer]))
        if self._capacity is not None and self.num_resident[trainer] > self._capacity:
            raise InvalidPlan(
                f"trainer {trainer} holds {self.num_resident[trainer]:,} rows, expected at most {self._capacity:,}"
            )

    def _send_gradient(self, source: int, target: int, rows: Int32s) -> None:
        self._check_held(source, rows, "sends gradients")
        if target != SHARD:
            self._check_held(target, rows, "receives gradients")
        fits = self._clock[target, rows, source] == self._sent[rows, source]
        self.num_misapplied += len(rows) - int(np.count_nonzero(fits))
        fitting = rows[fits]
        self._clock[target, fitting, source] = self._made[fitting, source]
        self._flushed.append((source, rows))

    def _all_reduce(self, rows: Int32s) -> None:
        for trainer in range(self._num_trainers):
            self._check_held(trainer, rows, "takes part in an all-reduce")
        sent, made = self._sent[rows], self._made[rows]
        for trainer in range(self._num_trainers):
            fits = self._clock[trainer, rows] == sent
            fits[:, trainer] = True
            self.num_misapplied += int(np.count_nonzero(~fits))
            self._clock[trainer, rows] = np.where(fits, made, self._clock[trainer, rows])
            self._flushed.append((trainer, rows))

    def _check_held(self, trainer: int, rows: Int32s, does: str) -> None:
        assert trainer not in (SHARD, ALL), f"expected a trainer that {does}"
        held = self.resident[trainer, rows]
        if not held.all():
            raise InvalidPlan(f"trainer {trainer} {does}, but does not hold row {rows[~held][0]}")
