"""`ShardServer`: a `Shard` on the network, over Arrow Flight; see `docs/shard-protocol.md`."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from time import perf_counter
from typing import Any

import numba
import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings.changes.row_blocks import block_schema, pack_block
from headrace.embeddings.shards.budgets import pack_demands
from headrace.embeddings.shards.flight import SecureServer, as_flight_errors, flight_error
from headrace.embeddings.shards.merging import TrainerUpdate
from headrace.embeddings.shards.precision import Precision, decode, encode
from headrace.embeddings.shards.requests import (
    MAX_LINE,
    AcknowledgeRequest,
    ChangesRequest,
    EndWindowRequest,
    OpenRequest,
    RecordChangesRequest,
    SaveRequest,
    SeenKeysRequest,
    TakeDeltasRequest,
    Ticket,
    WriteDeltasRequest,
    parse,
)
from headrace.embeddings.shards.security import ServerSecurity
from headrace.embeddings.shards.served_table_group import ServedTableGroup
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.state_wire import IDS_SCHEMA, StateWire, unpack_ids_only
from headrace.embeddings.shards.wire import (
    EvictHeader,
    FetchHeader,
    PutHeader,
    ReadHeader,
    ReplyHeader,
    StreamHeader,
    UpdateHeader,
    keys_of,
    pack_rows,
    read_keys,
    read_rows,
    read_schema,
    rows_schema,
    update_schema,
)
from headrace.errors import ShardError

__all__ = ["ACTIONS", "ShardServer"]

ACTIONS = {
    "open": "Begin or join a session",
    "end_window": "End a window and evict ids by retention settings",
    "save": "Write this shard's part of a checkpoint",
    "record_changes": "Record changes since the checkpoint that the session began with",
    "take_deltas": "Copy what changed since a checkpoint or a publication",
    "write_deltas": "Write these copies as segments",
    "acknowledge": "Record that a consumer has all changes up to a version",
    "status": "Status of the shard",
}

MAX_KEYS = 4_000_000
"""Maximum number of keys in a request: 288 MB with 64-byte rows, far more than a batch has."""


class ShardServer(SecureServer):
    """A Flight server for one shard. Streams carry reads, updates, evictions and moves of rows, in order; actions
    carry everything else.

    An invalid request ends its stream with a one-line error; the server continues.

    Args:
        shard: Shard to serve.
        listen: Address "host:port"; port 0 for any free port, see the attribute `port`.
        security: Security settings.
        threads: Number of threads for the kernels of a request.
        max_keys: Maximum number of keys in a request.

    Raises:
        ConfigError: An address other than loopback lacks token or TLS, certificate and key cannot be used, or the
            address is in use.
    """

    def __init__(
        self,
        shard: Shard,
        listen: str,
        *,
        security: ServerSecurity | None = None,
        threads: int = 1,
        max_keys: int = MAX_KEYS,
    ) -> None:
        self._shard = shard
        self._threads = threads
        self._max_keys = max_keys
        super().__init__(listen, security)

    def do_exchange(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Serve a stream of requests of one kind until the trainer closes it."""
        with as_flight_errors(ShardError):
            header = StreamHeader.from_json(descriptor.command)
            call, precision = header.check()
            numba.set_num_threads(self._threads)  # applies to this thread only
            client = header.client or context.peer()
            with self._shard.stream(header.session, header.table_group, header.trainer, client) as served:
                if call == "read":
                    self._serve_reads(served, header.trainer, precision, reader, writer)
                elif call == "update":
                    self._serve_updates(served, header.trainer, precision, reader, writer)
                elif call == "evict":
                    self._serve_evictions(served, header.trainer, reader, writer)
                elif call == "fetch":
                    self._serve_fetches(served, header.trainer, reader, writer)
                else:
                    self._serve_puts(served, header.trainer, reader, writer)

    def do_action(self, context: Any, action: Any) -> list[Any]:
        """Run one of `ACTIONS`; body and answer are JSON."""
        with as_flight_errors(ShardError):
            answer = self._act(action.type, action.body.to_pybytes(), context.peer())
            return [fl.Result(pa.py_buffer(json.dumps(answer).encode()))]

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """Names and descriptions of actions."""
        return list(ACTIONS.items())

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream the changes in this shard's part of a table group after a version, as blocks of rows, or the set of
        the keys that have a state here, as one block."""
        with as_flight_errors(ShardError):
            if parse("ticket", ticket.ticket, Ticket.model_validate_json).what == "seen_keys":
                return self._seen_keys(SeenKeysRequest.from_json("seen_keys", ticket.ticket))
            asked = ChangesRequest.from_json("changes", ticket.ticket)
            blocks = self._shard.changes(asked.session, asked.table_group, asked.since, asked.step, asked.client)
            schema = block_schema(next((block.columns for block in blocks if not block.is_tombstones), {}))
            return fl.GeneratorStream(schema, (pack_block(block, schema) for block in blocks))

    def _seen_keys(self, asked: SeenKeysRequest) -> Any:
        seen = self._shard.seen_keys(asked.session, asked.table_group, asked.num_bytes, asked.client)
        batch = pa.record_batch({"words": pa.array(seen.blocks.reshape(-1))})
        return fl.GeneratorStream(batch.schema, [(batch, b"{}")])

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Not part of the protocol; always refused."""
        raise flight_error(ShardError("do_put: a shard takes no tables; update with do_exchange"))

    def _act(self, kind: str, body: bytes, peer: str) -> Any:
        if kind == "open":
            opened = OpenRequest.from_json(body)
            return self._shard.open(opened, opened.client or peer)
        if kind == "end_window":
            ended = EndWindowRequest.from_json(kind, body)
            found = self._shard.end_window(ended.session, ended.window, ended.step, ended.client or peer, ended.budgets)
            return {
                "freed": sum(group.freed for group in found.values()),
                "demands": {name: pack_demands(group.demands) for name, group in found.items() if group.demands},
            }
        if kind == "save":
            saved = SaveRequest.from_json(kind, body)
            return {"files": self._shard.save(saved.session, saved.folder, saved.step, saved.client or peer)}
        if kind == "record_changes":
            recorded = RecordChangesRequest.from_json(kind, body)
            self._shard.record_changes(recorded.session, recorded.consumer, recorded.number, recorded.client or peer)
            return {}
        if kind == "take_deltas":
            taken = TakeDeltasRequest.from_json(kind, body)
            who = taken.client or peer
            about = taken.number, taken.step, taken.saved, taken.everything
            self._shard.take_deltas(taken.session, taken.consumer, *about, who)
            return {}
        if kind == "write_deltas":
            asked = WriteDeltasRequest.from_json(kind, body)
            who = asked.client or peer
            about_files = asked.folder, asked.names, asked.as_int8
            written = self._shard.write_deltas(asked.session, asked.consumer, *about_files, who)
            return {"segments": {name: [asdict(entry) for entry in entries] for name, entries in written.items()}}
        if kind == "acknowledge":
            known = AcknowledgeRequest.from_json(kind, body)
            self._shard.acknowledge(
                known.session, known.table_group, known.consumer, known.version, known.client or peer
            )
            return {}
        if kind == "status":
            return self._shard.status()
        raise ShardError(f"action {kind[:40]!r}: expected one of: {', '.join(ACTIONS)}")

    def _serve_reads(
        self, served: ServedTableGroup, trainer: int, precision: Precision, reader: Any, writer: Any
    ) -> None:
        schema = rows_schema(precision, served.spec.embedding_dim)
        _check_schema(reader.schema, read_schema(with_counts=served.spec.reads_have_counts))
        writer.begin(schema)
        for batch, metadata in self._requests(reader):
            start = perf_counter()
            header = ReadHeader.from_json(metadata)
            keys = read_keys(batch, header.keys_per_table, len(served.spec.tables), seen=header.seen)
            rows, held_s = served.read(keys, trainer=trainer, after=header.after)
            answer = pack_rows(None, *encode(rows, None, precision), schema)
            writer.write_with_metadata(answer, _reply(start, held_s, served))

    def _serve_updates(
        self, served: ServedTableGroup, trainer: int, precision: Precision, reader: Any, writer: Any
    ) -> None:
        dim = served.spec.embedding_dim
        _check_schema(reader.schema, update_schema(precision, dim))
        for batch, metadata in self._requests(reader):
            start = perf_counter()
            header = UpdateHeader.from_json(metadata)
            keys = read_keys(batch, header.keys_per_table, len(served.spec.tables))
            gradients = np.empty((len(keys), dim), dtype=np.float32)
            decode(*read_rows(batch), None, precision, gradients)
            update = TrainerUpdate(keys, gradients, header.num_rows, header.lr_factor)
            held_s = served.update(update, trainer=trainer, step=header.step)
            writer.write_metadata(pa.py_buffer(_reply(start, held_s, served)))

    def _serve_evictions(self, served: ServedTableGroup, trainer: int, reader: Any, writer: Any) -> None:
        _check_schema(reader.schema, read_schema(with_counts=False))
        for batch, metadata in self._requests(reader):
            start = perf_counter()
            header = EvictHeader.from_json(metadata)
            keys = read_keys(batch, header.keys_per_table, len(served.spec.tables), seen=False)
            freed, held_s = served.evict(keys, trainer=trainer, number=header.number, step=header.step)
            writer.write_metadata(pa.py_buffer(_reply(start, held_s, served, freed=freed)))

    def _serve_fetches(self, served: ServedTableGroup, trainer: int, reader: Any, writer: Any) -> None:
        wire = StateWire(served.spec)
        _check_schema(reader.schema, IDS_SCHEMA)
        writer.begin(wire.schema(with_ids=False))
        for batch, metadata in self._requests(reader):
            start = perf_counter()
            header = FetchHeader.from_json(metadata)
            num_keys = sum(header.keys_per_table)
            self._check_num_keys(num_keys)
            ids = unpack_ids_only(batch, num_keys)
            keys = keys_of(ids, header.keys_per_table, len(served.spec.tables))
            states, held_s = served.fetch(keys, trainer=trainer, after=header.after)
            writer.write_with_metadata(wire.pack(states, len(keys)), _reply(start, held_s, served))

    def _serve_puts(self, served: ServedTableGroup, trainer: int, reader: Any, writer: Any) -> None:
        wire = StateWire(served.spec)
        _check_schema(reader.schema, wire.schema(with_ids=True))
        for batch, metadata in self._requests(reader):
            start = perf_counter()
            header = PutHeader.from_json(metadata)
            num_keys = sum(header.keys_per_table)
            self._check_num_keys(num_keys)
            ids, states = wire.unpack(batch, num_keys)
            keys = keys_of(ids, header.keys_per_table, len(served.spec.tables))
            progress = {"step": header.step, "version": header.version, "number": header.number, "mark": header.mark}
            served.put(keys, states, trainer=trainer, **progress)
            writer.write_metadata(pa.py_buffer(_reply(start, 0.0, served)))

    def _requests(self, reader: Any) -> Iterator[tuple[pa.RecordBatch, Any]]:
        while True:
            try:
                chunk = reader.read_chunk()
            except StopIteration:
                return
            if chunk.data is None or chunk.app_metadata is None:
                raise ShardError("request: expected a record batch with a header in its metadata")
            self._check_num_keys(chunk.data.num_rows)
            chunk.data.validate()  # the declared length of a column may exceed its bytes
            if any(column.null_count for column in chunk.data.columns):
                raise ShardError("request: contains nulls, expected none")
            yield chunk.data, chunk.app_metadata

    def _check_num_keys(self, num_keys: int) -> None:
        if num_keys > self._max_keys:
            raise ShardError(f"request: {num_keys} keys, expected at most {self._max_keys}")


def _check_schema(given: pa.Schema, expected: pa.Schema) -> None:
    names = [f"{field.name}: {field.type}" for field in given]
    shown = ", ".join(names)
    wanted = [f"{field.name}: {field.type}" for field in expected]
    if names != wanted:
        raise ShardError(f"columns: given {shown[:MAX_LINE] or 'none'}, expected {', '.join(wanted)}")


def _reply(start: float, held_s: float, served: ServedTableGroup, *, freed: int = 0) -> bytes:
    work_s = max(0.0, perf_counter() - start - held_s)
    return ReplyHeader(int(held_s * 1e6), int(work_s * 1e6), served.applied, freed).to_json()
