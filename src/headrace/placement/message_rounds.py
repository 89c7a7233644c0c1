"""`MessageRounds`: rounds in which each trainer sends every other one a message whose length is known.

A message also has the length of the sender's next one, so both sides always know how much comes::

    round r     0 -> 1   [length of the message of round r + 1 | what was given before round r - 1 ended]
                1 -> 0   [the same]
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from headrace.placement.peers import Bytes, MessageKind, Peers, Receipt, tag_of

__all__ = ["HEADER_BYTES", "MessageRounds"]

HEADER_BYTES = 8

NOTHING: Bytes = np.empty(0, dtype=np.uint8)


class MessageRounds:
    """The rounds of one trainer. All trainers start the same ones.

    Args:
        peers: The trainers.
        kind: Kind of the messages.

    Attributes:
        others: The other trainers.
        num_bytes: Bytes sent so far.
    """

    def __init__(self, peers: Peers, kind: MessageKind) -> None:
        self.others = [trainer for trainer in range(peers.size) if trainer != peers.rank]
        self.num_bytes = 0
        self._peers = peers
        self._kind = kind
        self._number = 0
        self._messages: Mapping[int, Bytes] = {}  # of the next round, to each trainer
        self._lengths = dict.fromkeys(self.others, 0)  # of the next message of each trainer
        self._receipts: dict[int, Receipt] = {}

    @property
    def is_running(self) -> bool:
        """Whether a round has started and is not finished."""
        return bool(self._receipts)

    def start(self, following: Mapping[int, Bytes]) -> None:
        """Start a round, which sends what the one before was given.

        Args:
            following: For each other trainer, the message of the next round.
        """
        assert not self._receipts
        tag = tag_of(self._number, self._kind)
        self._number += 1
        for other in self.others:
            self._receipts[other] = self._peers.receive(other, HEADER_BYTES + self._lengths[other], tag=tag)
        for other in self.others:
            header = np.array([len(following[other])], dtype="<i8").view(np.uint8)
            message = np.concatenate([header, self._messages.get(other, NOTHING)])
            self._peers.send(other, message, tag=tag)
            self.num_bytes += len(message)
        self._messages = following

    def finish(self) -> dict[int, Bytes]:
        """Wait for the messages of the round, by sender."""
        messages = {}
        for other, receipt in self._receipts.items():
            message = receipt.result()
            self._lengths[other] = int(message[:HEADER_BYTES].view("<i8")[0])
            messages[other] = message[HEADER_BYTES:]
        self._receipts.clear()
        return messages
