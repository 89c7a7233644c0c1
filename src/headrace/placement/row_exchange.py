"""`RowExchange`: moves rows, values and gradients between trainers that keep rows, as the plan says.

For batch b, at a trainer::

    step b - 2                   step b - 1                        step b
    ──────────                   ──────────                        ──────
    its updates are done ──► early: states that move, and values   read: own rows, and values of the others
                                 of rows that step b - 1 does      compute
                                 not update; they travel while     gradients of others' rows go to their owners,
                                 it computes                       which merge them in trainer order, and update
                                 its updates are done ──► late: all others, while the dense part is updated
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field, fields

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.merging import PlacedUpdate, TrainerUpdate, merge_placed
from headrace.placement.key_rounds import JointBatch, KeyRounds
from headrace.placement.peers import Bytes, MessageKind, Peers, Receipt, tag_of
from headrace.placement.residency import AnnouncedBatch, Residency
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.transfers import HandOver, Values, gradients_to, hand_over, values_for

__all__ = ["ExchangedBytes", "MergedUpdate", "RowExchange"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

KINDS = {False: MessageKind.EARLY, True: MessageKind.LATE}
AGAIN = {False: MessageKind.EARLY_AGAIN, True: MessageKind.LATE_AGAIN}


@dataclass
class ExchangedBytes:
    """Bytes that a trainer has sent to others.

    Attributes:
        keys: Keys of announced batches.
        states: States of rows that were handed over.
        values: Values of rows that others read, but do not keep.
        gradients: Gradients of rows that others keep.
    """

    keys: int = 0
    states: int = 0
    values: int = 0
    gradients: int = 0

    @property
    def total(self) -> int:
        """Bytes of all kinds."""
        return sum(getattr(self, each.name) for each in fields(self))


@dataclass(frozen=True, eq=False)
class MergedUpdate:
    """The updates of all trainers of the rows that this one keeps.

    Attributes:
        rows: int64 [K].
        keys: Their keys, with the sum of counts.
        gradients: float32 [K, dim], merged.
        num_rows: Number of rows of all trainers' batches.
    """

    rows: Int64s
    keys: Keys
    gradients: Float32s
    num_rows: int


@dataclass(eq=False)
class _Batch:
    """A batch that is known to all, and not trained yet.

    Attributes:
        joint: Its keys.
        is_new: bool [U], whether each of the distinct keys was never trained on; None until it has its places.
        launched: Phases whose messages are on their way: False for the early one, True for the late one.
        values: Values from others, with their positions among this trainer's keys.
    """

    joint: JointBatch
    is_new: Bools | None = None
    launched: list[bool] = field(default_factory=list)
    values: dict[tuple[int, bool], tuple[Int64s, Float32s]] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Due:
    """A message on its way."""

    batch: int
    source: int
    late: bool
    states: HandOver | None
    values: Values
    receipt: Receipt


class RowExchange:
    """One trainer's part of the exchange of rows of a table group. Not thread-safe.

    Args:
        peers: The trainers.
        residency: Where rows are; the same at all trainers.
        rows: The rows of this trainer.
        embedding_dim: Numbers per row.
        num_tables: Number of tables.
        tells_keys: Whether trainers tell each other their keys here; otherwise someone else does, and calls `announce`.

    Attributes:
        sent: Bytes sent so far.
    """

    def __init__(
        self,
        peers: Peers,
        residency: Residency,
        rows: ResidentRows,
        *,
        embedding_dim: int,
        num_tables: int,
        tells_keys: bool = True,
    ) -> None:
        self.sent = ExchangedBytes()
        self._peers = peers
        self._residency = residency
        self._rows = rows
        self._dim = embedding_dim
        self._rounds = KeyRounds(peers, num_tables) if tells_keys else None
        self._batches: dict[int, _Batch] = {}
        self._due: deque[_Due] = deque()

    def add(self, keys: Keys, num_rows: int) -> None:
        """Tell the others the next batch of this trainer, from the next round on."""
        assert self._rounds is not None
        self._rounds.add(keys, num_rows)

    def learn(self) -> None:
        """Announce the batches that all trainers have told; waits until the next one to train is among them."""
        if self._rounds is None:
            return
        known = self._rounds.finish() if self._rounds.is_running else []
        while not known and self._residency.num_announced == self._residency.num_trained:
            self._rounds.start()
            known = self._rounds.finish()
        for joint in known:
            self.announce(joint)
        self._rounds.start()
        self.sent.keys = self._rounds.num_bytes

    def announce(self, joint: JointBatch) -> int:
        """Announce the next batch, whose keys all trainers know; returns its number."""
        batch = self._residency.announce(*joint.parts)
        self._batches[batch] = _Batch(joint)
        return batch

    def joint(self, batch: int) -> JointBatch:
        """The keys of an announced batch."""
        return self._batches[batch].joint

    def set_new(self, batch: int, is_new: Bools) -> None:
        """Record which keys bool [U] of a batch, which has its places now, were never trained on."""
        self._batches[batch].is_new = is_new

    def can_launch(self, batch: int, *, late: bool) -> bool:
        """Whether a batch has its places, and the messages of a phase are not sent yet."""
        known = self._batches.get(batch)
        return known is not None and known.is_new is not None and late not in known.launched

    def leaving(self, batch: int, *, late: bool) -> Int64s:
        """Rows int64 [n] of this trainer that it hands over in a phase of a batch."""
        found = [
            hand_over(*self._between(batch, self._peers.rank, other), late=late).before for other in self._others()
        ]
        return np.concatenate([np.empty(0, dtype=np.int64), *found])

    def pending(self) -> tuple[Int64s, Keys]:
        """Rows that are still here, but already have places elsewhere, and their keys, in any order."""
        rows, entries = [np.empty(0, dtype=np.int64)], [np.empty(0, dtype=np.int32)]
        for batch, known in self._batches.items():
            for late in (False, True):
                if known.is_new is None or late in known.launched:
                    continue
                for other in self._others():
                    moves = hand_over(*self._between(batch, self._peers.rank, other), late=late)
                    rows.append(moves.before)
                    entries.append(self._residency.announced(batch).entries[moves.places])
        return np.concatenate(rows), self._residency.keys_of(np.concatenate(entries))

    def launch(self, batch: int, *, late: bool) -> None:
        """Send the others the rows of a phase of a batch, and expect theirs."""
        self._batches[batch].launched.append(late)
        for other in self._others():
            states = hand_over(*self._between(batch, other, self._peers.rank), late=late)
            self._expect(batch, other, states, late, KINDS[late])
        for other in self._others():
            states = hand_over(*self._between(batch, self._peers.rank, other), late=late)
            packed = self._rows.packed(states.before) if len(states.before) else np.empty(0, dtype=np.uint8)
            values = self._values_of(batch, other, late)
            self.sent.states += len(packed)
            self._send(batch, other, KINDS[late], np.concatenate([packed, values]))

    def send_values_again(self) -> None:
        """Repeat the values that are already sent, because the end of a window has evicted some of the rows.

        The rows that have moved for these batches have arrived before, so their next owners send the values.
        """
        for batch, known in self._batches.items():
            for late in known.launched:
                for other in self._others():
                    self._expect(batch, other, None, late, AGAIN[late])
                for other in self._others():
                    values = self._values_of(batch, other, late, has_moved=True)
                    self._send(batch, other, AGAIN[late], values)

    def receive(self, batch: int | None = None) -> None:
        """Wait for what is on its way for a batch and those before it, or for all, and keep it."""
        while self._due and (batch is None or self._due[0].batch <= batch):
            due = self._due.popleft()
            data, num_state_bytes = due.receipt.result(), 0
            if due.states is not None and len(due.states.after):
                num_state_bytes = len(due.states.after) * self._rows.packed_bytes
                self._rows.set_packed(due.states.after, data[:num_state_bytes])
            values = data[num_state_bytes:].copy().view(np.float32).reshape(-1, self._dim)
            self._batches[due.batch].values[due.source, due.late] = due.values.places, values

    def read(self, batch: int) -> Float32s:
        """Rows float32 [U, dim] of this trainer's keys of a batch whose rows have arrived, wherever they are kept."""
        me, known, announced = self._peers.rank, self._batches[batch], self._residency.announced(batch)
        keys, num_trainers = known.joint.parts[me], self._peers.size
        assert announced.rows is not None
        slots = announced.rows[announced.places[me]]
        here = slots % num_trainers == me
        out = self._rows.read(np.where(here, slots // num_trainers, 0), keys)  # row 0 reads first values
        for places, values in known.values.values():
            out[places] = values
        return out

    def merge(self, batch: int, gradients: Float32s) -> MergedUpdate:
        """Send the gradients of a batch to the owners of its rows, and merge those of rows kept here, as a shard does.

        Args:
            batch: The next batch.
            gradients: float32 [U, dim], of this trainer's keys.
        """
        me, announced = self._peers.rank, self._residency.announced(batch)
        joint, tag = self._batches[batch].joint, tag_of(batch, MessageKind.GRADIENTS)
        assert announced.rows is not None
        places = {other: gradients_to(announced, me, other, self._peers.size) for other in self._all()}
        due = {
            other: self._peers.receive(other, 4 * self._dim * len(places[other]), tag=tag)
            for other in self._others()
            if len(places[other])
        }
        for other in self._others():
            sent = gradients[gradients_to(announced, other, me, self._peers.size)]
            if len(sent):
                self.sent.gradients += sent.nbytes
                self._peers.send(other, sent.reshape(-1).view(np.uint8), tag=tag)
        mine = np.flatnonzero(announced.rows % self._peers.size == me)
        numbers = np.empty(len(announced.rows), dtype=np.int64)
        numbers[mine] = np.arange(len(mine))
        updates = []
        for trainer in self._all():
            where, part = places[trainer], joint.parts[trainer]
            if trainer == me:
                found = gradients[where]
            elif trainer in due:
                found = due[trainer].result().view(np.float32).reshape(-1, self._dim)
            else:
                found = np.empty((0, self._dim), dtype=np.float32)
            at = numbers[announced.places[trainer][where]]
            updates.append(PlacedUpdate(at, part.counts[where], found, joint.num_rows[trainer]))
        counts, merged = merge_placed(updates, len(mine))
        keys = self._residency.keys_of(announced.entries[mine])
        rows = announced.rows[mine] // self._peers.size
        return MergedUpdate(rows, Keys(keys.tables, keys.ids, counts), merged, sum(joint.num_rows))

    def gather(self, batch: int, gradients: Float32s) -> list[TrainerUpdate]:
        """The updates of all trainers in a batch, for verification."""
        me, joint, tag = self._peers.rank, self._batches[batch].joint, tag_of(batch, MessageKind.VERIFICATION)
        sizes = [4 * self._dim * len(keys) for keys in joint.parts]
        due = {other: self._peers.receive(other, sizes[other], tag=tag) for other in self._others() if sizes[other]}
        for other in self._others():
            if sizes[me]:
                self._peers.send(other, np.ascontiguousarray(gradients).reshape(-1).view(np.uint8), tag=tag)
        updates = []
        for trainer, (keys, num_rows) in enumerate(zip(joint.parts, joint.num_rows, strict=True)):
            data = due[trainer].result() if trainer in due else np.empty(0, dtype=np.uint8)
            found = gradients if trainer == me else data.view(np.float32).reshape(-1, self._dim)
            updates.append(TrainerUpdate(keys, found, num_rows))
        return updates

    def finish(self, batch: int) -> None:
        """Forget a batch that is trained."""
        del self._batches[batch]

    def _between(self, batch: int, source: int, target: int) -> tuple[AnnouncedBatch, int, int, int]:
        return self._residency.announced(batch), source, target, self._peers.size

    def _values_between(self, batch: int, source: int, target: int, late: bool, has_moved: bool) -> Values:
        is_new, announced = self._batches[batch].is_new, self._residency.announced(batch)
        assert is_new is not None
        return values_for(announced, is_new, source, target, self._peers.size, late=late, has_moved=has_moved)

    def _values_of(self, batch: int, reader: int, late: bool, *, has_moved: bool = False) -> Bytes:
        """Values of rows that are here, as a reader's update finds them."""
        values = self._values_between(batch, self._peers.rank, reader, late, has_moved)
        if not len(values.rows):
            return np.empty(0, dtype=np.uint8)
        found = self._rows.read(values.rows, self._batches[batch].joint.parts[reader].take(values.places))
        self.sent.values += found.nbytes
        return found.reshape(-1).view(np.uint8)

    def _expect(self, batch: int, source: int, states: HandOver | None, late: bool, kind: MessageKind) -> None:
        values = self._values_between(batch, source, self._peers.rank, late, states is None)
        num_bytes = 4 * self._dim * len(values.places)
        num_bytes += 0 if states is None else self._rows.packed_bytes * len(states.after)
        if num_bytes:
            receipt = self._peers.receive(source, num_bytes, tag=tag_of(batch, kind))
            self._due.append(_Due(batch, source, late, states, values, receipt))

    def _send(self, batch: int, target: int, kind: MessageKind, data: Bytes) -> None:
        if len(data):
            self._peers.send(target, data, tag=tag_of(batch, kind))

    def _all(self) -> Iterator[int]:
        return iter(range(self._peers.size))

    def _others(self) -> list[int]:
        return [trainer for trainer in self._all() if trainer != self._peers.rank]
