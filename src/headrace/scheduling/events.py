"""Events passed to a scheduler, and the instructions that it returns."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.graph import Operator

__all__ = ["BatchRead", "Event", "Finished", "OperatorFailed", "Run", "SegmentRead", "StepRequested"]


@dataclass(frozen=True)
class BatchRead:
    """The rows of the next batch were read.

    Attributes:
        num_bytes: Size of the rows in bytes.
        seconds: Duration in seconds.
        at_s: Time of the event.
        num_groups: Number of feature groups of the batch.
    """

    num_bytes: int
    seconds: float
    at_s: float
    num_groups: int


@dataclass(frozen=True)
class SegmentRead:
    """The segment has no further batches to read."""

    at_s: float


@dataclass(frozen=True)
class Finished:
    """An operator has finished.

    Attributes:
        operator: The operator.
        seconds: Duration in seconds.
        num_bytes: Bytes of its result; results of kinds in `KEPT` stay in memory until the batch is trained.
        at_s: Time of the event.
    """

    operator: Operator
    seconds: float
    num_bytes: int
    at_s: float


@dataclass(frozen=True)
class OperatorFailed:
    """A read or a feature operator has failed: its batch cannot be trained, but earlier batches can."""

    operator: Operator
    at_s: float


@dataclass(frozen=True)
class StepRequested:
    """The caller requests to train a batch, if it is in the caller's segment.

    Attributes:
        batch: Operators of the trainer's thread may run up to this batch.
        at_s: Time of the event.
        segment: Segment of the caller; all work at the ends of earlier segments is done.
    """

    batch: int
    at_s: float
    segment: int = 0


Event = BatchRead | SegmentRead | Finished | OperatorFailed | StepRequested


@dataclass(frozen=True)
class Run:
    """Instruction to run an operator.

    Attributes:
        operator: The operator.
        reason: Reason for running it now.
        after: For a pull: the batch whose push its rows must include.
        defers: For a pull: whether to skip keys of the previous batch.
    """

    operator: Operator
    reason: str
    after: int = -1
    defers: bool = False
