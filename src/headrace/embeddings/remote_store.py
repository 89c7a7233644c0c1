"""`RemoteStore`: an `EmbeddingStore` whose rows live in shards, all of them asked at once, on other threads."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Generic, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.embeddings.keys import Keys
from headrace.embeddings.precision import Precision, decode, encode
from headrace.embeddings.shard_client import ShardClient
from headrace.embeddings.sharding import Routes, ShardingPlan
from headrace.embeddings.wire import (
    PROTOCOL,
    PullHeader,
    PushHeader,
    ReplyHeader,
    StreamHeader,
    pack_ids,
    pack_rows,
    pull_schema,
    push_schema,
    read_rows,
)

__all__ = ["RemoteStore", "StoreCounters", "StoreOptions"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoreOptions:
    """How rows travel, and how old they may be.

    Attributes:
        rows: Precision of pulled rows.
        gradients: Precision of pushed gradients.
        staleness: A pull sees all steps but the last `staleness`; 0 is synchronous, None never waits.
        connections: Pulls of one table on their way to one shard at once; more wait here, in order.
    """

    rows: Precision = "fp32"
    gradients: Precision = "fp32"
    staleness: int | None = 0
    connections: int = 4


@dataclass(frozen=True)
class StoreCounters:
    """What a store has done; times are sums, of calls that may have run side by side.

    Attributes:
        pulls: Calls of `pull`.
        pushes: Calls of `push`.
        keys: Keys pulled.
        bytes_sent: Arrays sent: ids and counts, gradients.
        bytes_received: Rows received.
        pull_s: From a call of `pull` until its rows were there.
        push_s: From a call of `push` until all shards had it.
        held_s: Of those, how long the last shard held requests back for other trainers' steps.
        retries: Requests sent again.
    """

    pulls: int = 0
    pushes: int = 0
    keys: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    pull_s: float = 0.0
    push_s: float = 0.0
    held_s: float = 0.0
    retries: int = 0


class RemoteStore:
    """See `EmbeddingStore`; made by `ShardGroup.store`. Thread-safe, but pushes count as steps in the order of calls.

    Args:
        table: Its name.
        clients: All shards.
        plan: Who owns what.
        embedding_dim: Numbers per row.
        session: From `ShardGroup`.
        trainer: Number of this trainer.
        client: A random name of this process, as in `open`.
        step: The last step that is made.
        options: Precision, staleness, connections.

    Attributes:
        step: The last step that was pushed.
        num_rows: Rows of this trainer's batch, set before `push` where trainers' batches differ in size: gradients of a
            step are averaged over the rows of all trainers.
    """

    def __init__(
        self,
        table: str,
        clients: list[ShardClient],
        plan: ShardingPlan,
        embedding_dim: int,
        *,
        session: str,
        trainer: int,
        client: str,
        step: int,
        options: StoreOptions,
    ) -> None:
        self.step = step
        self.num_rows = 1
        self._clients = clients
        self._plan = plan
        self._dim = embedding_dim
        self._options = options
        header = StreamHeader(PROTOCOL, "pull", session, table, trainer, options.rows, client)
        self._pull_header = header
        self._push_header = replace(header, call="push", precision=options.gradients)
        self._pull_schema = pull_schema()
        self._push_schema = push_schema(options.gradients, embedding_dim)
        self._pull_numbers = itertools.count()
        self._lock = threading.Lock()
        self._counters = StoreCounters()
        self._keys_by_space = np.zeros(len(plan.owners), dtype=np.int64)
        self._pullers = [ThreadPoolExecutor(options.connections, f"pull-{s}") for s in range(plan.num_shards)]
        self._pushers = [ThreadPoolExecutor(1, f"push-{s}") for s in range(plan.num_shards)]  # one: steps stay in order

    def pull(self, keys: Keys, *, admit: bool = False, after_step: int | None = None) -> Future[Float32s]:
        """Rows float32 [U, dim] of unique keys.

        Args:
            keys: Unique within the call, spaces ascending.
            admit: Whether this is training: ids are counted and may get rows.
            after_step: The step whose updates the rows must have; None for the last pushed one, less the staleness.
                A caller that knows that later steps do not touch these keys may ask for less, and wait less.

        The future fails with `ShardLost` if a shard is gone, and with `ShardError` if it refuses.
        """
        start = perf_counter()
        if after_step is None:
            after_step = 0 if self._options.staleness is None else self.step - self._options.staleness
        number = next(self._pull_numbers)
        out = np.empty((len(keys), self._dim), dtype=np.float32)
        routes = self._route(keys)

        def pull_part(shard: int) -> tuple[ReplyHeader, int, int]:
            places = None if routes is None else routes.of(shard)
            part = keys if places is None else _take(keys, places)
            header = PullHeader(number, after_step, admit, self._space_sizes(part))
            request = pack_ids(part)
            rows, reply = self._clients[shard].ask(self._pull_header, self._pull_schema, request, header.to_json())
            assert rows is not None
            decode(*read_rows(rows), places, self._options.rows, out)
            return reply, request.nbytes, rows.nbytes

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> Float32s:
            self._count(parts, perf_counter() - start, pulled=keys)
            return out

        # A shard without any of the keys has nothing to say, and is not asked.
        shards = [s for s in range(self._plan.num_shards) if routes is None or routes.starts[s] < routes.starts[s + 1]]
        return _gather(self._pullers, shards if len(keys) else [], pull_part, finish)

    def push(self, keys: Keys, gradients: Float32s) -> Future[None]:
        """Make the next step with gradients float32 [U, dim], summed per key; done when all shards have it.

        Changes rows that were pulled with `admit` before. A later pull sees it, whether or not this future was waited
        for. All shards are told of every step, also those that own none of the keys.
        """
        start = perf_counter()
        with self._lock:
            self.step += 1
            step = self.step
        num_rows = self.num_rows
        routes = self._route(keys)

        def push_part(shard: int) -> tuple[ReplyHeader, int, int]:
            places = None if routes is None else routes.of(shard)
            part = keys if places is None else _take(keys, places)
            header = PushHeader(step, num_rows, self._space_sizes(part))
            data, scales = encode(gradients, places, self._options.gradients)
            request = pack_rows(part.ids, data, scales, self._push_schema)
            _, reply = self._clients[shard].ask(self._push_header, self._push_schema, request, header.to_json())
            return reply, request.nbytes, 0

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> None:
            self._count(parts, perf_counter() - start, pulled=None)

        gradients = np.ascontiguousarray(gradients, dtype=np.float32)
        return _gather(self._pushers, list(range(self._plan.num_shards)), push_part, finish)

    def counters(self) -> StoreCounters:
        """What it has done so far."""
        with self._lock:
            return replace(self._counters, retries=sum(client.retries for client in self._clients))

    def keys_by_space(self) -> Int64s:
        """Keys pulled so far in each space, int64 [S]: the traffic that `make_plan` asks for."""
        with self._lock:
            return self._keys_by_space.copy()

    def close(self) -> None:
        """End its threads, once what was asked for is done."""
        for pool in (*self._pullers, *self._pushers):
            pool.shutdown()

    def _route(self, keys: Keys) -> Routes | None:
        """Which keys go where; None if there is one shard."""
        return None if self._plan.num_shards == 1 else self._plan.route(keys)

    def _space_sizes(self, keys: Keys) -> list[int]:
        sizes: list[int] = np.bincount(keys.spaces, minlength=len(self._plan.owners)).tolist()
        return sizes

    def _count(self, parts: list[tuple[ReplyHeader, int, int]], seconds: float, *, pulled: Keys | None) -> None:
        sent, received = sum(part[1] for part in parts), sum(part[2] for part in parts)
        held_s = max((part[0].held_us for part in parts), default=0) / 1e6
        with self._lock:
            was = self._counters
            common = replace(
                was,
                bytes_sent=was.bytes_sent + sent,
                bytes_received=was.bytes_received + received,
                held_s=was.held_s + held_s,
            )
            if pulled is None:
                self._counters = replace(common, pushes=was.pushes + 1, push_s=was.push_s + seconds)
            else:
                self._counters = replace(
                    common, pulls=was.pulls + 1, keys=was.keys + len(pulled), pull_s=was.pull_s + seconds
                )
                self._keys_by_space += self._space_sizes(pulled)


class _Gathered(Generic[Result]):
    """A future that is done when its parts are, or when one has failed; others then write into what nobody reads."""

    def __init__(self, num_parts: int, finish: Callable[[list[tuple[ReplyHeader, int, int]]], Result]) -> None:
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()
        self._finish = finish
        self._lock = threading.Lock()
        self._parts: list[tuple[ReplyHeader, int, int]] = []
        self._left = num_parts

    def run(self, part: Callable[[int], tuple[ReplyHeader, int, int]], shard: int) -> None:
        """Do a part; whoever is last finishes."""
        try:
            done = part(shard)
        except BaseException as error:
            with self._lock:
                has_failed, self._left = self._left < 0, -1
            if not has_failed:
                self.future.set_exception(error)
            return
        with self._lock:
            self._parts.append(done)
            self._left -= 1
            is_last = self._left == 0
        if is_last:
            self.future.set_result(self._finish(self._parts))


def _gather(
    pools: list[ThreadPoolExecutor],
    shards: list[int],
    part: Callable[[int], tuple[ReplyHeader, int, int]],
    finish: Callable[[list[tuple[ReplyHeader, int, int]]], Result],
) -> Future[Result]:
    gathered = _Gathered(len(shards), finish)
    for shard in shards:
        pools[shard].submit(gathered.run, part, shard)
    if not shards:
        gathered.future.set_result(finish([]))
    return gathered.future


def _take(keys: Keys, places: Int64s) -> Keys:
    return Keys(keys.spaces[places], keys.ids[places], keys.counts[places])
