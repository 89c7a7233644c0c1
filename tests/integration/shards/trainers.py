"""Several trainers in threads of this process, which exchange messages through queues."""

from __future__ import annotations

import queue
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from headrace.errors import HeadraceError
from headrace.placement.peers import Bytes, MessageKind

Result = TypeVar("Result")

WAIT_S = 20.0


class Lost(HeadraceError):
    """Another trainer has failed."""


class Post:
    """The messages between all trainers, by (source, target, tag)."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.boxes: defaultdict[tuple[int, int, int], queue.SimpleQueue[Bytes | None]] = defaultdict(queue.SimpleQueue)
        self.lock = threading.Lock()
        self.has_failed = False
        self.num_bytes = 0

    def box(self, source: int, target: int, tag: int) -> queue.SimpleQueue[Bytes | None]:
        with self.lock:
            return self.boxes[source, target, tag]

    def fail(self) -> None:
        """End all waits."""
        self.has_failed = True
        with self.lock:
            for box in self.boxes.values():
                box.put(None)


class QueuePeers:
    """`Peers` over queues."""

    def __init__(self, post: Post, rank: int) -> None:
        self.rank, self.size = rank, post.size
        self.post = post

    def send(self, target: int, data: Bytes, *, tag: int) -> None:
        with self.post.lock:
            self.post.num_bytes += len(data)
        self.post.box(self.rank, target, tag).put(data.copy())

    def receive(self, source: int, num_bytes: int, *, tag: int) -> _Receipt:
        return _Receipt(self, source, num_bytes, tag)


class _Receipt:
    def __init__(self, peers: QueuePeers, source: int, num_bytes: int, tag: int) -> None:
        self._post, self._num_bytes = peers.post, num_bytes
        self._where = source, peers.rank, tag

    def result(self) -> Bytes:
        box = self._post.box(*self._where)
        data = None if self._post.has_failed and box.empty() else box.get(timeout=WAIT_S)
        if data is None:
            raise Lost(f"{self._where}: another trainer has failed")
        assert len(data) == self._num_bytes, (self._where, len(data), self._num_bytes)
        return data


def run_trainers(size: int, train: Callable[[int, QueuePeers], Result]) -> list[Result]:
    """Run a function for each trainer in its own thread; raises the first error that is not the loss of another."""
    post = Post(size)

    def run(rank: int) -> Result:
        try:
            return train(rank, QueuePeers(post, rank))
        except BaseException:
            post.fail()
            raise

    with ThreadPoolExecutor(size) as pool:
        futures = [pool.submit(run, rank) for rank in range(size)]
    errors = [error for future in futures if (error := future.exception()) is not None]
    if errors:
        raise next((error for error in errors if not isinstance(error, Lost)), errors[0])
    unread = {MessageKind(tag % len(MessageKind)) for (_, _, tag), box in post.boxes.items() if not box.empty()}
    assert unread <= {MessageKind.KEYS, MessageKind.SAMPLES}  # of the round that runs during the last step
    return [future.result() for future in futures]
