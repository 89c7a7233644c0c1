"""`replay`: runs a placement policy over a stream without training, checks every read, and counts what moves.

A step in the replay::

    plan.before    rows move; the step waits for them (critical)
    reads          each trainer's copies are compared with all updates so far; an outdated or missing one is stale
    plan.during    rows move while the step computes (deferred)
    updates        every trainer that uses a row makes one update of it

After the last step, `finish` returns everything to the shards, and updates that they do not have are lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from headrace.errors import ConfigError
from headrace.placement.joining import MAX_TRAINERS
from headrace.placement.replay.copies import Copies, InvalidPlan
from headrace.placement.replay.movement import SHARD, Action, Drop, Move, Plan
from headrace.placement.replay.policy import Knowledge, PlacementPolicy, Setting, StepRows
from headrace.placement.replay.stream import (
    NEVER,
    GlobalBatch,
    Int8s,
    Int64s,
    RowStream,
    popcounts,
    readers_of,
)
from headrace.placement.replay.traffic import Traffic

__all__ = ["ReplayResult", "least_transfers", "replay"]


@dataclass(frozen=True)
class ReplayResult:
    """The result of a replay.

    Attributes:
        policy: Name of the policy.
        setting: What it worked with.
        num_steps: Number of steps.
        traffic: Rows and bytes that moved.
        num_reads: Number of rows read by trainers.
        num_stale: Reads that missed an update.
        most_missing: Largest number of updates that a read missed.
        num_lost: Updates that were not at the shards in the end, or could not be applied.
        most_resident: Largest number of rows that a trainer held.
        least_transfers: Fewest row transfers of any exact placement with unlimited memory, see `least_transfers`.
        keeps_batches: Whether every global batch kept its samples.
    """

    policy: str
    setting: Setting
    num_steps: int
    traffic: Traffic
    num_reads: int
    num_stale: int
    most_missing: int
    num_lost: int
    most_resident: int
    least_transfers: int
    keeps_batches: bool = True


def replay(
    stream: RowStream,
    policy: type[PlacementPolicy] | Callable[[Setting], PlacementPolicy],
    setting: Setting,
    *,
    on_step: Callable[[int], None] = lambda step: None,
) -> ReplayResult:
    """Run a policy over a stream.

    Args:
        stream: The stream.
        policy: Class of the policy, or a function that makes one.
        setting: What it works with.
        on_step: Called with the number of steps done.

    Raises:
        ConfigError: The setting is invalid, or a trainer's rows of one step do not fit into its memory.
        InvalidPlan: The policy planned something impossible.
    """
    _check_setting(stream, setting)
    chosen = policy(setting)
    stream = chosen.prepare(stream)
    return _Replay(stream, chosen, setting).run(on_step)


def least_transfers(readers: Iterable[tuple[StepRows, Int64s]]) -> int:
    """Fewest row transfers with exact synchronization and unlimited memory: Σ |P \\ Z| + (|P| - 1)⁺.

    P are the trainers that read a row in a step, and Z those with a fresh copy. After a step one of its readers has
    collected the others' gradients and is fresh: the one that also reads it next, if there is one.

    Args:
        readers: For each step, its rows, and the readers of each row in the previous step that used it (0 if none).
    """
    total = 0
    for step, previous in readers:
        num_readers = popcounts(step.readers)
        is_kept = (step.readers & previous) != 0
        total += int(2 * num_readers.sum() - len(num_readers) - np.count_nonzero(is_kept))
    return total


class _Replay:
    def __init__(self, stream: RowStream, policy: PlacementPolicy, setting: Setting) -> None:
        self._stream = stream
        self._policy = policy
        self._setting = setting
        self._window = len(stream) if policy.knows_all else setting.window
        self._bits = np.zeros(stream.num_rows, dtype=np.int64)
        self._counts = np.zeros(stream.num_rows, dtype=np.int32)
        self._last_readers = np.zeros(stream.num_rows, dtype=np.int64)
        self._copies = Copies(stream.num_rows, setting.num_trainers, setting.capacity)
        self._traffic = Traffic(len(stream), setting.num_trainers, setting.row_bytes, policy.homes())
        self._num_entered = 0
        self._num_reads = self._num_stale = self._most_missing = self._least = 0

    def run(self, on_step: Callable[[int], None]) -> ReplayResult:
        following: StepRows | None = self._step_rows(self._stream.batches[0])
        assert following is not None
        self._policy.arrange(following)
        for number in range(len(self._stream)):
            now = following
            assert now is not None
            is_last = number + 1 == len(self._stream)
            following = None if is_last else self._step_rows(self._stream.batches[number + 1])
            entering = self._entering(number)
            sees_end = self._num_entered == len(self._stream)
            plan = self._policy.plan(Knowledge(now, following, entering, sees_end))
            if following is not None:
                self._policy.arrange(following)
            self._step(now, plan)
            on_step(number + 1)
        self._execute(len(self._stream), self._policy.finish(), waits=False)
        return ReplayResult(
            self._policy.name,
            self._setting,
            len(self._stream),
            self._traffic,
            self._num_reads,
            self._num_stale,
            self._most_missing,
            self._copies.num_lost() + self._copies.num_misapplied,
            self._copies.most_resident,
            self._least,
            self._policy.keeps_batches,
        )

    def _step_rows(self, batch: GlobalBatch) -> StepRows:
        assignment = self._policy.assign(batch)
        if assignment is None:
            assignment = equal_slices(batch.num_samples, self._setting.num_trainers)
        sizes = np.bincount(assignment, minlength=self._setting.num_trainers)
        if len(assignment) != batch.num_samples or len(sizes) > self._setting.num_trainers or (sizes != sizes[0]).any():
            raise InvalidPlan(f"step {batch.number}: trainers get {sizes.tolist()} samples, expected equal shares")
        readers, num_samples = readers_of(batch.starts, batch.values, batch.rows, assignment, self._bits, self._counts)
        visible = np.where(batch.next_use <= batch.number + self._window, batch.next_use, NEVER)
        step = StepRows(batch.number, batch.rows, readers, num_samples, visible, batch, assignment)
        self._check_fits(step)
        return step

    def _check_fits(self, step: StepRows) -> None:
        most = max(len(step.of(trainer)) for trainer in self._setting.trainers)
        if self._setting.capacity is not None and most > self._setting.capacity:
            raise ConfigError(
                f"cache: given {self._setting.capacity:,} rows, expected at least {most:,}, which a trainer reads in "
                f"step {step.number}"
            )

    def _entering(self, number: int) -> list[GlobalBatch]:
        end = min(len(self._stream), number + 2 + self._window)
        entering = list(self._stream.batches[self._num_entered : end])
        self._num_entered = end
        return entering

    def _step(self, now: StepRows, plan: Plan) -> None:
        self._execute(now.number, plan.before, waits=True)
        rows_of = [now.of(trainer) for trainer in self._setting.trainers]
        for trainer, rows in enumerate(rows_of):
            missing = self._copies.missing(trainer, rows)
            self._num_reads += len(rows)
            self._num_stale += int(np.count_nonzero(missing))
            self._most_missing = max(self._most_missing, int(missing.max(initial=0)))
        self._execute(now.number, plan.during, waits=False)
        for trainer, rows in enumerate(rows_of):
            self._copies.update(trainer, rows)
        last_readers = self._last_readers[now.rows]
        self._least += least_transfers([(now, last_readers)])
        if self._setting.from_scratch:  # rows that no one has trained do not move
            self._least -= int(popcounts(now.readers[last_readers == 0]).sum())
        self._last_readers[now.rows] = now.readers

    def _execute(self, step: int, actions: Iterable[Action], *, waits: bool) -> None:
        for action in actions:
            if not len(action.rows):
                continue
            if isinstance(action, Drop):
                self._copies.drop(action)
            else:
                self._copies.move(action)
                self._traffic.add(step, self._on_the_network(action), waits=waits and not action.hidden)
        self._copies.end_phase()

    def _on_the_network(self, move: Move) -> Move:
        """A movement without rows that need not move, because nothing is known of them but their keys."""
        if not self._setting.from_scratch or move.source != SHARD:
            return move
        return replace(move, rows=move.rows[self._copies.are_trained(move.rows)])


def equal_slices(num_samples: int, num_trainers: int) -> Int8s:
    """int8 [B], the trainer of each sample if every trainer gets an equal slice, in order."""
    return np.repeat(np.arange(num_trainers, dtype=np.int8), num_samples // num_trainers)


def _check_setting(stream: RowStream, setting: Setting) -> None:
    if not 1 <= setting.num_trainers <= MAX_TRAINERS:
        raise ConfigError(f"trainers: given {setting.num_trainers}, expected 1 to {MAX_TRAINERS}")
    if stream.num_samples % setting.num_trainers:
        raise ConfigError(
            f"batch: given {stream.num_samples} samples for {setting.num_trainers} trainers, expected an equal share"
        )
    if setting.window < 1:
        raise ConfigError(f"window: given {setting.window} batches, expected at least 1")
