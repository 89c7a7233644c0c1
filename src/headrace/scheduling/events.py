"""The events that a scheduler takes, and the instructions that it answers with."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.graph import Operator

__all__ = ["BatchRead", "Event", "Finished", "OperatorFailed", "Run", "SegmentRead", "StepRequested"]


@dataclass(frozen=True)
class BatchRead:
    """The rows of the batch that was being read have arrived.

    Attributes:
        num_bytes: Bytes of the rows.
        seconds: How long it took.
        at_s: When.
        num_groups: Parts into which the features of the batch can be split.
    """

    num_bytes: int
    seconds: float
    at_s: float
    num_groups: int


@dataclass(frozen=True)
class SegmentRead:
    """There was no further batch to read in the segment."""

    at_s: float


@dataclass(frozen=True)
class Finished:
    """An operator is done.

    Attributes:
        operator: Which.
        seconds: How long it took.
        num_bytes: Bytes it produced; of kinds in `KEPT` they stay in memory until the batch is trained.
        at_s: When.
    """

    operator: Operator
    seconds: float
    num_bytes: int
    at_s: float


@dataclass(frozen=True)
class OperatorFailed:
    """A read or a feature operator has failed: its batch cannot be trained, those before it can."""

    operator: Operator
    at_s: float


@dataclass(frozen=True)
class StepRequested:
    """The caller wants a batch trained, if it is of the segment the caller is in.

    Attributes:
        batch: Operators of the trainer's thread may run up to this batch.
        at_s: When.
        segment: That of the caller: what is due at the ends of those before it is done.
    """

    batch: int
    at_s: float
    segment: int = 0


Event = BatchRead | SegmentRead | Finished | OperatorFailed | StepRequested


@dataclass(frozen=True)
class Run:
    """An instruction: carry out this operator.

    Attributes:
        operator: Which.
        reason: Why now.
        after: For a pull: the batch whose push its rows must have seen.
        defers: For a pull: leave out keys of the batch before.
    """

    operator: Operator
    reason: str
    after: int = -1
    defers: bool = False
