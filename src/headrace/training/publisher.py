"""`Publisher`: publishes versions of the model while it is trained, see `docs/publishing.md`."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import numpy as np
from torch import nn

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.log import PUBLICATIONS
from headrace.publishing.config import PublishConfig
from headrace.publishing.forgotten import Cursor
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.writer import Cut, PublicationWriter, RowsInShards
from headrace.training.commits import dense_parameters, state_values, table_groups
from headrace.training.process_group import ProcessGroup
from headrace.training.state import TrainingState

__all__ = ["Publisher", "steps_until_check"]

CHECKS_PER_PERIOD = 4
"""Checks in the time between two versions, with several trainers: each is a message from trainer 0."""


class Publisher:
    """Cuts versions of a model between steps, when they are due and the one before is written. All trainers call
    `cut_if_due` and `finish`; trainer 0 writes.

    Args:
        config: The job's section.
        folder: Folder of the publications.
        model: The model.
        job: The job as YAML.
        shape: What the state of a checkpoint says about the model, see `commits.take_snapshot`.
        process_group: The trainers.
        shards: The shards that have the tables.
        return_rows: Returns the rows that this trainer keeps to the shards.
        clock: Gives seconds.

    Attributes:
        num_late: Times that a version was due while the one before was still being written.
    """

    def __init__(
        self,
        config: PublishConfig,
        folder: PublicationFolder,
        model: nn.Module,
        *,
        job: str,
        shape: Any,
        process_group: ProcessGroup,
        shards: RowsInShards | None,
        return_rows: Callable[[], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.num_late = 0
        self._config, self._model, self._job, self._shape = config, model, job, shape
        self._process_group, self._shards, self._return_rows = process_group, shards, return_rows
        self._clock = clock
        self._writer = PublicationWriter(folder, config) if process_group.rank == 0 else None
        self._cut_step = -1  # of the last version
        self._cut_checkpoint: str | None = None
        self._committed: str | None = None  # the newest checkpoint
        self._cut_at = -float("inf")
        self._is_late = False
        self._lines: list[tuple[bool, str]] = []
        self._checked_at, self._checked_step, self._check_step = clock(), 0, 0

    def resume(self, saved: dict[str, Any] | None) -> None:
        """Continue the newest version, if it is that of the checkpoint that was loaded.

        Args:
            saved: The state of the checkpoint; None without one.
        """
        if self._writer is None:
            return
        checkpoint = self._committed = None if saved is None else fingerprint(saved)
        groups = table_groups(self._model)
        if self._shards is not None:
            version = self._writer.follow(checkpoint, self._shards.num_parts, self._shards.divisions)
            if version is not None:
                self._shards.record_changes(version)
        else:
            parts = {name: group.num_parts for name, group in groups.items()}
            published = None if saved is None else saved.get("published")
            cursor = None if published is None else Cursor(**published)
            version = self._writer.follow(checkpoint, parts, cursor=cursor)
            for group in groups.values() if version is not None else ():
                group.mark_saved(group.version, PUBLICATIONS)
            for name, keys in self._writer.forgotten.items():
                groups[name].publish_again([(part["tables"], part["ids"]) for part in keys])
        if version is not None and saved is not None and not self._writer.forgotten:
            self._cut_step, self._cut_checkpoint = saved["step"], checkpoint

    @property
    def cursor(self) -> dict[str, Any] | None:
        """Where publications are, for a checkpoint that is made now; None if this trainer does not write them."""
        return None if self._writer is None else asdict(self._writer.cursor)

    def committed(self, state: TrainingState) -> None:
        """Record that a checkpoint was committed."""
        self._committed = fingerprint(state_values(state, self._shape)) if self._writer is not None else None

    def cut_if_due(self, state: TrainingState, settle: Callable[[], None], *, is_committed: bool) -> None:
        """Publish a version if one is due. Called after a step, or after a commit.

        Args:
            state: Progress of the run.
            settle: Waits until all updates of the step are done.
            is_committed: Whether a checkpoint was committed with exactly this state.
        """
        if self._agree(state.step):
            settle()
            self._cut(state, is_committed=is_committed)

    def finish(self, state: TrainingState) -> None:
        """Publish the model of the last commit, and wait until it is written. A collective call."""
        if self._process_group.share(self._cut_checkpoint != self._committed):
            self._cut(state, is_committed=True)
        self._settle()
        if self._writer is not None:
            writer = self._writer
            num_bytes = f"{writer.num_written_bytes:,} bytes of rows, and {writer.num_merged_bytes:,} of merges"
            bad = f"{self.num_late} were late, {writer.num_failed} failed"
            self._lines.append((False, f"{writer.num_written} versions with {num_bytes}; {bad}"))

    def close(self) -> None:
        """Complete what is being written, and end the threads."""
        if self._writer is not None:
            self._settle()
            self._writer.close()

    def take_messages(self) -> list[tuple[bool, str]]:
        """Lines since the last call, and whether each is for the user, beside the log of decisions."""
        lines, self._lines = self._lines, []
        return lines if self._writer is None else [*lines, *self._writer.take_messages()]

    def _agree(self, step: int) -> bool:
        """Whether all trainers cut a version now."""
        if self._process_group.size == 1:
            return self._is_due(step)
        if step < self._check_step:
            return False
        now = self._clock()
        steps_per_s = (step - self._checked_step) / max(1e-6, now - self._checked_at)
        self._checked_at, self._checked_step = now, step
        mine = [self._is_due(step), steps_until_check(steps_per_s, self._config.every_s)]
        is_due, num_steps = self._process_group.share(mine)
        self._check_step = step + num_steps
        return bool(is_due)

    def _is_due(self, step: int) -> bool:
        if self._writer is None or step == self._cut_step or self._clock() < self._cut_at + self._config.every_s:
            return False
        if not self._writer.is_idle:
            if not self._is_late:
                self._is_late = True
                self.num_late += 1
                line = "publishing is behind: the next version is later, and has more changes"
                self._lines += [(True, line)] if self.num_late == 1 else []
            return False
        return True

    def _cut(self, state: TrainingState, *, is_committed: bool) -> None:
        """Copy what changed, and start to write it. A collective call."""
        if self._shards is not None:
            self._return_rows()
            self._process_group.share(None)  # all trainers have returned rows
        if self._writer is not None:
            self._settle()
            self._cut_step, self._cut_at, self._is_late = state.step, self._clock(), False
            self._cut_checkpoint = self._committed if is_committed else None
            dense = {name: np.array(array) for name, array in dense_parameters(self._model).items()}
            cut = Cut(state.step, dense, self._job, self._cut_checkpoint, time.time())
            self._writer.start(cut, self._deltas(self._writer), self._shards)
        if self._shards is not None:
            self._process_group.share(None)  # no trainer may update rows before shards have copied them

    def _deltas(self, writer: PublicationWriter) -> dict[str, list[Delta]]:
        groups = table_groups(self._model).items()
        return {
            name: group.deltas(everything=not writer.has_base(name), consumer=PUBLICATIONS) for name, group in groups
        }

    def _settle(self) -> None:
        if self._writer is not None:
            groups = table_groups(self._model)
            for name, version in self._writer.settle().items():
                groups[name].mark_saved(version, PUBLICATIONS)


def fingerprint(saved: dict[str, Any]) -> str:
    """Identifies a checkpoint by the values of its state, among them its step and the seconds of training."""
    return hashlib.sha256(json.dumps(saved, sort_keys=True).encode()).hexdigest()[:16]


def steps_until_check(steps_per_s: float, every_s: float) -> int:
    """Steps until trainers ask trainer 0 again whether a version is due."""
    return min(1000, max(1, round(steps_per_s * every_s / CHECKS_PER_PERIOD)))
