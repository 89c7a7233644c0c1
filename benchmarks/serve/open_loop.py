"""An open-loop client: requests are due by a schedule, whatever the server does, and latency counts from then.

A client that waits for an answer before it sends the next request does not send while the server stalls, so it misses
the requests that would have waited ("coordinated omission"). Here arrivals are a Poisson process of a fixed seed; a
request that finds no free connection waits for one, and its wait counts.

One thread, plain sockets and `epoll`, requests that are bytes beforehand: about 30 microseconds of its core per
request. It polls without sleeping, so it needs a core of its own. It measures how late it was itself, for the caller to
refuse runs that it limited.
"""

from __future__ import annotations

import select
import socket
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

__all__ = ["Outcome", "Target", "arrivals", "http_request", "run_open_loop"]

WARM_UP_RATIO = 0.1
"""Part of the schedule that is not counted."""
GIVE_UP_S = 1.0
"""A request that is due for this long without being sent ends the run: the server cannot do the rate."""
DRAIN_S = 2.0
_HEAD_END = b"\r\n\r\n"


@dataclass(frozen=True)
class Target:
    """A server, and the requests sent to it in turn.

    Attributes:
        port: Port on 127.0.0.1.
        requests: Whole HTTP requests.
        num_connections: Connections; each has one request at a time.
    """

    port: int
    requests: Sequence[bytes]
    num_connections: int = 256


@dataclass
class Outcome:
    """What a run found.

    Attributes:
        latencies_s: Seconds from when a request was due to its answer, for counted requests that were answered.
        late_s: For each request that found a free connection, how long after it was due it was sent.
        num_ok: Answers with status 200.
        num_errors: Other answers, broken connections, and requests never answered.
        statuses: Answers by status.
        seconds: Length of the schedule that was carried out.
        gave_up: Whether the run ended early, because requests could not be sent in time.
        kept: (number of the request within `Target.requests`, body of its answer) of some answers.
    """

    latencies_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    late_s: np.ndarray = field(default_factory=lambda: np.zeros(0))
    num_ok: int = 0
    num_errors: int = 0
    statuses: dict[int, int] = field(default_factory=dict)
    seconds: float = 0.0
    gave_up: bool = False
    kept: list[tuple[int, bytes]] = field(default_factory=list)

    def percentile_ms(self, percent: float) -> float:
        """A percentile of latency in milliseconds; infinite if nothing was answered."""
        return 1000 * float(np.percentile(self.latencies_s, percent)) if len(self.latencies_s) else float("inf")


def http_request(path: str, body: bytes, content_type: str = "application/json") -> bytes:
    """A whole HTTP/1.1 request."""
    lines = [
        f"POST {path} HTTP/1.1",
        "Host: 127.0.0.1",
        f"Content-Type: {content_type}",
        f"Content-Length: {len(body)}",
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body


def arrivals(rate: float, seconds: float, seed: int = 0) -> np.ndarray:
    """Times at which requests are due, float64, ascending: a Poisson process of `rate` per second."""
    gaps = np.random.default_rng(seed).exponential(1 / rate, int(rate * seconds))
    return np.cumsum(gaps)


class _Connection:
    """A connection and the request on it."""

    __slots__ = ("answer", "number", "socket", "unsent")

    def __init__(self, port: int) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), 5)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.socket.setblocking(False)
        self.number, self.answer, self.unsent = -1, b"", b""


def run_open_loop(
    target: Target, due_s: np.ndarray, *, keep_every: int = 64, keep: Callable[[int], bool] | None = None
) -> Outcome:
    """Send a request at each of the times `due_s` after the start, and wait for the answers.

    Args:
        target: The server and the requests.
        due_s: Ascending times, in seconds.
        keep_every: Keep each n-th answer, to check it afterwards.
        keep: Decides instead of `keep_every`, from the number of a request.

    Returns:
        Latencies and counts.
    """
    run = _Run(target, due_s, keep or (lambda number: number % keep_every == 0))
    try:
        return run.run()
    finally:
        run.close()


