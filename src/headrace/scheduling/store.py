"""`StepStore`: stands between `EmbeddingBags` and its store, so that the scheduler says when a pull is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings import EmbeddingStore, Keys, LocalStore
from headrace.errors import HeadraceError
from headrace.scheduling.conflicts import keys_in

__all__ = ["StepStore", "Ticket"]

Float32s = npt.NDArray[np.float32]


class Ticket:
    """A pull that `EmbeddingBags` has asked for, and that is sent later, in one or two parts.

    Attributes:
        store: Whose pull it is.
        keys: What was asked for.
        rows: float32 [U, dim], once all parts are here.
        num_held: Keys that an early pull left out.
    """

    def __init__(self, store: StepStore, keys: Keys, admit: bool) -> None:
        self.keys = keys
        self.rows: Future[Float32s] = Future()
        self.num_held = 0
        self.store = store
        self._admit = admit
        self._held: npt.NDArray[np.int64] | None = None
        self._first: Float32s | None = None
        self._free: npt.NDArray[np.int64] | None = None

    def send(self, num_steps: int, done: Callable[[BaseException | None], None]) -> None:
        """Ask the store for all rows.

        Args:
            num_steps: Pushes, counted since the `StepStore` was made, that the rows must have seen.
            done: Called once, by any thread, when rows are here, or with the error.
        """

        def arrived(pulled: Future[Float32s]) -> None:
            error = pulled.exception()
            if error is None:
                self.rows.set_result(pulled.result())
            done(error)

        self.store.send(self.keys, self._admit, num_steps=num_steps).add_done_callback(arrived)

    def send_early(self, before: Keys, num_steps: int, done: Callable[[BaseException | None], None]) -> None:
        """Ask only for rows that are not among the keys of a push on its way; `send_held` asks for the others.

        Args:
            before: Keys of that push.
            num_steps: As for `send`; one less than that push.
            done: As for `send`.
        """
        touched = keys_in(self.keys, before)
        self._held, self._free = np.flatnonzero(touched), np.flatnonzero(~touched)
        self.num_held = len(self._held)

        def arrived(pulled: Future[Float32s]) -> None:
            error = pulled.exception()
            if error is None:
                self._first = pulled.result()
            done(error)

        keys = _some(self.keys, self._free)
        self.store.send(keys, self._admit, num_steps=num_steps).add_done_callback(arrived)

    def send_held(self, num_steps: int, done: Callable[[BaseException | None], None]) -> None:
        """Ask for what `send_early` left out; its rows need not be here yet."""
        assert self._held is not None
        if not len(self._held):
            done(None)
            return
        self._second: Future[Float32s] = self.store.send(_some(self.keys, self._held), self._admit, num_steps=num_steps)
        self._second.add_done_callback(lambda pulled: done(pulled.exception()))

    def finish(self) -> None:
        """Put the parts together, once all are here."""
        if self.rows.done():
            return
        assert self._first is not None
        assert self._held is not None
        assert self._free is not None
        rows = np.empty((len(self.keys), self._first.shape[1]), dtype=np.float32)
        rows[self._free] = self._first
        if len(self._held):
            rows[self._held] = self._second.result()
        self.rows.set_result(rows)

    def verify(self) -> None:
        """Pull all rows again, now that every push before this batch is applied, and compare.

        Raises:
            HeadraceError: A row is not what it should be.
        """
        expected = self.store.send(self.keys, False).result()
        wrong = np.flatnonzero((self.rows.result() != expected).any(axis=1))
        if len(wrong):
            space, key = self.keys.spaces[wrong[0]], self.keys.ids[wrong[0]]
            raise HeadraceError(
                f"verify: {len(wrong)} of {len(expected)} rows were pulled before the last push to them was applied, "
                f"the first of space {space}, id {key}; expected the rows that serial steps read"
            )


class StepStore:
    """An `EmbeddingStore` for the time a scheduler runs: pulls become tickets, pushes do not wait.

    Attributes:
        store: Where rows live.
        embedding_dim: Floats of a row.
        first_step: The last step that was pushed before this was made.
        num_pushed: Pushes sent since then.
        pushing: The newest push.
    """

    def __init__(self, store: EmbeddingStore, embedding_dim: int) -> None:
        """Nothing is sent yet; the arguments are the attributes."""
        self.store = store
        self.first_step = store.step
        self.embedding_dim = embedding_dim
        self.num_pushed = 0
        self.pushing: Future[None] | None = None
        self._preparing = threading.local()
        # A table in this process may move when it grows, so a pull and a push must not meet.
        self._lock: Any = threading.Lock() if isinstance(store, LocalStore) else _NoLock()

    @contextmanager
    def preparing(self) -> Iterator[list[Ticket]]:
        """Collects the tickets of the pulls that this thread asks for meanwhile."""
        tickets: list[Ticket] = []
        self._preparing.tickets = tickets
        try:
            yield tickets
        finally:
            self._preparing.tickets = None

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.store.step

    def pull(self, keys: Keys, *, admit: bool = False, after_step: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.pull`; within `preparing` nothing is sent yet."""
        tickets = getattr(self._preparing, "tickets", None)
        if tickets is None:
            return self.store.pull(keys, admit=admit, after_step=after_step)
        tickets.append(Ticket(self, keys, admit))
        return tickets[-1].rows  # type: ignore[no-any-return]

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """See `EmbeddingStore.push`; the future is done at once, `pushing` is the one to wait for."""
        with self._lock:
            self.pushing = self.store.push(keys, gradients)
        self.num_pushed += 1
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def send(self, keys: Keys, admit: bool, *, num_steps: int | None = None) -> Future[Float32s]:
        """Ask the store.

        Args:
            keys: Unique keys.
            admit: See `EmbeddingStore.pull`.
            num_steps: Pushes since `first_step` that the rows must have seen; None for all that were sent.
        """
        with self._lock:
            after_step = None if num_steps is None else self.first_step + num_steps
            return self.store.pull(keys, admit=admit, after_step=after_step)


class _NoLock:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _some(keys: Keys, where: npt.NDArray[np.int64]) -> Keys:
    return Keys(keys.spaces[where], keys.ids[where], keys.counts[where])
