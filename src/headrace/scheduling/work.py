"""`TrainingWork`: what the operators of a training step do, with real plans, embeddings and a model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, Protocol

import pyarrow as pa
from torch import nn

from headrace.embeddings import Keys, LocalStore, embedding_bags, key_layouts
from headrace.pipeline import BatchIterator, RowStats
from headrace.scheduling.feature_groups import FeatureGroups
from headrace.scheduling.graph import JOINT
from headrace.scheduling.runtime import Done
from headrace.scheduling.store import Part, StepStore, Ticket
from headrace.tensors import Batch

__all__ = ["Phases", "Trained", "TrainingWork"]

BYTES_PER_KEY = 16
"""Of space, id and count, beside the row."""


class Phases(Protocol):
    """A training step in three calls, made one after the other by one thread."""

    def forward_backward(self, batch: Batch) -> Any:
        """Predict, and find all gradients."""

    def push(self) -> None:
        """Hand the gradients of rows to their stores."""

    def update(self) -> None:
        """Step the dense optimizer."""


@dataclass(frozen=True)
class Trained:
    """A batch after its step.

    Attributes:
        batch: The batch.
        result: What `Phases.forward_backward` returned.
        row_stats: What became of the rows it took.
        position: Where in the pipeline the batch after it begins.
        computed_s: When its last features were there, on the clock of `time.perf_counter`.
        dense_s: When its dense work began.
    """

    batch: Batch
    result: Any
    row_stats: RowStats
    position: dict[str, Any]
    computed_s: float
    dense_s: float


@dataclass
class _Live:
    """One batch between reading and training."""

    rows: pa.RecordBatch | None
    row_stats: RowStats
    position: dict[str, Any]
    parts: dict[int, Batch] = field(default_factory=dict)
    tickets: dict[int, list[Ticket]] = field(default_factory=dict)
    batch: Batch | None = None
    result: Any = None
    computed_s: float = 0.0
    dense_s: float = 0.0


class TrainingWork:
    """Carries out operators for `StepRuntime`; a context manager that stands between embeddings and their stores.

    Attributes:
        rest: What became of rows behind the last batch, once the pipeline has ended.
        held_ratio: Share of the newest early pull that had to wait for the push before it.
    """

    def __init__(
        self,
        batches: BatchIterator,
        groups: FeatureGroups,
        model: nn.Module,
        phases: Phases,
        *,
        verify: bool = False,
    ) -> None:
        """Prepare.

        Args:
            batches: Of rows: a pipeline without `transform`.
            groups: Features, see `group_features`.
            model: Holds the `EmbeddingBags`.
            phases: Its training step.
            verify: Pull every row once more right before it is used, and fail if it differs: twice the traffic, and
                proof that no pull ran ahead of a push.
        """
        self.rest: tuple[RowStats, dict[str, Any]] | None = None
        self.held_ratio = 0.0
        self._batches = batches
        self._groups = groups
        self._bags = list(embedding_bags(model).values())
        self._phases = phases
        self._verify = verify
        self._live: dict[int, _Live] = {}
        self._stores: list[StepStore] = []
        self._stack = ExitStack()
        self._layouts = key_layouts(model)

    def __enter__(self) -> TrainingWork:
        for bags in self._bags:
            before = bags.store
            store = StepStore(before, bags.embedding_dim)
            bags.store = store
            self._stores.append(store)
            self._stack.callback(setattr, bags, "store", before)
        return self

    def __exit__(self, *error: object) -> None:
        for bags in self._bags:
            bags.drop_gradients()
        self._stack.close()

    def read(self, batch: int) -> int | None:
        """See `Work`."""
        rows = next(self._batches, None)
        row_stats, position = self._batches.take_row_stats(), self._batches.state_dict()
        if rows is None:
            self.rest = row_stats, position
            return None
        self._live[batch] = _Live(rows, row_stats, position)
        return int(rows.nbytes)

    def features(self, batch: int, group: int) -> int:
        """See `Work`: the plan of the group, and its unique keys."""
        live = self._live[batch]
        assert live.rows is not None
        part = self._groups.of(group).plan.apply(live.rows).with_keys(self._layouts)
        live.parts[group] = part
        live.tickets[group] = [
            store.prepare(found.keys)
            for bags, store in zip(self._bags, self._stores, strict=True)
            for found in part.unique_keys.get(bags.key_layout, ())
        ]
        if len(live.parts) == (1 if group == JOINT else len(self._groups)):
            live.rows, live.computed_s = None, perf_counter()
        return part.num_bytes

    def pull(self, batch: int, groups: Sequence[int], after: int, early: bool, done: Done) -> Sequence[int]:
        """See `Work`."""
        live = self._live[batch]
        parts: list[Part] = []
        for ticket in (ticket for group in groups for ticket in live.tickets[group]):
            left = ticket.leave_out(self._touched(batch - 1, ticket)) if early else None
            parts.append((ticket, left))
        self._send(parts, after, done)
        if early:
            held = sum(len(ticket.held) for ticket, _ in parts if ticket.held is not None)
            self.held_ratio = held / max(sum(len(ticket.keys) for ticket, _ in parts), 1)
        return [_num_bytes(live.tickets[group]) for group in groups]

    def _touched(self, batch: int, ticket: Ticket) -> list[Keys]:
        """What a batch's push updates in a ticket's store; that batch may be grouped in another way."""
        all_tickets = (other for tickets in self._live[batch].tickets.values() for other in tickets)
        return [other.keys for other in all_tickets if other.store is ticket.store]

    def held(self, batch: int, groups: Sequence[int], after: int, done: Done) -> Sequence[int]:
        """See `Work`."""
        tickets = [self._live[batch].tickets[group] for group in groups]
        self._send([(ticket, ticket.held) for of_group in tickets for ticket in of_group], after, done)
        return [0 for _ in groups]  # counted with the early pull

    def dense(self, batch: int) -> int:
        """See `Work`."""
        live = self._live[batch]
        live.dense_s = perf_counter()
        for ticket in (ticket for tickets in live.tickets.values() for ticket in tickets):
            ticket.finish()
            if self._verify:
                ticket.verify()
        live.batch = Batch.join([live.parts[group] for group in sorted(live.parts)])
        live.result = self._phases.forward_backward(live.batch)
        return 0

    def push(self, batch: int, done: Done) -> int:
        """See `Work`."""
        sent = [store.num_pushed for store in self._stores]
        self._phases.push()
        pushes = [
            store.pushing
            for store, before in zip(self._stores, sent, strict=True)
            if store.num_pushed > before and store.pushing is not None
        ]
        finish = _Countdown(len(pushes), done)
        for push in pushes:
            push.add_done_callback(lambda pushed: finish.one(pushed.exception()))
        return sum(_num_bytes(tickets) for tickets in self._live[batch].tickets.values())

    def update(self, batch: int) -> Trained:
        """See `Work`."""
        self._phases.update()
        live = self._live[batch]
        self._live.pop(batch - 1, None)  # the keys of this one are still compared with those of the next
        assert live.batch is not None
        trained = Trained(live.batch, live.result, live.row_stats, live.position, live.computed_s, live.dense_s)
        for ticket in (ticket for tickets in live.tickets.values() for ticket in tickets):
            ticket.store.forget(ticket)
        live.batch, live.parts, live.result = None, {}, None
        return trained

    def _send(self, parts: Sequence[Part], after: int, done: Done) -> None:
        """One request to each store; a table in this process is asked ticket by ticket, which costs no joining."""
        requests = [
            request
            for store in self._stores
            if (of_store := [part for part in parts if part[0].store is store and (part[1] is None or len(part[1]))])
            for request in ([[part] for part in of_store] if isinstance(store.store, LocalStore) else [of_store])
        ]
        finish = _Countdown(len(requests), done)
        for request in requests:
            request[0][0].store.send(request, after + 1, finish.one)


class _Countdown:
    """Calls `done` when all of several transfers are over, at once if there are none."""

    def __init__(self, count: int, done: Done) -> None:
        self._left = count
        self._done = done
        self._error: BaseException | None = None
        self._lock = threading.Lock()
        if count == 0:
            done(None)

    def one(self, error: BaseException | None) -> None:
        with self._lock:
            self._left -= 1
            self._error = self._error or error
            last = self._left == 0
        if last:
            self._done(self._error)


def _num_bytes(tickets: Sequence[Ticket]) -> int:
    """Bytes of keys and rows, one way."""
    return sum(len(ticket.keys) * (BYTES_PER_KEY + 4 * ticket.store.embedding_dim) for ticket in tickets)
