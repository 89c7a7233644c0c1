"""`StepStore`: stands between `EmbeddingBags` and its store, so that the scheduler says when a pull is sent."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.embeddings import EmbeddingStore, Keys, LocalStore
from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.ops.key_sets import keys_in
from headrace.errors import HeadraceError

__all__ = ["StepStore", "Ticket"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


class Ticket:
    """A pull of keys of a batch, which is sent in one or two parts before `EmbeddingBags` asks for the rows.

    Attributes:
        store: Whose pull it is.
        keys: What is asked for.
        rows: float32 [U, dim], after `finish`.
        held: int64, which keys an early request left out; None if there was none.
    """

    def __init__(self, store: StepStore, keys: Keys) -> None:
        self.store = store
        self.keys = keys
        self.rows: Future[Float32s] = Future()
        self.held: Int64s | None = None
        self._parts: list[tuple[Int64s | None, Float32s]] = []

    def leave_out(self, touched: Sequence[Keys]) -> Int64s:
        """Decide what an early request leaves out: keys that a push on its way touches; returns the others."""
        found = np.zeros(len(self.keys), dtype=np.bool_)
        for keys in touched:
            found |= keys_in(self.keys, keys)
        self.held = np.flatnonzero(found)
        return np.flatnonzero(~found)

    def take(self, where: Int64s | None, rows: Float32s) -> None:
        """Rows of some keys are here; None for all."""
        self._parts.append((where, rows))

    def finish(self) -> None:
        """Put the parts together, once all are here."""
        if self.rows.done():
            return
        if not self._parts:  # no keys, so nothing was asked for
            self._parts.append((None, np.empty((0, self.store.embedding_dim), dtype=np.float32)))
        where, rows = self._parts[0]
        if where is not None and len(where) < len(self.keys):
            rows = np.empty((len(self.keys), self.store.embedding_dim), dtype=np.float32)
            for where, part in self._parts:
                rows[where] = part
        self._parts.clear()
        self.rows.set_result(rows)

    def verify(self) -> None:
        """Pull all rows again, now that every push before this batch is applied, and compare.

        Raises:
            HeadraceError: A row is not what it should be.
        """
        expected = self.store.read_now(self.keys).result()
        wrong = np.flatnonzero((self.rows.result() != expected).any(axis=1))
        if len(wrong):
            space, key = self.keys.spaces[wrong[0]], self.keys.ids[wrong[0]]
            raise HeadraceError(
                f"verify: {len(wrong)} of {len(expected)} rows were pulled before the last push to them was applied, "
                f"the first of space {space}, id {key}; expected the rows that serial steps read"
            )


Part = tuple[Ticket, Int64s | None]
"""Some keys of a ticket, by their places; None for all."""


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
        self._tickets: dict[Keys, Ticket] = {}  # Keys are told apart by identity: a batch owns its own
        # A table in this process may move when it grows, so a pull and a push must not meet.
        self._lock: Any = threading.Lock() if isinstance(store, LocalStore) else _NoLock()

    def prepare(self, keys: Keys) -> Ticket:
        """A ticket for keys of a batch that will be read; nothing is sent yet."""
        ticket = self._tickets[keys] = Ticket(self, keys)
        return ticket

    def forget(self, ticket: Ticket) -> None:
        """The batch of a ticket is trained."""
        self._tickets.pop(ticket.keys, None)

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.store.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; of keys with a ticket, the rows that were asked for then."""
        ticket = self._tickets.get(keys)
        if ticket is not None:
            return ticket.rows
        with self._lock:
            return self.store.read(keys, after=after)

    def read_now(self, keys: Keys) -> Future[Float32s]:
        """Rows as they are now, also of keys with a ticket."""
        with self._lock:
            return self.store.read(keys)

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1) -> Future[None]:
        """See `EmbeddingStore.update`; the future is done at once, `pushing` is the one to wait for."""
        with self._lock:
            self.pushing = self.store.update(keys, gradients, num_rows=num_rows)
        self.num_pushed += 1
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`."""
        return self.store.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `EmbeddingStore.acknowledge`."""
        self.store.acknowledge(consumer, version)

    def send(self, parts: Sequence[Part], num_steps: int, done: Callable[[BaseException | None], None]) -> None:
        """Ask the store for the keys of some tickets as one request.

        Args:
            parts: At least one.
            num_steps: Pushes since `first_step` that the rows must have seen.
            done: Called once, by any thread, when rows are here, or with the error.
        """
        selected = [ticket.keys if where is None else ticket.keys.take(where) for ticket, where in parts]
        keys, places = (selected[0], [None]) if len(parts) == 1 else _joined(selected)

        def arrived(pulled: Future[Float32s]) -> None:
            error = pulled.exception()
            if error is None:
                rows = pulled.result()
                for (ticket, where), place in zip(parts, places, strict=True):
                    ticket.take(where, rows if place is None else rows[place])
            done(error)

        with self._lock:
            pulled = self.store.read(keys, after=self.first_step + num_steps)
        pulled.add_done_callback(arrived)


class _NoLock:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _joined(parts: Sequence[Keys]) -> tuple[Keys, list[Int64s | None]]:
    """Keys of several calls as one, spaces ascending, and where those of each call are."""
    spaces = np.concatenate([keys.spaces for keys in parts])
    order = np.argsort(spaces.astype(np.int16), kind="stable")  # of 16 bits: a radix sort
    keys = Keys(
        spaces[order],
        np.concatenate([keys.ids for keys in parts])[order],
        np.concatenate([keys.counts for keys in parts])[order],
    )
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return keys, list(np.split(places, np.cumsum([len(keys) for keys in parts])[:-1]))
