"""The direct way of requests for scores over HTTP: order of answers, limits, slow bodies, and stopping."""

import asyncio
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

pytest.importorskip("uvicorn", reason="needs the extra serve")
pytest.importorskip("httptools", reason="needs the extra serve")

import uvicorn

from headrace.embeddings.shards.security import ServerSecurity
from headrace.serving.http_bodies import RequestLimits
from headrace.serving.protocol import scoring_protocol

LIMITS = RequestLimits(most_body_bytes=1000, body_s=0.2)


class Route:
    """Answers with the body; one that begins with `wait` when the next request comes."""

    def __init__(self) -> None:
        self.waiting: list[Any] = []

    def submit(self, headers: Any, model: str | None, body: bytes, done: Any) -> None:
        answers, self.waiting = [*self.waiting, (done, body)], []
        if body.startswith(b"wait"):
            self.waiting = answers
            return
        for answer, given in reversed(answers):  # the later one first
            answer(200, [(b"content-type", b"text/plain")], given)


async def app(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"3")]})
    await send({"type": "http.response.body", "body": b"app"})


@contextmanager
def running(security: ServerSecurity = ServerSecurity()) -> Iterator[tuple[int, uvicorn.Server]]:  # noqa: B008
    listener = socket.create_server(("127.0.0.1", 0))
    protocol = scoring_protocol({b"/v1/score": Route()}, LIMITS, security)  # type: ignore[dict-item]
    config = uvicorn.Config(app, http=protocol, lifespan="off", log_config=None, date_header=False, server_header=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=lambda: asyncio.run(server.serve(sockets=[listener])))
    thread.start()
    try:
        yield listener.getsockname()[1], server
    finally:
        server.should_exit = True
        thread.join()
        listener.close()


def post(body: bytes, *headers: bytes, path: bytes = b"/v1/score") -> bytes:
    lines = [b"POST %s HTTP/1.1" % path, b"host: x", b"content-length: %d" % len(body), *headers]
    return b"\r\n".join([*lines, b"", body])


@contextmanager
def connected(port: int) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        yield connection


def answers(connection: socket.socket, count: int) -> list[tuple[int, bytes]]:
    """Status and body of the next answers."""
    found, data = [], b""
    while len(found) < count:
        head, separator, rest = data.partition(b"\r\n\r\n")
        length = next((int(line[16:]) for line in head.split(b"\r\n") if line.startswith(b"content-length: ")), 0)
        if separator and len(rest) >= length:
            found.append((int(head[9:12]), rest[:length]))
            data = rest[length:]
            continue
        more = connection.recv(65_536)
        assert more, f"closed after {found} and {data!r}"
        data += more
    assert data == b""
    return found


def test_answers_come_in_the_order_of_requests_on_one_connection() -> None:
    with running() as (port, _), connected(port) as connection:
        connection.sendall(post(b"wait 1") + post(b"wait 2") + post(b"3"))
        assert answers(connection, 3) == [(200, b"wait 1"), (200, b"wait 2"), (200, b"3")]
        connection.sendall(b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
        assert answers(connection, 1) == [(200, b"app")]
        connection.sendall(post(b"4"))
        assert answers(connection, 1) == [(200, b"4")]


def test_a_body_may_come_in_pieces_and_chunks() -> None:
    with running() as (port, _), connected(port) as connection:
        request = post(b"in pieces")
        for piece in range(0, len(request), 7):
            connection.sendall(request[piece : piece + 7])
        assert answers(connection, 1) == [(200, b"in pieces")]
        head = b"POST /v1/score HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\n"
        connection.sendall(head + b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n")
        assert answers(connection, 1) == [(200, b"abcde")]


@pytest.mark.parametrize(
    ("request_bytes", "status", "text"),
    [
        (post(b"x" * 1001), 413, b"body: more than 1,000 bytes"),
        (post(b"never complete")[:-3], 408, b"body: was not complete within 0.2 s"),
    ],
)
def test_bodies_that_are_too_large_or_slow_are_refused_and_the_connection_ends(
    request_bytes: bytes, status: int, text: bytes
) -> None:
    with running() as (port, _), connected(port) as connection:
        connection.sendall(request_bytes)
        ((found, body),) = answers(connection, 1)
        assert (found, text in body) == (status, True)
        assert connection.recv(1) == b""
        with connected(port) as another:
            another.sendall(post(b"fine"))
            assert answers(another, 1) == [(200, b"fine")]


def test_another_route_before_an_answer_is_refused_instead_of_overtaking_it() -> None:
    with running() as (port, _), connected(port) as connection, connected(port) as another:
        connection.sendall(post(b"wait") + b"GET /other HTTP/1.1\r\nhost: x\r\n\r\n")
        another.sendall(post(b"go"))
        assert answers(another, 1) == [(200, b"go")]
        first, second = answers(connection, 2)
        assert first == (200, b"wait")
        assert (second[0], b"pipelining" in second[1]) == (400, True)


def test_a_token_is_needed_if_there_is_one() -> None:
    with running(ServerSecurity(token="s" * 16)) as (port, _), connected(port) as connection:
        connection.sendall(post(b"x"))
        assert answers(connection, 1)[0][0] == 401
        connection.sendall(post(b"x", b"authorization: Bearer " + b"s" * 16))
        assert answers(connection, 1) == [(200, b"x")]


def test_a_server_that_stops_answers_first() -> None:
    with running() as (port, server), connected(port) as connection:
        connection.sendall(post(b"1"))
        assert answers(connection, 1) == [(200, b"1")]
        with connected(port) as another:
            connection.sendall(post(b"wait"))
            another.sendall(post(b"2"))
            assert answers(another, 1) == [(200, b"2")]
            assert answers(connection, 1) == [(200, b"wait")]
            server.should_exit = True
            assert connection.recv(1) == b""