class _Run:
    def __init__(self, target: Target, due_s: np.ndarray, keep: Callable[[int], bool]) -> None:
        self._target, self._keep = target, keep
        self._due: list[float] = due_s.tolist()
        self._poll = select.epoll()
        self._connections: dict[int, _Connection] = {}
        self._free: deque[_Connection] = deque()
        self._done = np.full(len(due_s), np.nan)
        self._late = np.full(len(due_s), np.nan)
        self._outcome = Outcome()
        self._open = 0
        for _ in range(target.num_connections):
            self._free.append(self._connect())

    def _connect(self) -> _Connection:
        connection = _Connection(self._target.port)
        self._connections[connection.socket.fileno()] = connection
        self._poll.register(connection.socket.fileno(), select.EPOLLIN)
        return connection

    def close(self) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._poll.close()

    def run(self) -> Outcome:
        due, free, count, clock = self._due, self._free, len(self._due), time.perf_counter
        start, at, waited = clock(), 0, False
        while at < count:
            now = clock() - start
            while at < count and due[at] <= now and free:
                if not waited:
                    self._late[at] = now - due[at]
                self._send(free.popleft(), at)
                at += 1
                waited = False
                now = clock() - start
            if at < count and due[at] <= now:
                waited = not free
                if now - due[at] > GIVE_UP_S:
                    self._outcome.gave_up = True
                    break
            self._receive(0.0 if at < count and due[at] < now + 0.003 else 0.001, start)
        until = clock() + DRAIN_S
        while self._open and clock() < until:
            self._receive(0.001, start)
        return self._finish(at)

    def _send(self, connection: _Connection, number: int) -> None:
        request = self._target.requests[number % len(self._target.requests)]
        connection.number, self._open = number, self._open + 1
        try:
            sent = connection.socket.send(request)
        except BlockingIOError:
            sent = 0
        except OSError:
            self._fail(connection)
            return
        if sent < len(request):
            connection.unsent = request[sent:]
            self._poll.modify(connection.socket.fileno(), select.EPOLLIN | select.EPOLLOUT)

    def _receive(self, timeout_s: float, start: float) -> None:
        for fileno, events in self._poll.poll(timeout_s):
            connection = self._connections[fileno]
            if events & select.EPOLLOUT:
                self._send_rest(connection)
            if not events & ~select.EPOLLOUT:
                continue
            try:
                data = connection.socket.recv(262_144)
            except OSError:
                data = b""
            if not data:
                self._fail(connection)
                continue
            connection.answer = connection.answer + data if connection.answer else data
            if (body_at := _complete(connection.answer)) is not None:
                self._answered(connection, body_at, time.perf_counter() - start)

    def _send_rest(self, connection: _Connection) -> None:
        try:
            connection.unsent = connection.unsent[connection.socket.send(connection.unsent) :]
        except OSError:
            return  # shows when reading
        if not connection.unsent:
            self._poll.modify(connection.socket.fileno(), select.EPOLLIN)

    def _answered(self, connection: _Connection, body_at: int, now: float) -> None:
        number, answer = connection.number, connection.answer
        status = int(answer[9:12])
        self._outcome.statuses[status] = self._outcome.statuses.get(status, 0) + 1
        if status == 200:
            self._done[number] = now
            self._outcome.num_ok += 1
            if self._keep(number):
                self._outcome.kept.append((number % len(self._target.requests), answer[body_at:]))
        else:
            self._outcome.num_errors += 1
        connection.answer, self._open = b"", self._open - 1
        self._free.append(connection)

    def _fail(self, connection: _Connection) -> None:
        """Count the request on a broken connection, and replace the connection. Servers may close idle ones."""
        if connection in self._free:
            self._free.remove(connection)
        else:
            self._outcome.num_errors += 1
            self._open -= 1
        del self._connections[connection.socket.fileno()]
        self._poll.unregister(connection.socket.fileno())
        connection.socket.close()
        self._free.append(self._connect())

    def _finish(self, num_sent: int) -> Outcome:
        outcome, due = self._outcome, np.array(self._due[:num_sent])
        outcome.num_errors += self._open
        outcome.seconds = float(due[-1]) if num_sent else 0.0
        counted = due >= WARM_UP_RATIO * self._due[-1]
        latencies = (self._done[:num_sent] - due)[counted]
        outcome.latencies_s = latencies[~np.isnan(latencies)]
        late = self._late[:num_sent][counted]
        outcome.late_s = late[~np.isnan(late)]
        return outcome


def _complete(answer: bytes) -> int | None:
    """Where the body of an answer starts, or None if it is not complete."""
    head_end = answer.find(_HEAD_END)
    if head_end < 0:
        return None
    head, body_at = answer[:head_end].lower(), head_end + len(_HEAD_END)
    at = head.find(b"content-length:")
    if at < 0:
        if b"transfer-encoding:" not in head:
            raise ValueError(f"answer without a length: {answer[:200]!r}")
        return body_at if answer.endswith(b"0\r\n\r\n") else None
    end = head.find(b"\r\n", at)
    length = int(head[at + 15 : end if end > 0 else len(head)])
    return body_at if len(answer) >= body_at + length else None
