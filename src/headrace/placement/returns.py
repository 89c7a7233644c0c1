"""`Returns`: puts changed rows back into their shards while training goes on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from time import perf_counter

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.ops.key_sets import keys_in
from headrace.embeddings.stores.remote import RemoteStore
from headrace.placement.resident_rows import ResidentRows

__all__ = ["MAX_PUTS", "BeforeEnd", "Returns"]

MAX_PUTS, PUT_BYTES = 8, 8 << 20
"""Maximum number of puts on their way, so that a slow link holds training up instead of filling memory, and maximum
bytes of each: at 0.1 Gb/s, it takes 0.7 s."""

Int64s = npt.NDArray[np.int64]
Int32s = npt.NDArray[np.int32]


class Returns:
    """The puts of one trainer.

    Args:
        remote: Where rows return to.
        rows: The rows that are kept.

    Attributes:
        max_rows: Maximum number of rows of a put.
        waited_s: Seconds in which puts have waited for earlier ones.
    """

    def __init__(self, remote: RemoteStore, rows: ResidentRows) -> None:
        self._remote = remote
        self._rows = rows
        self._step, self._mark = remote.step, 0  # of the newest put
        self.max_rows = max(1, PUT_BYTES // (8 + rows.packed_bytes))
        self.waited_s = 0.0
        self._pending: deque[Future[None]] = deque()
        self._keys: dict[Future[None], Keys] = {}  # of puts that are not confirmed, in order

    @property
    def newest(self) -> Future[None] | None:
        """The newest put, if it is still waited for; those before it are done when it is."""
        return self._pending[-1] if self._pending else None

    def last_of(self, keys: Keys) -> Future[None] | None:
        """The newest put that has any of some keys and is still on its way; a fetch of them must come after it.

        Other fetches need not wait for puts, which take as long as the rows that leave, in the other direction.
        """
        unconfirmed = list(self._keys.items())
        return next((put for put, returned in reversed(unconfirmed) if keys_in(keys, returned).any()), None)

    def put(
        self,
        rows: Int64s,
        keys: Keys,
        *,
        step: int,
        version: int,
        mark: int = 0,
        even_if_none: bool = False,
        after: Future[None] | None = None,
    ) -> Keys:
        """Put those of some rows back that were changed since they came or were put back, in puts of `max_rows`.

        Waits only if there are more than `MAX_PUTS`.

        Args:
            rows: int64 [R], rows that are here.
            keys: Their keys [R], with tables ascending.
            step: Number of the last step of which all rows have returned with these, if they were to return.
            version: Version of the table group.
            mark: See `RemoteStore.put`.
            even_if_none: Whether to tell the shards the step even if no row was changed.
            after: What comes first on the link; the states are copied now in any case. It must be done before any later
                put, so that shards see steps in order.

        Returns:
            The keys of the changed rows.
        """
        changed = np.flatnonzero(self._rows.is_changed[rows])
        rows, keys = rows[changed], keys.take(changed)
        last = max(0, len(rows) - 1) // self.max_rows * self.max_rows
        for start in range(0, last, self.max_rows):  # these may not say yet that all rows have returned
            part = np.arange(start, start + self.max_rows)
            self._send(rows[part], keys.take(part), version, after)
        if len(rows) or even_if_none:
            self._step, self._mark = max(step, self._step), mark
            part = np.arange(last, len(rows))
            self._send(rows[part], keys.take(part), version, after)
        return keys

    def _send(self, rows: Int64s, keys: Keys, version: int, after: Future[None] | None) -> None:
        start = perf_counter()
        self.wait(MAX_PUTS - 1)
        self.waited_s += perf_counter() - start
        progress = {"step": self._step, "version": version, "mark": self._mark}
        send = partial(self._remote.put, keys, self._rows.states(rows), **progress)
        put = send() if after is None else _later(send, after)
        self._pending.append(put)
        self._keys[put] = keys
        put.add_done_callback(self._confirm)
        self._rows.is_changed[rows] = False

    def wait(self, most: int = 0) -> None:
        """Wait until at most so many puts are on their way; raises the error of any that failed."""
        while self._pending and (len(self._pending) > most or self._pending[0].done()):
            self._pending.popleft().result()

    def _confirm(self, put: Future[None]) -> None:
        """Called in another thread. A put that failed is never confirmed, so a fetch of its rows fails, too."""
        if put.exception() is None:
            self._keys.pop(put, None)


def _later(send: Callable[[], Future[None]], after: Future[None]) -> Future[None]:
    """Send something once something else is done, even if that failed."""
    sent: Future[None] = Future()

    def pass_on(done: Future[None]) -> None:
        error = done.exception()
        if error is None:
            sent.set_result(None)
        else:
            sent.set_exception(error)

    def start(_: Future[None]) -> None:
        try:
            send().add_done_callback(pass_on)
        except Exception as error:
            sent.set_exception(error)

    after.add_done_callback(start)
    return sent


class BeforeEnd:
    """The last batch before a flush, and entries of rows that are not used until then, to be put back.

    Args:
        batch: Number of the batch.
    """

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self._parts: deque[Int32s] = deque()
        self._num_entries = 0

    def add(self, entries: Int32s) -> None:
        """Add entries that became unused."""
        self._parts.append(entries)
        self._num_entries += len(entries)

    def take(self, num_batches: int, most: int) -> Int32s:
        """Take up to `most` entries, or more, if otherwise equal parts in this batch and `num_batches` later ones were
        larger."""
        left = min(self._num_entries, max(most, -(-self._num_entries // (num_batches + 1))))
        self._num_entries -= left
        taken: list[Int32s] = []
        while left > 0:
            part = self._parts.popleft()
            taken.append(part[:left])
            if len(part) > left:
                self._parts.appendleft(part[left:])
            left -= len(taken[-1])
        if len(taken) == 1:
            return taken[0]
        # Some may have been used again, and added again.
        return np.unique(np.concatenate([np.empty(0, dtype=np.int32), *taken]))
