"""`RemoteStore`: an `EmbeddingStore` with rows in shards, which are called in parallel on background threads."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt

from headrace.embeddings.changes.log import RowBlock
from headrace.embeddings.changes.row_blocks import unpack_block
from headrace.embeddings.keys import Keys
from headrace.embeddings.shards.client import ShardClient
from headrace.embeddings.shards.plan import Routes, ShardingPlan
from headrace.embeddings.shards.precision import Precision, decode, encode
from headrace.embeddings.shards.state_wire import StateWire, pack_ids_only
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.shards.wire import (
    PROTOCOL,
    EvictHeader,
    FetchHeader,
    PutHeader,
    ReadHeader,
    ReplyHeader,
    StreamHeader,
    UpdateHeader,
    pack_ids,
    pack_rows,
    read_rows,
    read_schema,
    update_schema,
)
from headrace.embeddings.tables.key_states import KeyStates
from headrace.embeddings.tables.seen_keys import SeenKeys
from headrace.errors import ShardError

__all__ = ["RemoteStore", "StoreCounters", "StoreOptions"]

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
Result = TypeVar("Result")


@dataclass(frozen=True)
class StoreOptions:
    """Precision and staleness of a remote store.

    Attributes:
        rows: Precision of read rows.
        gradients: Precision of updated gradients.
        staleness: Number of recent steps that a read may miss; 0 is synchronous, None never waits.
        connections: Maximum number of parallel reads of one table group from one shard; more are queued in order.
    """

    rows: Precision = "fp32"
    gradients: Precision = "fp32"
    staleness: int | None = 0
    connections: int = 4


@dataclass(frozen=True)
class StoreCounters:
    """Counters of a store; times are sums over calls, which may have run in parallel.

    Attributes:
        reads: Number of `read` calls.
        updates: Number of `update` calls.
        keys: Number of keys read.
        bytes_sent: Bytes of arrays sent: ids, counts and gradients.
        bytes_received: Bytes of rows received.
        bytes_fetched: Bytes of ids sent and states received by `fetch`.
        bytes_put: Bytes of ids and states sent by `put`.
        read_s: Time from a call of `read` until its rows arrived.
        update_s: Time from a call of `update` until all shards confirmed it.
        held_s: Part of these times during which the last shard held requests back for other trainers' steps.
        retries: Number of requests sent again.
    """

    reads: int = 0
    updates: int = 0
    keys: int = 0
    bytes_sent: int = 0
    bytes_received: int = 0
    bytes_fetched: int = 0
    bytes_put: int = 0
    read_s: float = 0.0
    update_s: float = 0.0
    held_s: float = 0.0
    retries: int = 0


class RemoteStore:
    """An `EmbeddingStore` in shards, created by `ShardGroup.store`. Thread-safe; updates become steps in call order.

    Args:
        table_group: Name of the table group.
        clients: Clients of all shards.
        plan: Assignment of ids to shards.
        spec: Specification of the table group.
        session: Session of the `ShardGroup`.
        trainer: Number of this trainer.
        client: Random name of this process, as in `open`.
        step: Number of the last applied step.
        options: Precision, staleness, connections.

    Attributes:
        spec: As given.
        step: Number of the last requested step.
    """

    def __init__(
        self,
        table_group: str,
        clients: list[ShardClient],
        plan: ShardingPlan,
        spec: TableGroupSpec,
        *,
        session: str,
        trainer: int,
        client: str,
        step: int,
        options: StoreOptions,
    ) -> None:
        self.spec = spec
        self.step = step
        self._clients = clients
        self._plan = plan
        self._table_group = table_group
        self._dim = spec.embedding_dim
        self._options = options
        self._reads_have_counts = spec.reads_have_counts
        header = StreamHeader(PROTOCOL, "read", session, table_group, trainer, options.rows, client)
        self._read_header = header
        self._update_header = replace(header, call="update", precision=options.gradients)
        self._evict_header = replace(header, call="evict")
        self._fetch_header = replace(header, call="fetch")
        self._put_header = replace(header, call="put")
        self._read_schema = read_schema(with_counts=spec.reads_have_counts)
        self._update_schema = update_schema(options.gradients, spec.embedding_dim)
        self._lock = threading.Lock()
        self._counters = StoreCounters()
        self._num_evictions = self._num_puts = 0
        self._evicting: Future[int] | None = None  # the newest
        self._wire = StateWire(spec)
        self._keys_by_table = np.zeros(len(plan.owners), dtype=np.int64)
        self._readers = [ThreadPoolExecutor(options.connections, f"read-{s}") for s in range(plan.num_shards)]
        self._updaters = [
            ThreadPoolExecutor(1, f"update-{s}") for s in range(plan.num_shards)
        ]  # one: steps stay in order

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """Read the rows of unique keys, float32 [U, dim], see `EmbeddingStore.read`.

        Args:
            keys: Keys, unique within the call, with tables ascending and the counts of the update that follows, or
                zeros.
            after: The rows must include the updates up to this step; None for the last requested step minus the
                staleness.

        The future fails with `ShardLost` if a shard is gone, and with `ShardError` if a shard refuses the request.
        """
        start = perf_counter()
        if after is None:
            after = 0 if self._options.staleness is None else self.step - self._options.staleness
        seen = bool(keys.counts.any())
        out = np.empty((len(keys), self._dim), dtype=np.float32)
        routes, evicting = self._route(keys), self._evicting

        def read_part(shard: int) -> tuple[ReplyHeader, int, int]:
            if evicting is not None:
                evicting.result()
            places, part = _part_of(keys, routes, shard)
            header = ReadHeader(after, seen, self._keys_per_table(part))
            request = pack_ids(part, with_counts=self._reads_have_counts)
            rows, reply = self._clients[shard].ask(self._read_header, self._read_schema, request, header.to_json())
            assert rows is not None
            decode(*read_rows(rows), places, self._options.rows, out)
            return reply, request.nbytes, rows.nbytes

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> Float32s:
            self._count(parts, perf_counter() - start, read=keys)
            return out

        return _gather(self._readers, self._shards_of(keys, routes), read_part, finish)

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """Apply the next step, see `EmbeddingStore.update`; the future is done when all shards confirmed it.

        Later reads see the step even without waiting for the future. Every step goes to all shards, including those
        that own none of the keys.
        """
        start = perf_counter()
        with self._lock:
            self.step += 1
            step = self.step
        routes = self._route(keys)

        def update_part(shard: int) -> tuple[ReplyHeader, int, int]:
            places, part = _part_of(keys, routes, shard)
            header = UpdateHeader(step, num_rows, self._keys_per_table(part), lr_factor)
            data, scales = encode(gradients, places, self._options.gradients)
            request = pack_rows(part, data, scales, self._update_schema)
            _, reply = self._clients[shard].ask(self._update_header, self._update_schema, request, header.to_json())
            return reply, request.nbytes, 0

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> None:
            self._count(parts, perf_counter() - start, read=None)

        gradients = np.ascontiguousarray(gradients, dtype=np.float32)
        return _gather(self._updaters, list(range(self._plan.num_shards)), update_part, finish)

    def evict(self, keys: Keys) -> Future[int]:
        """Evict some ids between two steps, see `EmbeddingStore.evict`; the future is done when all shards confirmed
        it.

        The call goes to all shards, including those that own none of the keys, so that all keep the same version.
        """
        with self._lock:
            self._num_evictions += 1
            number, step = self._num_evictions, self.step
        routes = self._route(keys)

        def evict_part(shard: int) -> tuple[ReplyHeader, int, int]:
            _, part = _part_of(keys, routes, shard)
            header = EvictHeader(step, number, self._keys_per_table(part))
            request = pack_ids(part, with_counts=False)
            _, reply = self._clients[shard].ask(self._evict_header, request.schema, request, header.to_json())
            return reply, request.nbytes, 0

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> int:
            return sum(reply.freed for reply, _, _ in parts)

        # Runs in the threads of updates, so that it reaches each shard between two updates.
        self._evicting = _gather(self._updaters, list(range(self._plan.num_shards)), evict_part, finish)
        return self._evicting

    def fetch(
        self, keys: Keys, *, after: Sequence[int] = (), behind: Future[None] | None = None
    ) -> Future[list[tuple[Int64s, KeyStates]]]:
        """Fetch the states of keys that this trainer is going to train on itself.

        They include all states that it put up to `behind`, and all evictions.

        Args:
            keys: Keys, unique within the call, with tables ascending; `keys.counts` are ignored.
            after: For each trainer, the mark that its puts must have reached.
            behind: The last put of any of these keys, which is waited for before they are asked for; None for none.

        Returns:
            For each shard, the positions in `keys` that it owns, and their states.
        """
        start = perf_counter()
        routes, before = self._route(keys), (behind, self._evicting)
        found: list[tuple[Int64s, KeyStates]] = []
        marks = list(after)

        def fetch_part(shard: int) -> tuple[ReplyHeader, int, int]:
            for call in before:
                if call is not None:
                    call.result()
            places, part = _part_of(keys, routes, shard)
            header = FetchHeader(self._keys_per_table(part), marks)
            request = pack_ids_only(part.ids)
            answer, reply = self._clients[shard].ask(self._fetch_header, request.schema, request, header.to_json())
            assert answer is not None
            _, states = self._wire.unpack(answer, len(part))
            found.append((np.arange(len(keys)) if places is None else places, states))
            return reply, request.nbytes, answer.nbytes

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> list[tuple[Int64s, KeyStates]]:
            self._count(parts, perf_counter() - start, read=keys, kind="bytes_fetched")
            return found

        return _gather(self._readers, self._shards_of(keys, routes), fetch_part, finish)

    def put(self, keys: Keys, states: KeyStates, *, step: int, version: int, mark: int = 0) -> Future[None]:
        """Return the states of keys to their shards, after this trainer made all steps up to one.

        The call goes to all shards, including those that own none of the keys, so that all are at the same version.
        A later fetch includes it only if it is told so, see there.

        Args:
            keys: Keys, unique within the call, with tables ascending; `keys.counts` are ignored.
            states: Their states.
            step: Number of the last step.
            version: Version of the table group after it.
            mark: What fetches of other trainers name in `after`; it never decreases.
        """
        start = perf_counter()
        with self._lock:
            self.step = step
            self._num_puts += 1
            number = self._num_puts
        routes = self._route(keys)

        def put_part(shard: int) -> tuple[ReplyHeader, int, int]:
            places, part = _part_of(keys, routes, shard)
            mine = states if places is None else states.take(places, len(keys))
            header = PutHeader(step, version, number, mark, self._keys_per_table(part))
            request = self._wire.pack(mine, len(part), part.ids)
            _, reply = self._clients[shard].ask(self._put_header, request.schema, request, header.to_json())
            return reply, request.nbytes, 0

        def finish(parts: list[tuple[ReplyHeader, int, int]]) -> None:
            self._count(parts, perf_counter() - start, read=None, kind="bytes_put")

        # Runs in the threads of updates, so that it reaches each shard in order.
        return _gather(self._updaters, list(range(self._plan.num_shards)), put_part, finish)

    def finish_evicting(self) -> None:
        """Wait until all requested evictions are done, by all trainers and in all shards."""
        if self._evicting is not None:
            self._evicting.result()

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        """See `EmbeddingStore.changes`: the blocks of all shards after the last step.

        Raises:
            ShardError: Other trainers applied steps meanwhile, or the changes since that version are no longer
                recorded.
        """
        self.finish_evicting()
        stream = self._read_header
        asked: dict[str, Any] = {"what": "changes", "session": stream.session, "table_group": self._table_group}
        asked |= {"since": since, "step": self.step}
        versions = set()
        for client in self._clients:
            for batch, metadata in client.get({**asked, "client": stream.client}):
                block = unpack_block(batch, metadata)
                versions.add(block.version)
                if len(versions) > 1:
                    raise ShardError(f"changes: shards are at versions {sorted(versions)}, expected one version")
                yield block

    def seen_keys(self, num_bytes: int) -> SeenKeys:
        """The keys that have a state in a shard, as a compact set."""
        stream, seen = self._read_header, SeenKeys(num_bytes)
        asked = {"what": "seen_keys", "session": stream.session, "table_group": self._table_group}
        for client in self._clients:
            parts = [
                batch.column("words").to_numpy()
                for batch, _ in client.get({**asked, "num_bytes": num_bytes, "client": stream.client})
            ]
            seen.merge(np.concatenate(parts).reshape(seen.blocks.shape))
        return seen

    def acknowledge(self, consumer: str, version: int) -> None:
        """Record that a consumer of changes has all of them up to a version; see `TableGroup.acknowledge`."""
        stream = self._read_header
        values = {"session": stream.session, "table_group": self._table_group, "consumer": consumer, "version": version}
        for client in self._clients:
            client.act("acknowledge", {**values, "client": stream.client})

    def counters(self) -> StoreCounters:
        """Counters so far."""
        with self._lock:
            return replace(self._counters, retries=sum(client.retries for client in self._clients))

    def keys_by_table(self) -> Int64s:
        """Number of keys read so far in each table, int64 [T]: the traffic argument of `make_plan`."""
        with self._lock:
            return self._keys_by_table.copy()

    def close(self) -> None:
        """Finish pending calls and stop the threads."""
        for pool in (*self._readers, *self._updaters):
            pool.shutdown()

    def _route(self, keys: Keys) -> Routes | None:
        """Assign keys to shards; None if there is only one shard."""
        return None if self._plan.num_shards == 1 else self._plan.route(keys)

    def _shards_of(self, keys: Keys, routes: Routes | None) -> list[int]:
        """The shards that own any of the keys."""
        if not len(keys):
            return []
        return [s for s in range(self._plan.num_shards) if routes is None or routes.starts[s] < routes.starts[s + 1]]

    def _keys_per_table(self, keys: Keys) -> list[int]:
        sizes: list[int] = np.bincount(keys.tables, minlength=len(self._plan.owners)).tolist()
        return sizes

    def _count(
        self, parts: list[tuple[ReplyHeader, int, int]], seconds: float, *, read: Keys | None, kind: str = ""
    ) -> None:
        """Count a finished call; the bytes of both directions also under the name of a counter, if given."""
        sent, received = sum(part[1] for part in parts), sum(part[2] for part in parts)
        held_s = max((part[0].held_us for part in parts), default=0) / 1e6
        with self._lock:
            was = self._counters
            common = replace(
                was,
                bytes_sent=was.bytes_sent + sent,
                bytes_received=was.bytes_received + received,
                held_s=was.held_s + held_s,
                **({kind: getattr(was, kind) + sent + received} if kind else {}),
            )
            if read is None:
                self._counters = replace(common, updates=was.updates + 1, update_s=was.update_s + seconds)
            else:
                self._counters = replace(
                    common, reads=was.reads + 1, keys=was.keys + len(read), read_s=was.read_s + seconds
                )
                self._keys_by_table += self._keys_per_table(read)


def _part_of(keys: Keys, routes: Routes | None, shard: int) -> tuple[Int64s | None, Keys]:
    """A shard's part of some keys, with their places; None for all places."""
    if routes is None:
        return None, keys
    places = routes.of(shard)
    return places, keys.take(places)


class _Gathered(Generic[Result]):
    """A future that is done when all its parts are done or one fails; the other parts then write to unused memory."""

    def __init__(self, num_parts: int, finish: Callable[[list[tuple[ReplyHeader, int, int]]], Result]) -> None:
        self.future: Future[Result] = Future()
        self.future.set_running_or_notify_cancel()
        self._finish = finish
        self._lock = threading.Lock()
        self._parts: list[tuple[ReplyHeader, int, int]] = []
        self._left = num_parts

    def run(self, part: Callable[[int], tuple[ReplyHeader, int, int]], shard: int) -> None:
        """Run a part; the last one also calls `finish`."""
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
