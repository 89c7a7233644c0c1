"""`Peers`: how trainers that keep rows send bytes to each other.

Both sides of a message know its length from the plan, so messages have no headers, and nothing is sent where nothing is
due. A tag pairs a send with its receipt; messages with the same tag arrive in the order in which they were sent.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Protocol

import numpy as np
import numpy.typing as npt

__all__ = ["Bytes", "MessageKind", "Peers", "Receipt", "tag_of"]

Bytes = npt.NDArray[np.uint8]

STEPS = 1 << 16
"""Tags of messages of steps so far apart are equal; far fewer are on their way at a time."""


class MessageKind(IntEnum):
    """Kinds of messages between trainers."""

    KEYS = 0
    EARLY = 1
    LATE = 2
    GRADIENTS = 3
    EARLY_AGAIN = 4
    LATE_AGAIN = 5
    VERIFICATION = 6
    SAMPLES = 7


class Receipt(Protocol):
    """A message that is due."""

    def result(self) -> Bytes:
        """Wait for it.

        Raises:
            HeadraceError: The sender is gone.
        """
        ...


class Peers(Protocol):
    """The trainers of a run, seen from one of them.

    Attributes:
        rank: Number of this trainer.
        size: Number of trainers.
    """

    rank: int
    size: int

    def send(self, target: int, data: Bytes, *, tag: int) -> None:
        """Start to send bytes, which must not change afterwards."""

    def receive(self, source: int, num_bytes: int, *, tag: int) -> Receipt:
        """Start to receive a message of this length."""


def tag_of(step: int, kind: MessageKind) -> int:
    """The tag of a message of a step or a round."""
    return (step % STEPS) * len(MessageKind) + kind
