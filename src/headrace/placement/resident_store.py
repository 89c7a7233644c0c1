"""`ResidentStore`: an `EmbeddingStore` that keeps rows in the trainers while they use them.

A row comes from its shard once, with optimizer state and metadata, is trained here, and returns when its room is needed
or a checkpoint is due. A row that was never trained on does not come at all. With several trainers, one of those that
read a row keeps it, and exchanges values and gradients with the others, see `RowExchange`::

    announce(keys of batch b + n)   which rows will be needed?
    prepare()                       missing ones are fetched in the background; rows that leave are put back
    read(keys of batch b)           waits for its rows, if they are not here yet
    update(keys of batch b)         in this process, with the kernels of the shard
    finish()                        batch b is trained; batch b + 1 is next
    flush()                         all changed rows are put back, before a checkpoint

With several trainers, all call these methods in the same order. A batch of the only trainer can also be read in parts,
while the others are on their way, see `MicroBatches`::

    place_next()                    instead of prepare(): which rows of batch b are missing?
    fetch_next(parts)               they are fetched, part by part
    train_part(j)                   read() now waits for parts 0 to j only
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from time import perf_counter

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.merging import merge_updates
from headrace.embeddings.shards.request_checks import check_gradients
from headrace.embeddings.shards.table_group import collisionless_tables
from headrace.embeddings.stores.remote import RemoteStore
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import HeadraceError
from headrace.placement.joining import Prices
from headrace.placement.key_rounds import JointBatch
from headrace.placement.partial_read import LazyRows, PartialRead, ask_in_turn
from headrace.placement.peers import Peers
from headrace.placement.residency import Keeps, Placing, Residency
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.returns import BeforeEnd, Returns
from headrace.placement.row_exchange import ExchangedBytes, RowExchange
from headrace.placement.verification import Verification

__all__ = ["AHEAD", "ResidencyCounters", "ResidentStore"]

AHEAD = 8
"""Maximum number of batches whose rows are fetched ahead: enough to hide a slow link, and few enough to leave room for
other rows."""

KEY_BYTES, SHARED_KEY_BYTES, KEYS_PER_ROW = 64, 76, 1.25
"""Bytes of the planner for each row that can be kept, with one trainer and with several, if it has an entry for as many
keys and a quarter more."""

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
States = Future[list[tuple[Int64s, KeyStates]]]


@dataclass(frozen=True)
class ResidencyCounters:
    """Counters of a `ResidentStore`.

    Attributes:
        keys: Unique keys of all steps; each would be read and updated in its shard in every step.
        resident: Keys whose rows were here already.
        new: Keys that were never trained on before, and so not fetched.
        fetched: Keys asked for in a shard.
        handed_over: Keys whose rows came from another trainer.
        elsewhere: Keys whose rows another trainer keeps.
        returned: Rows put back to make room, or because a checkpoint was due.
        peak_rows: Largest number of resident rows.
    """

    keys: int = 0
    resident: int = 0
    new: int = 0
    fetched: int = 0
    handed_over: int = 0
    elsewhere: int = 0
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


class ResidentStore:
    """The rows of one table group that a trainer keeps. Not thread-safe; transfers run in other threads.

    Batches are trained in the order in which they are announced. With one trainer, other keys may be read and updated
    at any time, but their rows are then waited for.

    Args:
        remote: Store of all rows.
        memory_bytes: Memory for resident rows, their index, and `seen`. One batch always fits.
        version: Version of the table group now.
        window_starts: Start versions of its recent windows.
        seen: The keys that may have a state in a shard; with several trainers, the same set at each.
        peers: The trainers, if there are several.
        keeps: See `Residency`.
        tells_keys: Whether trainers tell each other the keys of their batches here; otherwise all of them call
            `announce_joint` instead of `announce`.
        verify: Whether to compare all rows with those of serial steps, see `Verification`.

    Attributes:
        step: Number of the last step.
        version: Version of the table group.
        prices: What it costs that a row moves between trainers, or is used by another than its owner.
        fetch_waited_s: Seconds in which steps have waited for rows from the shards.
    """

    def __init__(
        self,
        remote: RemoteStore,
        *,
        memory_bytes: int,
        version: int,
        window_starts: Sequence[int],
        seen: SeenKeys,
        peers: Peers | None = None,
        keeps: Keeps = "recent",
        tells_keys: bool = True,
        verify: bool = False,
    ) -> None:
        spec = remote.spec
        tables = collisionless_tables(spec)
        self._trainer, self._num_trainers = (0, 1) if peers is None else (peers.rank, peers.size)
        key_bytes = KEY_BYTES if self._num_trainers == 1 else SHARED_KEY_BYTES * self._num_trainers
        row_bytes = ResidentRows.row_bytes(tables, spec.seed) + key_bytes
        capacity = max(1, (memory_bytes - seen.num_bytes) // row_bytes)
        self.step, self.version = remote.step, version
        self._remote, self._spec = remote, spec
        self._window_starts = list(window_starts)
        self._rows = ResidentRows(tables, spec.seed, capacity)
        self.prices = Prices(move_bytes=self._rows.packed_bytes, use_bytes=2 * 4 * spec.embedding_dim)
        self._residency = Residency(capacity, self._num_trainers, self._trainer, self.prices, keeps=keeps)
        self._exchange: RowExchange | None = None
        if peers is not None and peers.size > 1:
            self._exchange = RowExchange(
                peers,
                self._residency,
                self._rows,
                embedding_dim=spec.embedding_dim,
                num_tables=len(tables),
                tells_keys=tells_keys,
            )
        self._seen = seen
        self._num_placed = 0
        self._batches: dict[Keys, int] = {}  # announced, in order, by identity, because a batch owns its keys
        self._arriving: deque[_Arriving] = deque()
        self._partial: PartialRead | None = None  # of the next batch, if it is read in parts
        self._fetched: Future[None] = Future()  # done when the last part is coming, and other requests may follow
        self.fetch_waited_s = 0.0
        self._returns = Returns(remote, self._rows)
        self._marks = [0] * self._num_trainers  # how often each trainer has returned rows that the plan lets leave
        self._ahead_of_plan: Future[None] | None = None  # the newest put of rows that stay
        self._end: BeforeEnd | None = None
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
    def exchanged(self) -> ExchangedBytes:
        """Bytes sent to other trainers so far."""
        return ExchangedBytes() if self._exchange is None else self._exchange.sent

    @property
    def num_bytes(self) -> int:
        """Bytes of resident rows and of the planner."""
        return self._rows.num_bytes + self._residency.num_bytes + self._seen.num_bytes

    @property
    def waited_s(self) -> float:
        """Seconds in which steps have waited for rows from the shards, and for the return of earlier rows."""
        return self.fetch_waited_s + self._returns.waited_s

    @property
    def state_bytes(self) -> int:
        """Bytes of a row on its way: its id and its state."""
        return 8 + self._rows.packed_bytes

    def has_room(self, num_told_keys: int = 0) -> bool:
        """Whether another batch may be announced within the memory; the next one may in any case.

        Args:
            num_told_keys: Keys of batches that will be announced too.
        """
        residency, num_trainers = self._residency, self._num_trainers
        told = islice(self._batches, residency.num_announced - residency.num_trained, None)
        num_keys = residency.num_keys + num_trainers * (num_told_keys + sum(map(len, told)))
        return num_keys < KEYS_PER_ROW * residency.capacity * num_trainers

    def announce(self, keys: Keys, num_rows: int = 1) -> None:
        """Announce the keys of the batch after the last announced one.

        Args:
            keys: Unique keys, with their counts.
            num_rows: Number of rows of this trainer's batch, as given to `update`.
        """
        if self._exchange is None:
            self._batches[keys] = self._residency.announce(keys)
        else:
            self._batches[keys] = self._residency.num_trained + len(self._batches)
            self._exchange.add(keys, num_rows)

    def announce_joint(self, joint: JointBatch) -> None:
        """Announce the batch after the last announced one, of which all trainers know the keys of all."""
        assert self._exchange is not None
        self._batches[joint.parts[self._trainer]] = self._exchange.announce(joint)

    def prepare(self) -> None:
        """Fetch the rows of the next announced batches, as far as there is room.

        With one trainer, this does not wait. Several wait until all have announced the next batch.
        """
        if self._exchange is not None:
            self._exchange.learn()
        self._place()
        self._launch(self._residency.num_trained, late=True)
        self._launch(self._residency.num_trained + 1, late=False)

    def place_next(self) -> Bools:
        """Give places to the rows of the next announced batch; `fetch_next` then fetches them. Only with one trainer.

        Returns:
            bool [U], whether the row of each key must come from a shard.
        """
        assert self._exchange is None
        batch, keys = self._residency.num_trained, next(iter(self._batches))
        assert self._num_placed == batch, "no later batch has its places"
        placing = self._residency.place(batch)
        assert placing is not None, "the next batch always has room"
        self._num_placed += 1
        is_missing = np.zeros(len(keys), dtype=np.bool_)
        self._fetched = Future()
        is_missing[self._make_room(keys, placing, self._fetched)] = True
        return is_missing

    def fetch_next(self, parts: Sequence[Int64s]) -> None:
        """Fetch the rows of the next batch after `place_next`, in parts that come one after the other.

        Args:
            parts: For each part, the positions of its keys, ascending; together those of all rows that must come.
        """
        batch, keys = self._residency.num_trained, next(iter(self._batches))
        rows = self._residency.rows_of(batch)
        behind = self._returns.last_of(keys)
        fetched = self._fetched
        fetch = lambda places: self._remote.fetch(keys.take(places), behind=behind)  # noqa: E731
        answers = ask_in_turn(fetch, parts, lambda: fetched.set_result(None))
        for places, states in zip(parts, answers, strict=True):
            self._arriving.append(_Arriving(batch, rows[places], states))
        if len(parts) > 1:
            self._partial = PartialRead(
                lambda places: self._rows.read(rows[places], keys.take(places)),
                self._receive_one,
                parts,
                (len(keys), self._spec.embedding_dim),
            )

    def train_part(self, number: int) -> None:
        """From now on, reads of the next batch wait for the rows of this part and those before it."""
        if self._partial is not None:
            self._partial.part = number

    def _place(self) -> None:
        """Give places to the rows of the next announced batches, as far as there is room."""
        first, end = self._residency.num_trained, self._residency.num_announced
        for keys, batch in islice(self._batches.items(), self._num_placed - first, min(AHEAD, end - first)):
            placing = self._residency.place(batch)
            if placing is None:
                break
            self._num_placed += 1
            self._move(keys, placing, batch)

    def end_after(self, num_batches: int) -> None:
        """Tell how many announced batches come before the next `flush`, so that it has little left to do.

        From then on, rows that none of them uses again are put back in each step, as many as fit in a put, because on a
        slow link they take longer than the steps that are left.
        """
        batch = self._residency.num_trained + num_batches - 1
        if self._end is None or self._end.batch != batch:
            self._end = BeforeEnd(batch)
            self._end.add(self._residency.unused_until(batch))

    def finish(self) -> None:
        """Record that the next announced batch is trained, or, with one trainer, skipped."""
        batch = self._batches.pop(next(iter(self._batches)))
        self._partial = None
        if self._exchange is not None:
            self._launch(batch + 1, late=True)
            self._exchange.finish(batch)
        unused = self._residency.finish(-1 if self._end is None else self._end.batch)
        self._num_placed = max(self._num_placed, self._residency.num_trained)
        if self._end is not None:
            self._end.add(unused)
            rows, keys = self._residency.located(self._end.take(self._end.batch - batch, self._returns.max_rows))
            if self._put(rows, keys, step=self.step - 1):  # the shards wait for a flush to have all of this step
                self._ahead_of_plan = self._returns.newest

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`; rows include the updates of all steps."""
        if self._partial is not None and self._is_next(keys):
            return LazyRows(partial(self._read_part, self._partial))
        if self._exchange is None and self._is_next(keys):
            return LazyRows(partial(self._read_next, keys))
        found = self._read_anywhere(keys) if self._exchange is None else self._read_shared(keys, self._exchange)
        self._verify_read(keys, found)
        rows: Future[Float32s] = Future()
        rows.set_result(found)
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """See `EmbeddingStore.update`."""
        check_gradients(keys, gradients, self._spec)
        if self._exchange is not None:
            self._update_shared(keys, gradients, num_rows, lr_factor, self._exchange)
        else:
            rows = self._rows_of_next(keys) if self._is_next(keys) else self._rows_of_others(keys)
            self._update(rows, keys, gradients, num_rows, lr_factor)
            if self._verification is not None:
                self._verification.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)
        updated: Future[None] = Future()
        updated.set_result(None)
        return updated

    def flush(self) -> None:
        """Put all changed rows back, and wait until the shards have them; they also stay here."""
        self._receive()
        self._end = None
        self._marks = [mark + 1 for mark in self._marks]
        self._put(*self._here(self._rows.is_changed), even_if_none=True)
        self._returns.wait()
        if self._verification is not None:
            self._verification.check_returned(self._fetch_after())

    def end_window(self) -> None:
        """Evict from the resident rows what the end of a window evicts in the shards, after a `flush`."""
        self._receive()
        self._window_starts = [*self._window_starts, self.version][-(self._rows.num_windows + 1) :]
        self.version += 1
        if self._rows.has_retention:
            self._rows.expire(*self._here(), self._window_starts)
            if self._exchange is not None:
                self._exchange.send_values_again()
        if self._verification is not None:
            self._verification.end_window()

    def evict(self, keys: Keys) -> Future[int]:
        """See `EmbeddingStore.evict`; only with one trainer."""
        if self._exchange is not None:
            raise HeadraceError("evict: not possible while several trainers keep rows, expected placement none")
        self.flush()
        rows = self._residency.find(keys)
        self._rows.clear(rows[rows > 0])
        self.version += 1
        if self._verification is not None:
            self._verification.evict(keys)
        return self._remote.evict(keys)

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`; with several trainers, all ask for changes at the same time."""
        self.flush()
        return self._remote.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        """See `EmbeddingStore.acknowledge`."""
        self._remote.acknowledge(consumer, version)

    def _read_part(self, read: PartialRead) -> Float32s:
        """Rows of the next batch, as far as they are here; waits for those of the micro-batch that is trained."""
        was_complete, rows = read.is_complete, read.rows()
        if read.is_complete and not was_complete:
            self._verify_read(next(iter(self._batches)), rows)
        return rows

    def _read_next(self, keys: Keys) -> Float32s:
        """Rows of the next announced batch; waits for them."""
        rows = self._rows.read(self._rows_of_next(keys), keys)
        self._verify_read(keys, rows)
        return rows

    def _verify_read(self, keys: Keys, rows: Float32s) -> None:
        if self._verification is not None and keys.counts.any():
            self._verification.check_read(keys, rows)

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
        self._returns.wait()
        out = np.empty((len(keys), self._spec.embedding_dim), dtype=np.float32)
        out[here] = self._rows.read(rows[here], keys.take(here))
        out[elsewhere] = self._remote.read(keys.take(elsewhere), after=0).result()
        return out

    def _here(self, among: Bools | None = None) -> tuple[Int64s, Keys]:
        """Rows int64 [R] that are here, also if they are going to move to another trainer, and their keys; see
        `Residency.resident`."""
        rows, keys = self._residency.resident(among)
        if self._exchange is None:
            return rows, keys
        moving, others = self._exchange.pending()
        tables, ids = np.concatenate([keys.tables, others.tables]), np.concatenate([keys.ids, others.ids])
        order = np.argsort(tables, kind="stable")
        return np.concatenate([rows, moving])[order], Keys(tables, ids, np.zeros(len(ids), dtype=np.int32)).take(order)

    def _read_shared(self, keys: Keys, exchange: RowExchange) -> Float32s:
        """Rows of the next batch, kept here and by other trainers."""
        batch = self._check_next(keys)
        self._receive(batch)
        if self._verification is not None:
            self._verification.meet(*exchange.joint(batch).parts)
        return exchange.read(batch)

    def _update_shared(
        self, keys: Keys, gradients: Float32s, num_rows: int, lr_factor: float, exchange: RowExchange
    ) -> None:
        """Exchange the gradients of the next batch, and update the rows that are kept here."""
        batch = self._check_next(keys)
        joint = exchange.joint(batch)
        if num_rows != joint.num_rows[self._trainer]:
            raise HeadraceError(f"update: given {num_rows} rows, expected {joint.num_rows[self._trainer]} as announced")
        self._receive(batch)
        merged = exchange.merge(batch, gradients)
        self._update(merged.rows, merged.keys, merged.gradients, merged.num_rows, lr_factor)
        if self._verification is not None:
            every = merge_updates(exchange.gather(batch, gradients))
            self._verification.update(*every, num_rows=merged.num_rows, lr_factor=lr_factor)
        self._launch(batch + 1, late=True)

    def _update(self, rows: Int64s, keys: Keys, gradients: Float32s, num_rows: int, lr_factor: float) -> None:
        """Make the next step of the rows that are kept here."""
        self.step += 1
        self.version += 1
        self._rows.update(
            rows, keys, gradients, step=self.step, version=self.version, num_rows=num_rows, lr_factor=lr_factor
        )

    def _check_next(self, keys: Keys) -> int:
        """The next batch, whose keys these must be; several trainers cannot read others."""
        if not self._is_next(keys):
            raise HeadraceError("read: keys that are not announced, or not next, expected those of the next batch")
        return self._residency.num_trained

    def _launch(self, batch: int, *, late: bool) -> None:
        """Send other trainers what they need for a batch in a phase, if it has its places, and nothing was sent yet."""
        if self._exchange is None or not self._exchange.can_launch(batch, late=late):
            return
        if late:
            self._receive_fetched(batch)
        if self._ahead_of_plan is not None and len(self._exchange.leaving(batch, late=late)):
            self._ahead_of_plan.result()  # a later put by the next owner must not overtake it
            self._ahead_of_plan = None
        self._exchange.launch(batch, late=late)

    def _move(self, keys: Keys, placing: Placing, batch: int) -> None:
        """Put back the rows that leave for those of a batch, and fetch the latter."""
        if self._exchange is not None:
            self._move_shared(keys, placing, batch, self._exchange)
            return
        places = self._make_room(keys, placing)
        if len(places):
            rows = placing.rows[np.searchsorted(placing.places, places)]
            missing = keys.take(places)
            states = self._remote.fetch(missing, behind=self._returns.last_of(missing))
            self._arriving.append(_Arriving(batch, rows, states))

    def _make_room(self, keys: Keys, placing: Placing, after: Future[None] | None = None) -> Int64s:
        """Put back the rows that leave; returns the positions of the keys whose rows must come from the shards.

        Args:
            keys: Keys of a batch.
            placing: Their places.
            after: What comes before the rows that leave: a fetch takes longer while they travel the other way.
        """
        self._put(placing.leaving, placing.left, after=after)
        self._rows.grow(self._residency.capacity)
        self._rows.clear(placing.rows)
        places = placing.places
        fetched = places[self._seen.contains(keys.take(places))]
        num_new, num_resident = len(places) - len(fetched), len(keys) - len(places)
        self._count(keys=len(keys), resident=num_resident, new=num_new, fetched=len(fetched))
        return fetched

    def _move_shared(self, keys: Keys, placing: Placing, batch: int, exchange: RowExchange) -> None:
        """`_move` with several trainers, for the part of this one."""
        leaving = placing.leaving % self._num_trainers
        for trainer in np.unique(leaving).tolist():
            self._marks[trainer] += 1
        mine = np.flatnonzero(leaving == self._trainer)
        if len(mine):
            self._put(placing.leaving[mine] // self._num_trainers, placing.left.take(mine), even_if_none=True)
        self._rows.grow(self._residency.capacity)
        announced = self._residency.announced(batch)
        missing = placing.places[placing.came_from == 0]
        is_new = np.zeros(len(announced.entries), dtype=np.bool_)
        is_new[missing] = ~self._seen.contains(self._residency.keys_of(announced.entries[missing]))
        self._seen.add(placing.left)  # by all trainers
        exchange.set_new(batch, is_new)
        assert announced.rows is not None
        assert announced.came_from is not None
        places = announced.places[self._trainer]
        slots = announced.rows[places]
        is_arriving = np.zeros(len(announced.entries), dtype=np.bool_)
        is_arriving[placing.places] = True
        is_mine = slots % self._num_trainers == self._trainer
        is_mine_now = is_mine & is_arriving[places]
        self._rows.clear(slots[is_mine_now] // self._num_trainers)
        from_shard = is_mine_now & (announced.came_from[places] == 0)
        fetched = np.flatnonzero(from_shard & ~is_new[places])
        if len(fetched):
            states = self._remote.fetch(keys.take(fetched), after=self._fetch_after(), behind=self._returns.newest)
            self._arriving.append(_Arriving(batch, slots[fetched] // self._num_trainers, states))
        self._count(
            keys=len(keys),
            resident=int(np.count_nonzero(is_mine & ~is_mine_now)),
            new=int(np.count_nonzero(from_shard)) - len(fetched),
            fetched=len(fetched),
            handed_over=int(np.count_nonzero(is_mine_now & ~from_shard)),
            elsewhere=int(np.count_nonzero(~is_mine)),
        )

    def _fetch_after(self) -> list[int]:
        """The marks that a fetch waits for; nothing with one trainer, whose puts come before."""
        return [] if self._exchange is None else list(self._marks)

    def _receive(self, batch: int | None = None) -> None:
        """Wait for the rows on their way to a batch and those before it, or for all, and keep them."""
        self._receive_fetched(batch)
        if self._exchange is not None:
            self._exchange.receive(batch)

    def _receive_fetched(self, batch: int | None = None) -> None:
        """The same for the rows that come from the shards."""
        while self._arriving and (batch is None or self._arriving[0].batch <= batch):
            self._receive_one()

    def _receive_one(self) -> None:
        """Wait for the rows that were asked for first, and keep them."""
        arrived, start = self._arriving.popleft(), perf_counter()
        found = arrived.states.result()
        self.fetch_waited_s += perf_counter() - start
        for places, states in found:
            self._rows.set_states(arrived.rows[places], states)

    def _put(
        self,
        rows: Int64s,
        keys: Keys,
        *,
        step: int | None = None,
        even_if_none: bool = False,
        after: Future[None] | None = None,
    ) -> bool:
        """Put those of some rows back that were changed, see `Returns`; returns whether there are any."""
        progress = {
            "step": self.step if step is None else step,
            "version": self.version,
            "mark": self._marks[self._trainer],
        }
        returned = self._returns.put(rows, keys, **progress, even_if_none=even_if_none, after=after)
        if self._exchange is None:  # otherwise all add what leaves, so that all know the same keys
            self._seen.add(returned)
        self._count(returned=len(returned))
        return len(returned) > 0

    def _count(self, **more: int) -> None:
        was = self._counters
        added = {name: getattr(was, name) + number for name, number in more.items()}
        self._counters = replace(was, **added, peak_rows=max(was.peak_rows, self._residency.num_resident))
