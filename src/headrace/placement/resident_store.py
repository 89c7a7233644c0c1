"""`ResidentStore`: an `EmbeddingStore` that keeps the rows of the only trainer in its process while it uses them.

A row comes from its shard once, with optimizer state and metadata, is trained here, and returns when its room is needed
or a checkpoint is due. A row that was never trained on does not come at all::

    announce(keys of batch b + n)   which rows will be needed?
    prepare()                       missing ones are fetched in the background; rows that leave are put back
    read(keys of batch b)           waits for its rows, if they are not here yet
    update(keys of batch b)         in this process, with the kernels of the shard
    finish()                        batch b is trained; batch b + 1 is next
    flush()                         all changed rows are put back, before a checkpoint
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field, replace
from itertools import islice

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.request_checks import check_gradients
from headrace.embeddings.shards.table_group import collisionless_tables
from headrace.embeddings.stores.remote import RemoteStore
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.placement.residency import Placing, Residency
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.verification import Verification

__all__ = ["AHEAD", "ResidencyCounters", "ResidentStore"]

AHEAD = 8
"""Maximum number of batches whose rows are fetched ahead: enough to hide a slow link, and few enough to leave room for
other rows."""

MAX_PUTS = 8
"""Maximum number of puts on their way, so that a slow link holds training up instead of filling memory."""

KEY_BYTES, KEYS_PER_ROW = 64, 1.25
"""Bytes of the planner for each row that can be kept, if it has an entry for as many keys and a quarter more."""

Float32s = npt.NDArray[np.float32]
Int32s = npt.NDArray[np.int32]
Int64s = npt.NDArray[np.int64]
States = Future[list[tuple[Int64s, KeyStates]]]


@dataclass(frozen=True)
class ResidencyCounters:
    """Counters of a `ResidentStore`.

    Attributes:
        keys: Unique keys of all steps; each would be read and updated in its shard in every step.
        resident: Keys whose rows were here already.
        new: Keys that were never trained on before, and so not fetched.
        fetched: Keys asked for in a shard.
        returned: Rows put back to make room, or because a checkpoint was due.
        peak_rows: Largest number of resident rows.
    """

    keys: int = 0
    resident: int = 0
    new: int = 0
    fetched: int = 0
    returned: int = 0
    peak_rows: int = 0


@dataclass(frozen=True, eq=False)
class _Arriving:
    """Rows on their way.

    Attributes:
        batch: The batch that needs them.
        rows: int64 [M], where they go.
        states: The states by shard, with positions among the keys asked for.
    """

    batch: int
    rows: Int64s
    states: States


@dataclass(eq=False)
class _End:
    """The last batch before a flush, and entries of rows that are not used until then, to be put back.

    Attributes:
        batch: Number of the batch.
    """

    batch: int
    _parts: deque[Int32s] = field(default_factory=deque)
    _num_entries: int = 0

    def add(self, entries: Int32s) -> None:
        """Add entries that became unused."""
        self._parts.append(entries)
        self._num_entries += len(entries)

    def take(self, num_batches: int) -> Int32s:
        """Take a part of the entries, so that all are taken in this batch and `num_batches` later ones."""
        left = -(-self._num_entries // (num_batches + 1))
        self._num_entries -= left
        taken = [np.empty(0, dtype=np.int32)]
        while left > 0:
            part = self._parts.popleft()
            taken.append(part[:left])
            if len(part) > left:
                self._parts.appendleft(part[left:])
            left -= len(taken[-1])
        return np.unique(np.concatenate(taken))  # some may have been used again, and added again


class ResidentStore:
    """The rows of one table group that its only trainer uses. Not thread-safe; transfers run in other threads.

    Batches are trained in the order in which they are announced. Other keys may be read and updated at any time, but
    their rows are then waited for.

    Args:
        remote: Store of all rows.
        memory_bytes: Memory for resident rows, their index, and `seen`. One batch always fits.
        version: Version of the table group now.
        window_starts: Start versions of its recent windows.
        seen: The keys that may have a state in a shard.
        verify: Whether to compare all rows with those of serial steps, see `Verification`.

    Attributes:
        step: Number of the last step.
        version: Version of the table group.
    """

    def __init__(
        self,
        remote: RemoteStore,
        *,
        memory_bytes: int,
        version: int,
        window_starts: Sequence[int],
        seen: SeenKeys,
        verify: bool = False,
    ) -> None:
        spec = remote.spec
        tables = collisionless_tables(spec)
        row_bytes = ResidentRows.row_bytes(tables, spec.seed) + KEY_BYTES
        capacity = max(1, (memory_bytes - seen.num_bytes) // row_bytes)
        self.step, self.version = remote.step, version
        self._remote, self._spec = remote, spec
        self._window_starts = list(window_starts)
        self._residency = Residency(capacity)
        self._rows = ResidentRows(tables, spec.seed, capacity)
        self._seen = seen
        self._num_placed = 0
        self._batches: dict[Keys, int] = {}  # announced, in order, by identity, because a batch owns its keys
        self._arriving: deque[_Arriving] = deque()
        self._returning: deque[Future[None]] = deque()
        self._end: _End | None = None
        self._counters = ResidencyCounters()
        self._verification = (
            Verification(remote, version=version, window_starts=self._window_starts) if verify else None
        )

    @property
    def remote(self) -> RemoteStore:
        """The store of all rows."""
        return self._remote

    @property
    def counters(self) -> ResidencyCounters:
        """Counters so far."""
        return self._counters

    @property
    def num_bytes(self) -> int:
        """Bytes of resident rows and of the planner."""
        return self._rows.num_bytes + self._residency.num_bytes + self._seen.num_bytes

    @property
    def has_room(self) -> bool:
        """Whether another batch may be announced within the memory; the next one may in any case."""
        return self._residency.num_keys < KEYS_PER_ROW * self._residency.capacity

    def announce(self, keys: Keys) -> None:
        """Announce the keys of the batch after the last announced one."""
        self._batches[keys] = self._residency.announce(keys)

    def prepare(self) -> None:
        """Fetch the rows of the next announced batches, as far as there is room; without waiting."""
        first, end = self._residency.num_trained, self._residency.num_announced
        for keys, batch in islice(self._batches.items(), self._num_placed - first, min(AHEAD, end - first)):
            placing = self._residency.place(batch)
            if placing is None:
                break
            self._num_placed += 1
            self._move(keys, placing, batch)

    def end_after(self, num_batches: int) -> None:
        """Tell how many announced batches come before the next `flush`, so that it has little left to do.

        From then on, rows that none of them uses again are put back in each step, in equal parts.
        """
        batch = self._residency.num_trained + num_batches - 1
        if self._end is None or self._end.batch != batch:
            self._end = _End(batch)
            self._end.add(self._residency.unused_until(batch))

    def finish(self) -> None:
        """Record that the next announced batch is trained, or skipped."""
        batch = self._batches.pop(next(iter(self._batches)))
        unused = self._residency.finish(-1 if self._end is None else self._end.batch)
        self._num_placed = max(self._num_placed, self._residency.num_trained)
        if self._end is not None:
            self._end.add(unused)
            self._put(*self._residency.located(self._end.take(self._end.batch - batch)))

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; rows include the updates of all steps."""
        is_next = self._is_next(keys)
        found = self._rows.read(self._rows_of_next(keys), keys) if is_next else self._read_anywhere(keys)
        if self._verification is not None and keys.counts.any():
            self._verification.check_read(keys, found)
        rows: Future[Float32s] = Future()
        rows.set_result(found)
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """See `EmbeddingStore.update`."""
        check_gradients(keys, gradients, self._spec)
        rows = self._rows_of_next(keys) if self._is_next(keys) else self._rows_of_others(keys)
        self.step += 1
        self.version += 1
        self._rows.update(
            rows, keys, gradients, step=self.step, version=self.version, num_rows=num_rows, lr_factor=lr_factor
        )
        if self._verification is not None:
            self._verification.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)
        updated: Future[None] = Future()
        updated.set_result(None)
        return updated

    def flush(self) -> None:
        """Put all changed rows back, and wait until the shards have them; they also stay here."""
        self._receive()
        self._end = None
        self._put(*self._residency.resident(), even_if_none=True)
        self._wait_for_puts(0)
        if self._verification is not None:
            self._verification.check_returned()

    def end_window(self) -> None:
        """Evict from the resident rows what the end of a window evicts in the shards, after a `flush`."""
        self._receive()
        self._window_starts = [*self._window_starts, self.version][-(self._rows.num_windows + 1) :]
        self.version += 1
        if self._rows.has_retention:
            self._rows.expire(*self._residency.resident(), self._window_starts)
        if self._verification is not None:
            self._verification.end_window()

    def evict(self, keys: Keys) -> Future[int]:
        """See `EmbeddingStore.evict`."""
        self.flush()
        rows = self._residency.find(keys)
        self._rows.clear(rows[rows > 0])
        self.version += 1
        if self._verification is not None:
            self._verification.evict(keys)
        return self._remote.evict(keys)

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`."""
        self.flush()
        return self._remote.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `EmbeddingStore.acknowledge`."""
        self._remote.acknowledge(consumer, version)

    def _is_next(self, keys: Keys) -> bool:
        """Whether these are the keys of the next announced batch."""
        return self._batches.get(keys) == self._residency.num_trained

    def _rows_of_next(self, keys: Keys) -> Int64s:
        """Rows of the keys of the next announced batch; waits for them."""
        batch = self._batches[keys]
        if self._num_placed <= batch:
            self.prepare()  # the next batch always has room
        self._receive(batch)
        return self._residency.rows_of(batch)

    def _rows_of_others(self, keys: Keys) -> Int64s:
        """Rows of keys that were not announced; waits for them."""
        self._move(keys, self._residency.adopt(keys), self._residency.num_trained)
        self._receive()
        return self._residency.find(keys)

    def _read_anywhere(self, keys: Keys) -> Float32s:
        """Rows of any keys, where they are."""
        self._receive()
        rows = self._residency.find(keys)
        here, elsewhere = np.flatnonzero(rows), np.flatnonzero(rows == 0)
        if not len(elsewhere):
            return self._rows.read(rows, keys)
        self._wait_for_puts(0)
        out = np.empty((len(keys), self._spec.embedding_dim), dtype=np.float32)
        out[here] = self._rows.read(rows[here], keys.take(here))
        out[elsewhere] = self._remote.read(keys.take(elsewhere), after=0).result()
        return out

    def _move(self, keys: Keys, placing: Placing, batch: int) -> None:
        """Put back the rows that leave for those of a batch, and fetch the latter."""
        self._put(placing.leaving, placing.left)
        self._rows.grow(self._residency.capacity)
        self._rows.clear(placing.rows)
        missing = keys.take(placing.places)
        maybe = np.flatnonzero(self._seen.contains(missing))
        if len(maybe):
            self._arriving.append(_Arriving(batch, placing.rows[maybe], self._remote.fetch(missing.take(maybe))))
        self._count(
            keys=len(keys), resident=len(keys) - len(missing), new=len(missing) - len(maybe), fetched=len(maybe)
        )

    def _receive(self, batch: int | None = None) -> None:
        """Wait for the rows on their way to a batch and those before it, or for all, and keep them."""
        while self._arriving and (batch is None or self._arriving[0].batch <= batch):
            arrived = self._arriving.popleft()
            for places, states in arrived.states.result():
                self._rows.set_states(arrived.rows[places], states)

    def _put(self, rows: Int64s, keys: Keys, *, even_if_none: bool = False) -> None:
        """Put those of some rows back into their shards that were changed since they came or were put back, without
        waiting."""
        changed = np.flatnonzero(self._rows.is_changed[rows])
        rows, keys = rows[changed], keys.take(changed)
        if len(rows) or even_if_none:
            self._wait_for_puts(MAX_PUTS - 1)
            states = self._rows.states(rows)
            self._returning.append(self._remote.put(keys, states, step=self.step, version=self.version))
            self._rows.is_changed[rows] = False
            self._seen.add(keys)
            self._count(returned=len(rows))

    def _wait_for_puts(self, most: int) -> None:
        """Wait until at most so many puts are on their way; raises the error of any that failed."""
        while self._returning and (len(self._returning) > most or self._returning[0].done()):
            self._returning.popleft().result()

    def _count(self, **more: int) -> None:
        was = self._counters
        added = {name: getattr(was, name) + number for name, number in more.items()}
        self._counters = replace(was, **added, peak_rows=max(was.peak_rows, self._residency.num_resident))
