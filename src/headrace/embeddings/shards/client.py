"""`ShardClient`: a trainer's connections to one shard, with pooled streams, deadlines and idempotent retries."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings.shards.flight import BROKEN, first_line, location
from headrace.embeddings.shards.security import ClientSecurity, split_address
from headrace.embeddings.shards.wire import ReplyHeader, StreamHeader
from headrace.errors import CheckpointError, HeadraceError, ShardError, ShardLost

__all__ = ["Answer", "ShardClient"]

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.02, 1.0  # between attempts; doubled after each

Answer = tuple[pa.RecordBatch | None, ReplyHeader]

BULK_CALLS = ("put",)
"""Calls with a connection of their own: a put is as large as the rows that return, and what is sent after it on the
same connection, such as a request for rows that a step waits for, would wait until it is through."""

ERRORS = {error.__name__: error for error in (ShardError, ShardLost, CheckpointError)}


class _Stream:
    """An open Flight exchange that carries one request at a time."""

    def __init__(self, client: Any, options: Any, header: StreamHeader, schema: pa.Schema) -> None:
        descriptor = fl.FlightDescriptor.for_command(header.to_json())
        self._writer, self._reader = client.do_exchange(descriptor, options)
        self.is_late = False
        self._writer.begin(schema)

    def ask(self, batch: pa.RecordBatch, metadata: bytes) -> Answer:
        """Send a request and wait for its answer."""
        try:
            self._writer.write_with_metadata(batch, metadata)
            chunk = self._reader.read_chunk()
        except (pa.ArrowException, StopIteration, OSError) as error:
            # If the server ended a stream, its error is only available after closing the stream.
            if not self.is_late:
                self._writer.close()
            raise fl.FlightUnavailableError("the stream ended") from error
        return chunk.data, ReplyHeader.from_json(chunk.app_metadata)

    def expire(self) -> None:
        """Cancel the stream from another thread while `ask` waits."""
        self.is_late = True
        self._reader.cancel()

    def close(self) -> None:
        """Close the stream."""
        with suppress(pa.ArrowException, OSError):
            self._writer.close()

    def drop(self) -> None:
        """Discard the stream in any state."""
        with suppress(pa.ArrowException, OSError):
            self._reader.cancel()
        self.close()


class ShardClient:
    """Client of one shard. Thread-safe: each concurrent request uses its own stream; idle streams are pooled.

    Args:
        number: Number of the shard.
        address: Address, "host:port".
        security: Token and certificate authority.
        timeout_s: Maximum time for one answer, including waiting for other trainers.
        retry_s: Maximum time for retries after the connection breaks.

    Attributes:
        retries: Number of requests sent again.
    """

    def __init__(
        self, number: int, address: str, *, security: ClientSecurity, timeout_s: float, retry_s: float
    ) -> None:
        host, port = split_address(address)
        security.check(host)
        self.name = f"shard {number} ({address})"
        self.retries = 0
        self._timeout_s = timeout_s
        self._retry_s = retry_s
        self._location = location(host, port, is_secure=security.authority is not None)
        self._authority = security.authority
        headers = [] if security.token is None else [(b"authorization", f"Bearer {security.token}".encode())]
        self._headers = headers
        self._lock = threading.Lock()
        self._is_closed = False
        self._clients: dict[bool, Any] = {}  # by whether it is for bulk calls
        self._idle: dict[StreamHeader, list[_Stream]] = {}
        self._watch = _Watch()

    def ask(self, header: StreamHeader, schema: pa.Schema, batch: pa.RecordBatch, metadata: bytes) -> Answer:
        """Send a request, and retry it if the connection breaks; the shard recognizes repeated requests.

        Raises:
            ShardError: The shard refused the request.
            ShardLost: The shard cannot be reached, does not answer, or does not know this session.
        """
        answer: Answer = self._retry(lambda: self._ask_once(header, schema, batch, metadata))
        return answer

    def act(self, kind: str, values: dict[str, Any], *, timeout_s: float | None = None) -> Any:
        """Call an action, see `service.ACTIONS`; errors as for `ask`."""
        options = fl.FlightCallOptions(headers=self._headers, timeout=timeout_s or self._timeout_s)

        def once() -> Any:
            action = fl.Action(kind, json.dumps(values).encode())
            (result,) = self._connection().do_action(action, options)
            return json.loads(result.body.to_pybytes())

        return self._retry(once)

    def get(self, values: dict[str, Any]) -> Iterator[tuple[pa.RecordBatch, bytes]]:
        """Stream the record batches and metadata of a ticket; errors as for `ask`.

        Retries if the connection breaks before the first batch, and fails if it breaks later.
        """
        ticket, options = fl.Ticket(json.dumps(values).encode()), fl.FlightCallOptions(headers=self._headers)

        def start() -> tuple[Any, Any]:
            reader = self._connection().do_get(ticket, options)
            return reader, next(reader, None)

        reader, chunk = self._retry(start)
        while chunk is not None:
            yield chunk.data, chunk.app_metadata.to_pybytes()
            try:
                chunk = next(reader, None)
            except pa.ArrowException as error:
                raise self._named(error) from error

    def close(self) -> None:
        """Close all streams; pending and later requests fail with `ShardLost`."""
        with self._lock:
            self._is_closed = True
        self._watch.close()
        with self._lock:
            idle, self._idle = self._idle, {}
            clients, self._clients = self._clients, {}
        for streams in idle.values():
            for stream in streams:
                stream.close()
        for client in clients.values():
            client.close()

    def _ask_once(self, header: StreamHeader, schema: pa.Schema, batch: pa.RecordBatch, metadata: bytes) -> Answer:
        with self._lock:
            idle = self._idle.get(header, [])
            stream = idle.pop() if idle else None
        if stream is None:
            options = fl.FlightCallOptions(headers=self._headers)
            stream = _Stream(self._connection(is_bulk=header.call in BULK_CALLS), options, header, schema)
        mark = self._watch.add(time.monotonic() + self._timeout_s, stream.expire)
        try:
            answer = stream.ask(batch, metadata)
        except BaseException as error:
            stream.drop()
            if stream.is_late:
                why = "given up" if self._watch.is_closed else f"no answer within {self._timeout_s:g} s"
                raise ShardLost(f"{self.name}: {why}") from error
            raise
        finally:
            self._watch.remove(mark)
        with self._lock:
            is_kept = not self._is_closed
            if is_kept:
                self._idle.setdefault(header, []).append(stream)
        if not is_kept:
            stream.close()
        return answer

    def _connection(self, *, is_bulk: bool = False) -> Any:
        with self._lock:
            if self._is_closed:
                raise ShardLost(f"{self.name}: given up")
            if is_bulk not in self._clients:
                self._clients[is_bulk] = fl.connect(self._location, tls_root_certs=self._authority)
            return self._clients[is_bulk]

    def _retry(self, once: Callable[[], Any]) -> Any:
        give_up, pause_s = time.monotonic() + self._retry_s, FIRST_PAUSE_S
        while True:
            try:
                return once()
            except BROKEN as error:
                if time.monotonic() + pause_s > give_up:
                    raise self._named(error) from error
                self._forget_idle()
                self.retries += 1
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            except pa.ArrowException as error:
                raise self._named(error) from error

    def _named(self, error: pa.ArrowException) -> HeadraceError:
        """Convert the error of a call to one of headrace's errors."""
        if isinstance(error, BROKEN):
            return ShardLost(f"{self.name}: cannot be reached: {first_line(error)}")
        kind = ERRORS.get(bytes(getattr(error, "extra_info", b"") or b"").decode(), ShardError)
        return kind(f"{self.name}: {first_line(error)}")

    def _forget_idle(self) -> None:
        """Discard idle streams, because the streams of a broken connection are broken too."""
        with self._lock:
            idle, self._idle = self._idle, {}
        for streams in idle.values():
            for stream in streams:
                stream.drop()


