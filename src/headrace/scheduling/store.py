"""`StepStore`: stands between `EmbeddingBags` and its store, so that the scheduler decides when a read is sent."""

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

__all__ = ["PendingRead", "StepStore"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]


class PendingRead:
    """A read of keys of a batch, sent as one request or two before `EmbeddingBags` asks for the rows.

    Attributes:
        store: The store that was asked.
        asked: The keys as they were asked for.
        keys: The same to be read: of a part of a batch, with their counts in the whole batch.
        rows: float32 [U, dim], after `finish`.
        deferred: int64, places of the keys that an early request left out; None if there was none.
        is_outdated: Whether some of the keys were evicted after it was prepared, so that rows are read again.
    """

    def __init__(self, store: StepStore, keys: Keys) -> None:
        self.store = store
        self.asked = keys
        self.keys = keys
        self.rows: Future[Float32s] = Future()
        self.deferred: Int64s | None = None
        self.is_outdated = False
        self._parts: list[tuple[Int64s | None, Float32s]] = []

    def leave_out(self, touched: Sequence[Keys]) -> Int64s:
        """Defer the keys that an update on its way touches; returns the places of the others, int64."""
        found = np.zeros(len(self.keys), dtype=np.bool_)
        for keys in touched:
            found |= keys_in(self.keys, keys)
        self.deferred = np.flatnonzero(found)
        return np.flatnonzero(~found)

    def take(self, where: Int64s | None, rows: Float32s) -> None:
        """Rows have arrived, of the keys at some places; None for all."""
        self._parts.append((where, rows))

    def finish(self) -> None:
        """Put the rows together, once all have arrived."""
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
        """Read all rows again, now that every update before this batch is applied, and compare.

        Raises:
            HeadraceError: A row is not what it should be.
        """
        if self.is_outdated:
            return
        expected = self.store.read_now(self.keys).result()
        wrong = np.flatnonzero((self.rows.result() != expected).any(axis=1))
        if len(wrong):
            table, key = self.keys.tables[wrong[0]], self.keys.ids[wrong[0]]
            raise HeadraceError(
                f"verify: {len(wrong)} of {len(expected)} rows were pulled before the last push to them was applied, "
                f"the first of table {table}, id {key}; expected the rows that serial steps read"
            )


Selection = tuple[PendingRead, Int64s | None]
"""Some keys of a read, by their places; None for all."""


class StepStore:
    """An `EmbeddingStore` for the time that a scheduler runs: reads wait to be sent, updates do not wait to be applied.

    Attributes:
        store: Where rows live.
        embedding_dim: Floats of a row.
        first_step: The last step that was handed in before this was made.
        num_updates: Updates handed in since then.
        updating: The newest update.
    """

    def __init__(self, store: EmbeddingStore, embedding_dim: int) -> None:
        """Nothing is sent yet; the arguments are the attributes."""
        self.store = store
        self.first_step = store.step
        self.embedding_dim = embedding_dim
        self.num_updates = 0
        self.updating: Future[None] | None = None
        self._reads: dict[Keys, PendingRead] = {}  # Keys are told apart by identity: a batch owns its own
        # Tables in this process may move when they grow, so a read and an update must not meet.
        self._lock: Any = threading.Lock() if isinstance(store, LocalStore) else _NoLock()

    def prepare(self, keys: Keys) -> PendingRead:
        """A read of keys of a batch, to be sent later."""
        read = self._reads[keys] = PendingRead(self, keys)
        return read

    def forget(self, read: PendingRead) -> None:
        """The batch of a read is trained."""
        self._reads.pop(read.asked, None)

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.store.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; of keys that were prepared, the rows of that read."""
        read = self._reads.get(keys)
        if read is not None:
            return self.read_now(read.keys) if read.is_outdated else read.rows
        with self._lock:
            return self.store.read(keys, after=after)

    def read_now(self, keys: Keys) -> Future[Float32s]:
        """Rows as they are now, also of keys that were prepared."""
        with self._lock:
            return self.store.read(keys)

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1) -> Future[None]:
        """See `EmbeddingStore.update`; the future is done at once, `updating` is the one to wait for."""
        with self._lock:
            self.updating = self.store.update(keys, gradients, num_rows=num_rows)
        self.num_updates += 1
        sent: Future[None] = Future()
        sent.set_result(None)
        return sent

    def evict(self, keys: Keys) -> Future[int]:
        """See `EmbeddingStore.evict`; what was read ahead of these ids is read again."""
        with self._lock:
            evicting = self.store.evict(keys)
        for read in list(self._reads.values()):
            read.is_outdated |= bool(keys_in(read.keys, keys).any())
        return evicting

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`."""
        return self.store.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `EmbeddingStore.acknowledge`."""
        self.store.acknowledge(consumer, version)

    def send(
        self, selections: Sequence[Selection], num_updates: int, done: Callable[[BaseException | None], None]
    ) -> None:
        """Ask the store for the keys of some reads as one request.

        Args:
            selections: At least one. A key in several of them is asked for once each.
            num_updates: Updates since `first_step` that the rows must have seen.
            done: Called once, by any thread, when rows have arrived, or with the error.
        """
        selected = [read.keys if where is None else read.keys.take(where) for read, where in selections]
        keys, places = (selected[0], [None]) if len(selections) == 1 else _joined(selected)

        def arrived(reading: Future[Float32s]) -> None:
            error = reading.exception()
            if error is None:
                rows = reading.result()
                for (read, where), place in zip(selections, places, strict=True):
                    read.take(where, rows if place is None else rows[place])
            done(error)

        with self._lock:
            reading = self.store.read(keys, after=self.first_step + num_updates)
        reading.add_done_callback(arrived)


class _NoLock:
    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        pass


def _joined(parts: Sequence[Keys]) -> tuple[Keys, list[Int64s | None]]:
    """Keys of several calls as one, tables ascending, and where those of each call are."""
    tables = np.concatenate([keys.tables for keys in parts])
    order = np.argsort(tables.astype(np.int16), kind="stable")  # of 16 bits: a radix sort
    keys = Keys(
        tables[order],
        np.concatenate([keys.ids for keys in parts])[order],
        np.concatenate([keys.counts for keys in parts])[order],
    )
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return keys, list(np.split(places, np.cumsum([len(keys) for keys in parts])[:-1]))
