"""`PlacementPolicy`: decides which rows move where around each step, from the batches in its window."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from headrace.placement.replay.movement import Action, Plan, RowBytes
from headrace.placement.replay.stream import GlobalBatch, Int8s, Int32s, Int64s, RowStream

__all__ = ["Knowledge", "PlacementPolicy", "Setting", "StepRows", "held_by"]


@dataclass(frozen=True)
class Setting:
    """What a policy works with.

    Attributes:
        num_rows: Number of rows of the stream.
        num_trainers: Number of trainers W.
        num_samples: Samples of a global batch; each trainer gets an equal share.
        window: Number of batches that are known ahead of the next step.
        capacity: Maximum number of rows per trainer; None for no limit.
        row_bytes: Bytes of a row.
        from_scratch: Whether no row was trained before the stream. Until a row is trained, its values are a function of
            its key, and reading it moves nothing.
    """

    num_rows: int
    num_trainers: int
    num_samples: int
    window: int = 200
    capacity: int | None = None
    row_bytes: RowBytes = field(default_factory=RowBytes)
    from_scratch: bool = False

    @property
    def trainers(self) -> range:
        """Numbers of the trainers."""
        return range(self.num_trainers)


@dataclass(frozen=True, eq=False)
class StepRows:
    """The rows of a global batch whose samples have been assigned to trainers.

    Attributes:
        number: Number of the batch.
        rows: int32 [U], its unique rows.
        readers: int64 [U], trainers that read each row; trainer w is bit w.
        num_samples: int32 [U], number of samples that use each row.
        next_use: int32 [U], number of the next batch in the window that uses each row, or `NEVER`.
        batch: The batch.
        assignment: int8 [B], trainer of each sample.
    """

    number: int
    rows: Int32s
    readers: Int64s
    num_samples: Int32s
    next_use: Int32s
    batch: GlobalBatch
    assignment: Int8s

    def of(self, trainer: int) -> Int32s:
        """int32, rows that a trainer reads."""
        return self.rows[held_by(self.readers, trainer)]


@dataclass(frozen=True, eq=False)
class Knowledge:
    """What a policy knows when it plans a step.

    Attributes:
        now: The step.
        next: The next step; None after the last one.
        entering: Batches that have entered the window since the last call, the oldest first. The window ends
            `Setting.window` batches after the next step.
        sees_end: Whether the window reaches the end of the stream, so rows without a use in it are not used again.
    """

    now: StepRows
    next: StepRows | None
    entering: Sequence[GlobalBatch]
    sees_end: bool


class PlacementPolicy:
    """Base of placement policies. A policy is deterministic, and sees nothing beyond its window.

    For each step, the replay calls `assign` for the batch of the next step, `plan` for this step, and `arrange` for the
    next step.

    Class attributes:
        name: Name in tables and on the command line.
        knows_all: Whether the window is the whole stream, as for offline limits.
        keeps_batches: Whether every global batch keeps its samples; False if `prepare` makes other batches.
    """

    name: str
    knows_all: bool = False
    keeps_batches: bool = True

    def __init__(self, setting: Setting) -> None:
        self.setting = setting

    def prepare(self, stream: RowStream) -> RowStream:
        """The stream to train on: policies that reorder samples return a new one with the same samples.

        Raises:
            ConfigError: The policy does not support the setting.
        """
        return stream

    def homes(self) -> Int8s | None:
        """int8 [rows], the trainer whose memory holds the shard of each row; None if shards are elsewhere."""
        return None

    def assign(self, batch: GlobalBatch) -> Int8s | None:
        """int8 [B], the trainer of each sample of the next batch, equally many for each; None for equal slices."""
        return None

    def arrange(self, step: StepRows) -> None:
        """Take note of a step whose samples were assigned, before those of the step after it are."""

    def plan(self, known: Knowledge) -> Plan:
        """Plan the movements around a step."""
        raise NotImplementedError

    def finish(self) -> Sequence[Action]:
        """Actions after the last step, after which the shards have all updates."""
        return []

    def most_missing(self) -> int:
        """Largest number of missing updates that a read may have; 0 for exact policies."""
        return 0


def held_by(holders: Int64s, trainer: int) -> npt.NDArray[np.bool_]:
    """bool, whether each set of trainers contains a trainer."""
    held: npt.NDArray[np.bool_] = (holders >> trainer) & 1 == 1
    return held
