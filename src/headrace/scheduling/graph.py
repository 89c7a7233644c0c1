"""The operators of a training step: what each needs before it may run, and which resource it uses.

    read(b) ── features(b, g) ── pull(b, g) ─┐
                                              ├─ dense(b) ── push(b)
    read(b) ── features(b, h) ── pull(b, h) ─┘      │
                    push(b - 1) ──┘                 └─ update(b)

Letters: b numbers batches in the order in which they train, g and h are feature groups.
"""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple

__all__ = ["JOINT", "Kind", "Lane", "Operator"]

JOINT = -1
"""Stands for all feature groups of a batch as one."""


class Lane(Enum):
    """Who carries an operator out."""

    READER = "reader"
    """One thread that takes batches of rows from the pipeline, in order."""
    CPU = "cpu"
    """Background threads, one operator each."""
    TRAINER = "trainer"
    """The caller's thread; its operators may use all cores."""
    NETWORK = "network"
    """The embedding store: no thread of the step's own."""


class Kind(Enum):
    """What an operator does."""

    READ = "read"
    """Takes the rows of a batch from the pipeline."""
    FEATURES = "features"
    """Computes the features of one group, and which unique keys they hold."""
    PULL = "pull"
    """Fetches the rows of a group's keys; in an early pull, of those keys that no push on its way touches."""
    HELD = "held"
    """Fetches what an early pull left out, once the push before is applied."""
    DENSE = "dense"
    """Forward and backward pass."""
    PUSH = "push"
    """Sends the gradients of the batch's keys and waits until they are applied."""
    UPDATE = "update"
    """The optimizer step of the dense parameters."""

    @property
    def lane(self) -> Lane:
        """Who carries it out."""
        return LANES[self]


LANES = {
    Kind.READ: Lane.READER,
    Kind.FEATURES: Lane.CPU,
    Kind.PULL: Lane.NETWORK,
    Kind.HELD: Lane.NETWORK,
    Kind.DENSE: Lane.TRAINER,
    Kind.PUSH: Lane.NETWORK,
    Kind.UPDATE: Lane.TRAINER,
}


class Operator(NamedTuple):
    """One operator of one batch.

    Attributes:
        kind: What it does.
        batch: Which batch, counted from 0 in the order of training.
        group: Which feature group; `JOINT` for operators of the whole batch.
    """

    kind: Kind
    batch: int
    group: int = JOINT

    def __str__(self) -> str:
        place = f"{self.batch}" if self.group < 0 else f"{self.batch}, {self.group}"
        return f"{self.kind.value}({place})"