class _Watch:
    """A thread that calls functions at their deadlines. All waits are about equally long, so deadlines are in order."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._marks: dict[int, tuple[float, Callable[[], None]]] = {}
        self._next = 0
        self._thread: threading.Thread | None = None
        self.is_closed = False

    def add(self, deadline: float, call: Callable[[], None]) -> int:
        """Call a function at a time of the monotonic clock, or now if closed, unless it is removed before."""
        with self._changed:
            is_closed = self.is_closed
            self._next += 1
            self._marks[self._next] = deadline, call
            if self._thread is None and not self.is_closed:
                self._thread = threading.Thread(target=self._run, name="headrace-deadlines", daemon=True)
                self._thread.start()
            elif len(self._marks) == 1:
                self._changed.notify()
            mark = self._next
        if is_closed:
            call()
        return mark

    def remove(self, mark: int) -> None:
        """Remove a function, because its request is done."""
        with self._changed:
            self._marks.pop(mark, None)

    def close(self) -> None:
        """Call all watched functions, and stop the thread."""
        with self._changed:
            self.is_closed = True
            self._changed.notify_all()
            thread, calls = self._thread, [call for _, call in self._marks.values()]
            self._marks.clear()
        for call in calls:
            call()
        if thread is not None:
            thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                if self.is_closed:
                    return
                now = time.monotonic()
                late = [mark for mark, (deadline, _) in self._marks.items() if deadline <= now]
                calls = [self._marks.pop(mark)[1] for mark in late]
                if not calls:
                    self._changed.wait(min((d - now for d, _ in self._marks.values()), default=None))
            for call in calls:
                call()
