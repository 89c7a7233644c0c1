"""`ServedTableGroup`: a shard's part of a table group. Reads wait for steps; updates of several trainers are merged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.log import CHECKPOINTS, RowBlock
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.budgets import Demands, check_budgets
from headrace.embeddings.shards.merging import TrainerUpdate, join_keys, merge_updates
from headrace.embeddings.shards.put_order import PutOrder
from headrace.embeddings.shards.request_checks import check_gradients, check_keys, check_states
from headrace.embeddings.shards.step_merger import StepMerger
from headrace.embeddings.shards.table_group import TableGroupSpec, deltas_of, parts_of
from headrace.embeddings.tables.budgeted_table_group import TableRows
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.partitioned_table_group import PartitionedTableGroup
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.embeddings.tables.state import Columns
from headrace.embeddings.tables.table_group import TableGroup
from headrace.errors import ShardError, ShardLost

__all__ = ["EndedWindow", "ServedTableGroup", "TableGroupCounts"]

Float32s = npt.NDArray[np.float32]


@dataclass
class TableGroupCounts:
    """Counters of a shard's table group since the session began.

    Attributes:
        reads: Number of reads answered.
        updates: Number of updates received, without repeated ones.
        keys: Number of keys read.
        held_s: Total time in seconds that reads and updates waited for other trainers.
    """

    reads: int = 0
    updates: int = 0
    keys: int = 0
    held_s: float = 0.0


@dataclass(frozen=True)
class EndedWindow:
    """What the end of a window did.

    Attributes:
        freed: Number of rows freed.
        demands: For each partition, the arguments of `rebalance`: budget, fixed bytes and demand.
    """

    freed: int
    demands: Demands = field(default_factory=dict)


class ServedTableGroup:
    """A shard's part of a table group. Thread-safe: one lock guards the rows, but not encoding and network transfers.

    Args:
        name: Name of the table group.
        spec: Specification of the whole group.
        rows: This shard's rows.
        merger: The trainers and their progress.
        hold_s: Maximum time that a request may wait for other trainers.
    """

    def __init__(
        self, name: str, spec: TableGroupSpec, rows: TableGroup, merger: StepMerger[TrainerUpdate], *, hold_s: float
    ) -> None:
        self.name = name
        self.spec = spec
        self.rows = rows
        self.counts = TableGroupCounts()
        self._merger = merger
        self._puts = PutOrder(merger.num_trainers)
        self._hold_s = hold_s
        self._changed = threading.Condition()
        self._closed_because: str | None = None
        self._windows = 0
        self._evictions: StepMerger[Keys] = StepMerger(merger.num_trainers, merger.merged, what="eviction")
        self._freed = 0  # rows freed by the newest eviction

    @property
    def applied(self) -> int:
        """Number of the last applied step."""
        return self._merger.applied

    def rows_by_table(self) -> dict[str, TableRows]:
        """The rows of each table here under a budget; empty without one."""
        if not isinstance(self.rows, PartitionedTableGroup):
            return {}
        with self._changed:
            return self.rows.rows_by_table()

    def read(self, keys: Keys, *, trainer: int, after: int) -> tuple[Float32s, float]:
        """Read rows float32 [U, dim]; also returns how long the request waited, in seconds.

        Raises:
            ShardError: Ids are out of range, the trainer is unknown, or other trainers (named in the text) were too
                late.
        """
        check_keys(keys, self.spec)
        with self._changed:
            self._merger.check_trainer(trainer)
            if not self._merger.may_read(after):
                self.rows.announce(keys, ahead=max(0, after - self._merger.applied))  # files are read meanwhile
            held_s = self._wait(lambda: self._merger.may_read(after), after, f"read of trainer {trainer}")
            rows: Float32s = self.rows.read(keys)
            self.counts.reads += 1
            self.counts.keys += len(keys)
        return rows, held_s

    def update(self, update: TrainerUpdate, *, trainer: int, step: int) -> float:
        """Receive a trainer's update and apply the steps that are complete; returns the waiting time in seconds.

        Raises:
            ShardError: As for `read`; or the step is not the trainer's next one.
        """
        check_keys(update.keys, self.spec)
        check_gradients(update.keys, update.gradients, self.spec)
        with self._changed:
            merger = self._merger
            merger.check_step(trainer, step)  # otherwise it would wait for a step that cannot come
            behind = step - merger.max_ahead
            held_s = self._wait(lambda: merger.may_update(step), behind, f"update of trainer {trainer}")
            decision = merger.update(trainer, step, update)
            self.counts.updates += not decision.repeated
            for parts in decision.steps:
                num_rows = sum(part.num_rows for part in parts)
                self.rows.update(*merge_updates(parts), num_rows=num_rows, lr_factor=parts[0].lr_factor)
            if decision.steps:
                self._changed.notify_all()
        return held_s

    def evict(self, keys: Keys, *, trainer: int, number: int, step: int) -> tuple[int, float]:
        """Receive a trainer's part of an eviction; evicts the union once all parts arrived, see `TableGroup.evict`.

        Args:
            keys: Unique keys.
            trainer: Number of the trainer.
            number: Number of evictions of the trainer in this session, including this one.
            step: Step after which it is due; the trainer's next update comes later.

        Returns:
            Number of rows freed, and the waiting time in seconds.

        Raises:
            ShardError: As for `read`; or it is not the trainer's next eviction, or the next step is already applied.
        """
        check_keys(keys, self.spec)
        with self._changed:
            steps, evictions, what = self._merger, self._evictions, f"eviction {number} of trainer {trainer}"
            evictions.check_step(trainer, number)
            held_s = self._wait(lambda: steps.may_read(step) and evictions.may_update(number), step, what)
            if evictions.applied < number:
                self._check_at(step, what)
            for parts in evictions.update(trainer, number, keys).steps:
                self._freed = self.rows.evict(join_keys(parts))
                self._changed.notify_all()
            held_s = self._wait(lambda: evictions.may_read(number), number, what, merger=evictions, held_s=held_s)
            return self._freed, held_s

    def fetch(self, keys: Keys, *, trainer: int, after: Sequence[int] = ()) -> tuple[KeyStates, float]:
        """The states of keys that a trainer is going to train on itself, and the waiting time in seconds.

        Args:
            keys: Unique keys.
            trainer: Number of the trainer.
            after: For each trainer, the mark that its puts must have reached, see `PutOrder`.

        Raises:
            ShardError: As for `read`.
        """
        check_keys(keys, self.spec)
        with self._changed:
            self._merger.check_trainer(trainer)
            if len(after) not in (0, self._merger.num_trainers):
                raise ShardError(f"after: given {len(after)} marks, expected {self._merger.num_trainers} or none")
            what, puts = f"fetch of trainer {trainer}", self._puts
            held_s = self._hold(
                lambda: puts.may_fetch(after), lambda: ("puts up to", list(after), puts.missing(after)), what
            )
            return self.rows.states(keys), held_s

    def put(
        self, keys: Keys, states: KeyStates, *, trainer: int, step: int, version: int, number: int, mark: int
    ) -> None:
        """Take back the states of keys from a trainer that keeps rows, and has made all steps up to one.

        A repeated call does nothing: another trainer may have returned later states of the same keys meanwhile.

        Raises:
            ShardError: Ids are out of range, states are not plausible, the trainer has already made a later step, or an
                earlier put is missing.
        """
        check_keys(keys, self.spec)
        check_states(keys, states, self.spec, version=version)
        with self._changed:
            self._merger.check_trainer(trainer)
            if not self._puts.take(trainer, number, mark):
                return
            self._merger.skip_to(trainer, step)
            rows = self.rows
            rows.set_states(keys, states, step=max(step, rows.step), version=max(version, rows.version))
            self._changed.notify_all()

    def seen_keys(self, num_bytes: int) -> SeenKeys:
        """The keys that have a state here, as a compact set."""
        with self._changed:
            keys = self.rows.index.keys()
        seen = SeenKeys(num_bytes)
        seen.add(keys)
        return seen

    def end_window(self, window: int, step: int, budgets: Mapping[int, int] | None = None) -> EndedWindow:
        """End a window, see `TableGroup.end_window`; a repeated call for the same window does not end it again.

        Args:
            window: Number of windows ended in this session, including this one.
            step: Last step of the window.
            budgets: Bytes by partition, see `PartitionedTableGroup.resize`, as decided after the first call.

        Raises:
            ShardError: A window was skipped, budgets are those of other partitions, or they are not possible.
        """
        with self._changed:
            self._wait(lambda: self._merger.may_read(step), step, f"end of window {window}")
            freed = 0
            if window > self._windows + 1:
                raise ShardError(f"table group {self.name}: window {window} ended, expected window {self._windows + 1}")
            if window == self._windows + 1:
                self._windows = window
                freed = self.rows.end_window()
            rows = self.rows
            if not isinstance(rows, PartitionedTableGroup):
                return EndedWindow(freed)
            if budgets:
                self._check_step_of_budgets(window, step)
                check_budgets(budgets, rows, self.name)
                freed += rows.resize(dict(budgets))
            return EndedWindow(freed, {number: rows.demand(number) for number in rows.parts})

    def _check_step_of_budgets(self, window: int, step: int) -> None:
        if window != self._windows:
            raise ShardError(f"table group {self.name}: budgets for window {window}, expected window {self._windows}")
        self._check_at(step, "budgets")

    def parts(self, step: int) -> list[Columns]:
        """This shard's parts of the group after `step`, see `parts_of`.

        Raises:
            ShardError: A later step is already applied.
        """
        with self._at(step, "checkpoint"):
            return parts_of(self.rows, self.spec)

    def record_changes(self, consumer: str = CHECKPOINTS) -> None:
        """Record changes from now on, for `deltas`."""
        with self._changed:
            self.rows.mark_saved(self.rows.version, consumer)

    def deltas(self, step: int, *, saved: int | None, consumer: str = CHECKPOINTS) -> list[Delta]:
        """What changed in each of `parts` between a version that one of `log.WRITERS` has written and `step`; None for
        everything.

        Raises:
            ShardError: A later step is already applied.
        """
        with self._at(step, "checkpoint"):
            if saved is not None:
                self.rows.mark_saved(saved, consumer)
            return deltas_of(self.rows, self.spec, everything=saved is None, consumer=consumer)

    def changes(self, since: int, step: int) -> list[RowBlock]:
        """Copies of the changes in this part of the group after a version, as of `step`.

        Raises:
            ShardError: A later step is already applied, or the changes since that version are no longer recorded.
        """
        with self._at(step, "changes"):
            return list(self.rows.changes(since))

    def acknowledge(self, consumer: str, version: int) -> None:
        """Record that a consumer has all changes up to a version; a new consumer is registered at that version."""
        with self._changed:
            self.rows.acknowledge(consumer, version)

    def close(self, because: str) -> None:
        """Refuse all pending and later requests."""
        with self._changed:
            self._closed_because = because
            self._changed.notify_all()

    @contextmanager
    def _at(self, step: int, what: str) -> Iterator[None]:
        """Hold the lock after a step is applied and before the next."""
        with self._changed:
            self._wait(lambda: self._merger.may_read(step), step, what)
            self._check_at(step, what)
            yield

    def _check_at(self, step: int, what: str) -> None:
        if self.applied != step and self._merger.merged:
            raise ShardError(f"table group {self.name}: {what} of step {step}, but step {self.applied} is applied")

    def _wait(
        self,
        ready: Callable[[], bool],
        step: int,
        what: str,
        *,
        merger: StepMerger[Any] | None = None,
        held_s: float = 0.0,
    ) -> float:
        """Wait, with the lock held, for a step of a merger, by default the merger of updates.

        Args:
            ready: Returns whether the wait is over.
            step: Step of the merger, for the error.
            what: Description of the request, for the error.
            merger: Merger of the step.
            held_s: Time that the request has waited before, in seconds.

        Returns:
            Total waiting time in seconds.
        """
        waits_for = merger or self._merger
        return self._hold(ready, lambda: (waits_for.what, step, waits_for.missing(step)), what, held_s=held_s)

    def _hold(
        self,
        ready: Callable[[], bool],
        awaited: Callable[[], tuple[str, object, list[int]]],
        what: str,
        *,
        held_s: float = 0.0,
    ) -> float:
        """Wait, with the lock held, until something is ready.

        Args:
            ready: Returns whether the wait is over.
            awaited: What is waited for, its number, and the trainers from which it is missing, for the error.
            what: Description of the request, for the error.
            held_s: Time that the request has waited before, in seconds.

        Returns:
            Total waiting time in seconds.
        """
        start = time.perf_counter()
        is_ready = self._changed.wait_for(lambda: self._closed_because is not None or ready(), self._hold_s - held_s)
        waited_s = time.perf_counter() - start
        self.counts.held_s += waited_s
        if self._closed_because is not None:
            raise ShardLost(self._closed_because)
        if not is_ready:
            name, number, trainers = awaited()
            raise ShardError(
                f"table group {self.name}: {what} waited {self._hold_s:g} s for {name} {number}, "
                f"missing from trainers: {', '.join(map(str, trainers))}"
            )
        return held_s + waited_s
