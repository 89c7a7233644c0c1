"""What a scheduler is told, and what it answers."""

from __future__ import annotations

from dataclasses import dataclass

from headrace.scheduling.graph import Operator

__all__ = ["BatchRead", "Event", "Finished", "NoMoreRows", "Run", "Wanted"]


@dataclass(frozen=True)
class BatchRead:
    """Rows of the batch that was being read are here."""

    num_bytes: int
    seconds: float
    at_s: float


@dataclass(frozen=True)
class NoMoreRows:
    """There was no further batch to read."""

    at_s: float


@dataclass(frozen=True)
class Finished:
    """An operator is done.

    Attributes:
        operator: Which.
        seconds: What it took.
        num_bytes: What it brought; of kinds in `KEPT` it stays in memory until the batch is trained.
        at_s: When.
    """

    operator: Operator
    seconds: float
    num_bytes: int
    at_s: float


@dataclass(frozen=True)
class Wanted:
    """The caller wants a batch trained.

    Attributes:
        batch: Dense operators up to this batch may run.
        at_s: When.
    """

    batch: int
    at_s: float


Event = BatchRead | NoMoreRows | Finished | Wanted


@dataclass(frozen=True)
class Run:
    """An instruction: carry this operator out.

    Attributes:
        operator: Which.
        reason: Why now.
        after: For a pull: the batch whose push its rows must have seen.
        early: For a pull: leave out keys of the batch before.
    """

    operator: Operator
    reason: str
    after: int = -1
    early: bool = False
