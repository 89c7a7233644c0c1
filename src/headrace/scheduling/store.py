"""`StepStore`: wraps the store of `EmbeddingBags`, so that the scheduler decides when reads are sent."""

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
    """A read of a batch's keys, sent in one or two requests before `EmbeddingBags` asks for the rows.

    Attributes:
        store: The store.
        asked: The keys as requested.
        keys: The keys to read; for a part of a batch, with their counts in the whole batch.
        rows: float32 [U, dim], available after `finish`.
        deferred: int64, positions of the keys that an early request skipped; None if there was no early request.
        is_outdated: Whether some of the keys were evicted after `prepare`, so that rows must be read again.
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
        """Defer the keys that an update in flight touches; returns the positions of the others, int64."""
        found = np.zeros(len(self.keys), dtype=np.bool_)
        for keys in touched:
            found |= keys_in(self.keys, keys)
        self.deferred = np.flatnonzero(found)
        return np.flatnonzero(~found)

    def take(self, where: Int64s | None, rows: Float32s) -> None:
        """Add rows that have arrived for the keys at some positions; None for all."""
        self._parts.append((where, rows))

    def finish(self) -> None:
        """Combine the rows once all have arrived."""
        if self.rows.done():
            return
        if not self._parts:  # no keys, so nothing was requested
            self._parts.append((None, np.empty((0, self.store.embedding_dim), dtype=np.float32)))
        where, rows = self._parts[0]
        if where is not None and len(where) < len(self.keys):
            rows = np.empty((len(self.keys), self.store.embedding_dim), dtype=np.float32)
            for where, part in self._parts:
                rows[where] = part
        self._parts.clear()
        self.rows.set_result(rows)

    def verify(self) -> None:
        """Read all rows again, after every update before this batch is applied, and compare.

        Raises:
            HeadraceError: A row differs.
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
"""Some keys of a read, by position; None for all."""


class StepStore:
    """An `EmbeddingStore` for use under a scheduler: reads wait until they are sent, and updates return before they are
    applied.

    Attributes:
        store: The wrapped store.
        embedding_dim: Dimension of the rows.
        first_step: The last step of the store when this was created.
        num_updates: Number of updates since then.
        updating: Future of the newest update.
    """

    def __init__(self, store: EmbeddingStore, embedding_dim: int) -> None:
        """Wrap a store without sending anything yet."""
        self.store = store
        self.first_step = store.step
        self.embedding_dim = embedding_dim
        self.num_updates = 0
        self.updating: Future[None] | None = None
        self._reads: dict[Keys, PendingRead] = {}  # keyed by identity, because a batch owns its keys
        # Tables in this process may move in memory when they grow, so reads and updates must not overlap.
        self._lock: Any = threading.Lock() if isinstance(store, LocalStore) else _NoLock()

    def prepare(self, keys: Keys) -> PendingRead:
        """Prepare a read of a batch's keys, to be sent later."""
        read = self._reads[keys] = PendingRead(self, keys)
        return read

    def forget(self, read: PendingRead) -> None:
        """Forget a read whose batch is trained."""
        self._reads.pop(read.asked, None)

    @property
    def step(self) -> int:
        """See `EmbeddingStore`."""
        return self.store.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; prepared keys get the rows of their read."""
        read = self._reads.get(keys)
        if read is not None:
            return self.read_now(read.keys) if read.is_outdated else read.rows
        with self._lock:
            return self.store.read(keys, after=after)

    def read_now(self, keys: Keys) -> Future[Float32s]:
        """Read current rows, even of prepared keys."""
        with self._lock:
            return self.store.read(keys)

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """See `EmbeddingStore.update`; the returned future is already done; wait for `updating` instead."""
        with self._lock:
            self.updating = self.store.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)
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
        """Send the keys of some reads to the store as one request.

        Args:
            selections: One or more selections. A key in several of them is requested several times.
            num_updates: Number of updates since `first_step` that the rows must include.
            done: Called once, from any thread, when rows have arrived, or with the error.
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
    """Join the keys of several calls, with tables ascending; also returns the positions of each call's keys."""
    tables = np.concatenate([keys.tables for keys in parts])
    order = np.argsort(tables.astype(np.int16), kind="stable")  # 16 bits use a radix sort
    keys = Keys(
        tables[order],
        np.concatenate([keys.ids for keys in parts])[order],
        np.concatenate([keys.counts for keys in parts])[order],
    )
    places = np.empty(len(order), dtype=np.int64)
    places[order] = np.arange(len(order))
    return keys, list(np.split(places, np.cumsum([len(keys) for keys in parts])[:-1]))
