"""`GlooPeers`: `Peers` over `torch.distributed`: messages between two trainers, on connections of their own.

Why gloo, and not the Arrow Flight service of shards: trainers have these connections already, for the dense gradients;
lengths are known on both sides, so a message needs no header, no copy into a record batch and no request; gloo's own
threads move the bytes while a step computes; and a trainer that dies closes them, which ends the round of all.
"""

from __future__ import annotations

from collections import deque
from datetime import timedelta
from typing import Any
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch import Tensor

from headrace.placement.peers import Bytes, Receipt
from headrace.training.process_group import lost_peers

__all__ = ["GlooConnections", "GlooPeers"]

MAX_SENDING = 32
"""Messages per peer after which the oldest is waited for, so that its memory is released; a step has at most seven, so
it has arrived long before."""


class GlooConnections:
    """Connections between all trainers. A collective call: all trainers open them at the same time.

    Args:
        timeout_s: Maximum time for a message, including waiting for its sender.
    """

    def __init__(self, timeout_s: float) -> None:
        self.rank, self.size = dist.get_rank(), dist.get_world_size()
        self._sending: deque[tuple[Any, Tensor]] = deque()
        self._due: WeakSet[_GlooReceipt] = WeakSet()
        with lost_peers():
            self._group: Any = dist.new_group(backend="gloo", timeout=timedelta(seconds=max(timeout_s, 1.0)))

    def peers(self, number: int, count: int) -> GlooPeers:
        """The peers of one of several table groups, whose messages are kept apart."""
        return GlooPeers(self, number, count)

    def send(self, target: int, data: Bytes, tag: int) -> None:
        """Start to send bytes."""
        tensor = torch.from_numpy(data)
        with lost_peers():
            self._sending.append((dist.isend(tensor, target, group=self._group, tag=tag), tensor))
            while len(self._sending) > MAX_SENDING * (self.size - 1):
                self._sending.popleft()[0].wait()

    def receive(self, source: int, num_bytes: int, tag: int) -> Receipt:
        """Start to receive bytes."""
        tensor = torch.empty(num_bytes, dtype=torch.uint8)
        with lost_peers():
            receipt = _GlooReceipt(dist.irecv(tensor, source, group=self._group, tag=tag), tensor)
        self._due.add(receipt)
        return receipt

    def close(self) -> None:
        """Let go of the connections, which end with the process group, so that the others notice that we left.

        A receipt that nobody waits for any more would keep them open, and the others waiting.
        """
        self._sending.clear()
        for receipt in list(self._due):
            receipt.drop()
        self._group = None


class _GlooReceipt:
    def __init__(self, work: Any, tensor: Tensor) -> None:
        self._work, self._tensor = work, tensor

    def drop(self) -> None:
        """Stop waiting for the message."""
        self._work = None

    def result(self) -> Bytes:
        """See `Receipt`."""
        work, self._work = self._work, None  # it would keep the connections open
        with lost_peers():
            work.wait()
        found: Bytes = self._tensor.numpy()
        return found


class GlooPeers:
    """See `Peers`; from `GlooConnections.peers`."""

    def __init__(self, connections: GlooConnections, number: int, count: int) -> None:
        self.rank, self.size = connections.rank, connections.size
        self._connections = connections
        self._number, self._count = number, count

    def send(self, target: int, data: Bytes, *, tag: int) -> None:
        """See `Peers`."""
        self._connections.send(target, data, tag * self._count + self._number)

    def receive(self, source: int, num_bytes: int, *, tag: int) -> Receipt:
        """See `Peers`."""
        return self._connections.receive(source, num_bytes, tag * self._count + self._number)
