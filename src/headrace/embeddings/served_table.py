"""`ServedTable`: a shard's table with several trainers at it: pulls wait for steps, pushes of a step are merged."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.merging import Push, merge_pushes
from headrace.embeddings.shard_table import ShardTable
from headrace.embeddings.step_merger import StepMerger
from headrace.embeddings.table_state import Columns
from headrace.errors import ShardError, ShardLost

__all__ = ["ServedTable", "TableCounts"]

Float32s = npt.NDArray[np.float32]


@dataclass
class TableCounts:
    """What a table of a shard has done since the session began.

    Attributes:
        pulls: Pulls answered.
        pushes: Pushes taken, repeated ones left out.
        keys: Keys pulled.
        held_s: How long pulls and pushes waited for other trainers, in all.
    """

    pulls: int = 0
    pushes: int = 0
    keys: int = 0
    held_s: float = 0.0


class ServedTable:
    """Thread-safe. One lock guards the table; encoding and the network are outside of it.

    Args:
        name: Of the table.
        table: The rows.
        merger: Which trainers there are, and how far they are.
        hold_s: How long a request may wait for other trainers.
    """

    def __init__(self, name: str, table: ShardTable, merger: StepMerger[Push], *, hold_s: float) -> None:
        self.name = name
        self.table = table
        self.counts = TableCounts()
        self._merger = merger
        self._hold_s = hold_s
        self._changed = threading.Condition()
        self._closed_because: str | None = None
        self._windows = 0

    @property
    def applied(self) -> int:
        """The last step that is applied."""
        return self._merger.applied

    def pull(self, keys: Keys, *, trainer: int, pull: int, after_step: int, admit: bool) -> tuple[Float32s, float]:
        """Rows float32 [U, dim], and how long the request was held, in seconds.

        Raises:
            ShardError: Ids are out of range, the trainer is unknown, or others did not push in time; names them.
        """
        self.table.check(keys)
        with self._changed:
            self._merger.check_trainer(trainer)
            held_s = self._wait(lambda: self._merger.may_pull(after_step), after_step, f"pull of trainer {trainer}")
            admit = admit and self._merger.is_first(trainer, pull)
            rows = self.table.pull(keys, admit=admit)
            self.counts.pulls += 1
            self.counts.keys += len(keys)
        return rows, held_s

    def push(self, push: Push, *, trainer: int, step: int) -> float:
        """Take a trainer's push, and make the optimizer steps that are due; returns how long it was held, in seconds.

        Raises:
            ShardError: As for `pull`; or it is not the trainer's next step.
        """
        self.table.check(push.keys)
        self.table.check_gradients(push.keys, push.gradients)
        with self._changed:
            merger = self._merger
            merger.check_step(trainer, step)  # else it would be held for a step that cannot come
            behind = step - merger.max_ahead
            held_s = self._wait(lambda: merger.may_push(step), behind, f"push of trainer {trainer}")
            decision = merger.push(trainer, step, push)
            self.counts.pushes += not decision.repeated
            for pushes in decision.updates:
                self.table.push(*merge_pushes(pushes))
            if decision.updates:
                self._changed.notify_all()
        return held_s

    def end_window(self, window: int, step: int) -> int:
        """Evict, see `EmbeddingTable.end_window`; a repeated call for a window does nothing.

        Args:
            window: Windows ended in this session, this one included.
            step: Its last step.

        Returns:
            How many rows were freed.

        Raises:
            ShardError: Windows are left out.
        """
        with self._changed:
            self._wait(lambda: self._merger.may_pull(step), step, f"end of window {window}")
            if window <= self._windows:
                return 0
            if window != self._windows + 1:
                raise ShardError(f"table {self.name}: window {window} ended, expected window {self._windows + 1}")
            self._windows = window
            return self.table.table.end_window()

    def part(self, step: int) -> Columns:
        """This shard's part of the table as it is once `step` is applied.

        Raises:
            ShardError: Trainers are already further.
        """
        with self._changed:
            self._wait(lambda: self._merger.may_pull(step), step, "checkpoint")
            if self.applied != step and self._merger.merged:
                raise ShardError(f"table {self.name}: checkpoint of step {step}, but step {self.applied} is applied")
            return self.table.part()

    def close(self, because: str) -> None:
        """Send away whoever waits, and whoever comes."""
        with self._changed:
            self._closed_because = because
            self._changed.notify_all()

    def _wait(self, ready: Callable[[], bool], step: int, what: str) -> float:
        """Wait with the lock held; returns seconds waited."""
        start = time.perf_counter()
        is_ready = self._changed.wait_for(lambda: self._closed_because is not None or ready(), self._hold_s)
        held_s = time.perf_counter() - start
        self.counts.held_s += held_s
        if self._closed_because is not None:
            raise ShardLost(self._closed_because)
        if not is_ready:
            missing = ", ".join(map(str, self._merger.missing(step)))
            raise ShardError(
                f"table {self.name}: {what} waited {self._hold_s:g} s for step {step}, not yet pushed by: {missing}"
            )
        return held_s
