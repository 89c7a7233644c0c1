"""`Lookahead`: rows stay where they are used, and go directly to the trainer that needs them next."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from headrace.placement.replay.assignment import place_samples
from headrace.placement.replay.eviction import farthest_keys, highest
from headrace.placement.replay.movement import SHARD, Action, Drop, Kind, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows, held_by
from headrace.placement.replay.routing import Routes, choose_routes, route_moves
from headrace.placement.replay.stream import NEVER, GlobalBatch, Int8s, Int32s, Int64s

__all__ = ["Lookahead", "PlacedLookahead"]

Bools = npt.NDArray[np.bool_]

NO_ROWS = np.zeros(0, dtype=np.int32)


class _Arrivals(NamedTuple):
    """The rows of the next step, and how they come.

    Attributes:
        step: The next step.
        holders: int64 [U], trainers that hold each row.
        routes: How held rows reach their readers.
        is_late: bool [U], whether they can move only when the step begins.
        is_read_only: bool [U], whether trainers only read values and send gradients, and do not keep the row.
    """

    step: StepRows
    holders: Int64s
    routes: Routes
    is_late: Bools
    is_read_only: Bools

    def incoming(self, trainer: int) -> Bools:
        """bool [U], rows that a trainer needs and does not hold."""
        return held_by(self.step.readers & ~self.holders, trainer)


class Lookahead(PlacementPolicy):
    """Exact placement with direct hand-overs.

    - A row is fetched once, one step ahead, and stays with the trainers that used it last.
    - If another trainer reads it next, it is handed over directly. If several trainers used it in a step, each has its
      own gradient, and nothing moves until the next reader is known: then gradients go to one owner, if possible a
      reader, or are exchanged or all-reduced if that is cheaper (see `choose_routes`). The next step waits only for
      rows that the step before it updated.
    - Rows are written back when their room is needed. Those used farthest in the future leave first, and among those
      without a use in the window the least recently used (Belady's rule within the window). A row that several
      trainers hold costs no write-back: its gradients go to one of them.
    - A fetched row that would leave right after its use, or that is known to have no other, is not kept: its values are
      read and its gradient is sent, as without a cache, which is cheaper than fetching and writing back row and
      optimizer state.
    """

    name = "lookahead"

    def __init__(self, setting: Setting) -> None:
        super().__init__(setting)
        self._capacity = setting.capacity or setting.num_rows
        # Trainers that used a row last, each with its own gradient of that step; 0 if the shards have everything.
        self._holders: Int64s = np.zeros(setting.num_rows, dtype=np.int64)
        self._num_held = np.zeros(setting.num_trainers, dtype=np.int64)
        self._next_use: Int32s = np.full(setting.num_rows, NEVER, dtype=np.int32)
        self._last_use: Int32s = np.full(setting.num_rows, -1, dtype=np.int32)
        # Rows that are read but not kept, by trainer: of this step, and of the previous one, with unsent gradients.
        self._read_now = self._read_before = [NO_ROWS] * setting.num_trainers
        self._critical: list[Action] = []

    def arrange(self, step: StepRows) -> None:
        if step.number == 0:
            self._critical = [*self._prepare(None, step, sees_end=False), *self._critical]

    def plan(self, known: Knowledge) -> Plan:
        for batch in known.entering:
            if batch.number > known.now.number:
                unknown = batch.rows[self._next_use[batch.rows] == NEVER]
                self._next_use[unknown] = batch.number
        before, self._critical = self._critical, []
        during = [] if known.next is None else self._prepare(known.now, known.next, sees_end=known.sees_end)
        return Plan(before, during)

    def finish(self) -> Sequence[Action]:
        actions = [*self._send_read_only(self._read_before), *self._send_read_only(self._read_now)]
        for trainer in self.setting.trainers:
            actions += self._evict(trainer, np.flatnonzero(held_by(self._holders, trainer)).astype(np.int32))
        return actions

    def _prepare(self, now: StepRows | None, step: StepRows, *, sees_end: bool) -> list[Action]:
        """Plan how the rows of the next step arrive. Returns what moves early, and keeps the rest for its begin."""
        actions = self._send_read_only(self._read_before)
        self._read_before = [NO_ROWS] * self.setting.num_trainers
        holders = self._holders[step.rows]
        routes = choose_routes(step.rows, holders, step.readers, self.setting.num_trainers, self.setting.row_bytes)
        is_late = (holders != 0) & (self._last_use[step.rows] == (-1 if now is None else now.number))
        is_busy = self._busy(now, step)
        is_read_only = self._not_worth_keeping(step, holders, is_busy)
        if sees_end:
            is_read_only |= (holders == 0) & (step.next_use == NEVER)
        arrivals = _Arrivals(step, holders, routes, is_late, is_read_only)
        for trainer in self.setting.trainers:
            actions += self._make_room(trainer, arrivals, is_busy)
        actions += self._arrive(arrivals, ~is_late)
        self._critical = self._begin_step(now, arrivals)
        self._settle(arrivals)
        return actions

    def _busy(self, now: StepRows | None, step: StepRows) -> Bools:
        """bool [rows], whether a row is used in this step or the next."""
        is_busy = np.zeros(self.setting.num_rows, dtype=np.bool_)
        is_busy[step.rows] = True
        if now is not None:
            is_busy[now.rows] = True
        return is_busy

    def _not_worth_keeping(self, step: StepRows, holders: Int64s, is_busy: Bools) -> Bools:
        """bool [U], rows at the shards that every reader would evict soon after the step.

        A trainer keeps the rows with the nearest next use, as many as leave room for as many arrivals again.
        """
        is_new: Bools = (holders == 0) & (step.next_use > step.number + 1)
        keys = farthest_keys(step.next_use, np.full(len(step.rows), step.number, dtype=np.int32))
        for trainer in self.setting.trainers:
            arriving = held_by(step.readers & ~holders, trainer)
            excess = int(self._num_present(trainer) + 2 * np.count_nonzero(arriving) - self._capacity)
            if excess <= 0:
                is_new &= ~arriving
                continue
            held = np.flatnonzero(held_by(self._holders, trainer) & ~is_busy)
            old_keys = farthest_keys(self._next_use[held], self._last_use[held])
            all_keys = np.concatenate([old_keys, keys[is_new & arriving]])
            if excess < len(all_keys):
                bound = np.partition(all_keys, len(all_keys) - excess)[len(all_keys) - excess]
                is_new &= ~arriving | (keys >= bound)
        return is_new

    def _make_room(self, trainer: int, arrivals: _Arrivals, is_busy: Bools) -> list[Action]:
        """Evict rows so that arrivals fit; arrivals that do not fit are late."""
        incoming = arrivals.incoming(trainer)
        early = np.flatnonzero(incoming & ~arrivals.is_late)
        room = self._capacity - self._num_present(trainer)
        excess = int(np.count_nonzero(incoming)) - room
        actions: list[Action] = []
        if excess > 0:
            rows = np.flatnonzero(held_by(self._holders, trainer) & ~is_busy).astype(np.int32)
            victims = highest(rows, farthest_keys(self._next_use[rows], self._last_use[rows]), excess)
            actions = self._evict(trainer, victims)
            room += len(victims)
        arrivals.is_late[early[max(0, room) :]] = True
        return actions

    def _arrive(self, arrivals: _Arrivals, chosen: Bools) -> list[Action]:
        """Movements of chosen rows to their readers."""
        step = arrivals.step
        actions = route_moves(arrivals.routes, step.rows, arrivals.holders, step.readers, chosen)
        at_shard = chosen & (arrivals.holders == 0)
        for trainer in self.setting.trainers:
            wanted = at_shard & held_by(step.readers, trainer)
            for kind, is_kind in ((Kind.FETCH, ~arrivals.is_read_only), (Kind.READ, arrivals.is_read_only)):
                actions.append(Move(kind, SHARD, trainer, step.rows[wanted & is_kind]))
        return actions

    def _begin_step(self, now: StepRows | None, arrivals: _Arrivals) -> list[Action]:
        """Movements that the next step waits for: rows that this step updates, and rows without room until it ends."""
        step, is_late = arrivals.step, arrivals.is_late
        actions: list[Action] = []
        fits = True
        for trainer in self.setting.trainers:
            incoming = arrivals.incoming(trainer)
            leaving = held_by(arrivals.holders & ~step.readers, trainer)
            num_present = self._num_present(trainer)
            arrived = np.count_nonzero(incoming & ~is_late) - np.count_nonzero(leaving & ~is_late)
            excess = int(num_present + arrived + np.count_nonzero(incoming & is_late) - self._capacity)
            if excess > 0:
                actions += self._free_late(trainer, now, step, excess)
                fits &= num_present - self._num_present(trainer) >= excess
        if fits:
            return [*actions, *self._arrive(arrivals, is_late)]
        return [*actions, *self._arrive_through_shards(arrivals)]

    def _free_late(self, trainer: int, now: StepRows | None, step: StepRows, count: int) -> list[Action]:
        """Make room with rows of this step that the next one does not need."""
        read_only = self._read_now[trainer][:count]
        self._read_now[trainer] = self._read_now[trainer][count:]
        actions: list[Action] = _send(trainer, read_only)
        count -= len(read_only)
        if now is not None and count > 0:
            rows = now.rows[held_by(self._holders[now.rows], trainer)]
            rows = rows[~np.isin(rows, step.rows)]
            keys = farthest_keys(self._next_use[rows], self._last_use[rows])
            actions += self._evict(trainer, highest(rows, keys, count))
        return actions

    def _arrive_through_shards(self, arrivals: _Arrivals) -> list[Action]:
        """The same in little memory: rows leave before others come, so they pass through the shards."""
        step, holders = arrivals.step, arrivals.holders
        moves = arrivals.is_late & (holders != 0)
        actions: list[Action] = []
        for source in self.setting.trainers:
            is_owner = moves & (arrivals.routes.owners == source)
            for other in self.setting.trainers:
                rows = step.rows[is_owner & held_by(holders, other)]
                if other != source and len(rows):
                    actions += [Move(Kind.GRADIENT, other, source, rows), Drop(other, rows)]
            leaves = is_owner & (step.readers != 1 << source)
            actions.append(Move(Kind.WRITE_BACK, source, SHARD, step.rows[leaves]))
            actions.append(Drop(source, step.rows[leaves & ~held_by(step.readers, source)]))
        for trainer in self.setting.trainers:
            wanted = moves & held_by(step.readers, trainer) & (arrivals.routes.owners != trainer)
            actions.append(Move(Kind.FETCH, SHARD, trainer, step.rows[wanted]))
        direct = arrivals.is_late & (holders == 0)
        return [*actions, *self._arrive(arrivals, direct)]

    def _settle(self, arrivals: _Arrivals) -> None:
        """Record where rows will be during the next step."""
        step = arrivals.step
        self._read_before = self._read_now
        self._read_now = [
            step.rows[arrivals.is_read_only & held_by(step.readers, trainer)] for trainer in self.setting.trainers
        ]
        self._hold(step.rows, np.where(arrivals.is_read_only, 0, step.readers))
        self._next_use[step.rows] = step.next_use
        self._last_use[step.rows] = step.number

    def _num_present(self, trainer: int) -> int:
        """Rows in a trainer's memory: those it keeps, and those it only reads in this step."""
        return int(self._num_held[trainer]) + len(self._read_now[trainer])

    def _hold(self, rows: Int32s, holders: Int64s) -> None:
        before = self._holders[rows]
        for trainer in self.setting.trainers:
            change = np.count_nonzero(held_by(holders, trainer)) - np.count_nonzero(held_by(before, trainer))
            self._num_held[trainer] += change
        self._holders[rows] = holders

    def _evict(self, trainer: int, rows: Int32s) -> list[Action]:
        """Rows leave a trainer: gradients of shared ones go to another holder, others are written back."""
        holders = self._holders[rows]
        others = holders & ~np.int64(1 << trainer)
        alone = rows[others == 0]
        actions: list[Action] = [Move(Kind.WRITE_BACK, trainer, SHARD, alone), Drop(trainer, alone)]
        owners = others & -others  # one of the other holders collects the gradients of all
        for owner in self.setting.trainers:
            for source in self.setting.trainers:
                given = rows[(owners == 1 << owner) & held_by(holders, source)]
                if source != owner and len(given):
                    actions += [Move(Kind.GRADIENT, source, owner, given), Drop(source, given)]
        self._hold(rows, owners)
        return actions

    def _send_read_only(self, rows: Sequence[Int32s]) -> list[Action]:
        return [action for trainer in self.setting.trainers for action in _send(trainer, rows[trainer])]


def _send(trainer: int, rows: Int32s) -> list[Action]:
    """Gradients of rows that are not kept."""
    return [Move(Kind.GRADIENT, trainer, SHARD, rows), Drop(trainer, rows)]


class PlacedLookahead(Lookahead):
    """Lookahead that also chooses the trainer of each sample of the next batch, where it costs least."""

    name = "lookahead_placed"

    def assign(self, batch: GlobalBatch) -> Int8s:
        return place_samples(batch, self._holders, self.setting.num_trainers, self.setting.row_bytes)
