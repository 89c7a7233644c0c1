"""`scoring_protocol`: uvicorn's HTTP/1.1 protocol, with a direct way for requests for scores.

A request through ASGI costs about a hundred microseconds of the interpreter: a task, a scope, queues of messages. That
is more than a row costs, so `POST` to the routes given goes from the parser to `ScoringRoute.submit`, and its answer to
the transport. All else is uvicorn's: other routes, idle connections, TLS, and stopping.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Mapping
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from headrace.embeddings.shards.security import ServerSecurity
from headrace.serving.http_bodies import Headers, RequestLimits, error_answer
from headrace.serving.requests import BadRequest
from headrace.serving.scoring_route import ScoringRoute

__all__ = ["scoring_protocol"]

REASONS = {
    200: b"OK",
    400: b"Bad Request",
    401: b"Unauthorized",
    404: b"Not Found",
    408: b"Request Timeout",
    413: b"Content Too Large",
    415: b"Unsupported Media Type",
    422: b"Unprocessable Content",
    500: b"Internal Server Error",
    503: b"Service Unavailable",
    504: b"Gateway Timeout",
}


class _Pending:
    """A request whose answer is to be written after those before it.

    Attributes:
        route: Answers it.
        parts, num_bytes: What has come of the body.
        written: The answer; None until it is there.
        keep_alive: Whether the connection stays open.
    """

    __slots__ = ("keep_alive", "num_bytes", "parts", "route", "written")

    def __init__(self, route: ScoringRoute, keep_alive: bool) -> None:
        self.route = route
        self.parts: list[bytes] = []
        self.num_bytes = 0
        self.written: bytes | None = None
        self.keep_alive = keep_alive


def scoring_protocol(
    routes: Mapping[bytes, ScoringRoute], limits: RequestLimits, security: ServerSecurity
) -> type[asyncio.Protocol]:
    """The protocol of a server.

    Args:
        routes: By path.
        limits: Limits of requests.
        security: The token.
    """

    class ScoringProtocol(HttpToolsProtocol):
        def __init__(self, *arguments: Any, **keywords: Any) -> None:
            super().__init__(*arguments, **keywords)
            self._reading: _Pending | None = None  # the request whose body comes
            self._pending: deque[_Pending] = deque()  # not answered yet, in order
            self._is_stopping = False
            self._body_timer: asyncio.TimerHandle | None = None

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            if self._reading is not None and self._body_timer is None:
                self._body_timer = self.loop.call_later(limits.body_s, self._body_is_late)

        def on_headers_complete(self) -> None:
            route = routes.get(self.url)
            is_after_others = self.cycle is not None and not self.cycle.response_complete
            if route is None or is_after_others or self.parser.get_method() != b"POST" or self.expect_100_continue:
                if self._pending:
                    self._refuse("another route before the answer to a request on this connection")
                    return
                super().on_headers_complete()
                return
            self._reading = _Pending(route, self.parser.should_keep_alive())
            self._pending.append(self._reading)

        def on_body(self, body: bytes) -> None:
            pending = self._reading
            if pending is None:
                super().on_body(body)
                return
            pending.num_bytes += len(body)
            if pending.num_bytes <= limits.most_body_bytes:
                pending.parts.append(body)
            elif pending.written is None:
                pending.parts = []
                self._fail(pending, BadRequest(f"body: more than {limits.most_body_bytes:,} bytes", 413))

        def on_message_complete(self) -> None:
            pending, self._reading = self._reading, None
            if pending is None:
                super().on_message_complete()
                return
            self._stop_timer()
            if pending.written is not None:
                return
            headers = self.headers
            if security.token is not None and not _is_allowed(headers, security):
                error = BadRequest("authorization: expected the header Authorization: Bearer TOKEN", 401)
                self._answer(pending, *error_answer(error))
                return
            parts, pending.parts = pending.parts, []
            body = parts[0] if len(parts) == 1 else b"".join(parts)
            pending.route.submit(headers, None, body, lambda *answer: self._answer(pending, *answer))

        def shutdown(self) -> None:
            self._is_stopping = True
            if not self._pending:
                super().shutdown()

        def connection_lost(self, exc: Exception | None) -> None:
            self._stop_timer()
            self._pending.clear()
            super().connection_lost(exc)

        def _answer(self, pending: _Pending, status: int, headers: Headers, body: bytes) -> None:
            if self._is_stopping:
                pending.keep_alive = False
            lines = [b"HTTP/1.1 %d %s" % (status, REASONS.get(status, b"")), *(b"%s: %s" % each for each in headers)]
            if not pending.keep_alive:
                lines.append(b"connection: close")
            pending.written = b"%s\r\ncontent-length: %d\r\n\r\n%s" % (b"\r\n".join(lines), len(body), body)
            while self._pending and self._pending[0].written is not None:
                first = self._pending.popleft()
                self.server_state.total_requests += 1
                if self.transport.is_closing():
                    continue
                self.transport.write(first.written or b"")
                if not first.keep_alive:
                    self.transport.close()
            if not self._pending and not self.transport.is_closing():
                self._unset_keepalive_if_required()
                self.timeout_keep_alive_task = self.loop.call_later(
                    self.timeout_keep_alive, self.timeout_keep_alive_handler
                )

        def _refuse(self, reason: str) -> None:
            pending = _Pending(next(iter(routes.values())), keep_alive=False)
            self._pending.append(pending)
            self._reading = pending
            self._fail(pending, BadRequest(f"pipelining: {reason}, expected one route at a time"))

        def _fail(self, pending: _Pending, error: BadRequest) -> None:
            """Answer with an error, and close the connection, as what follows on it is not read."""
            pending.keep_alive = False
            self._answer(pending, *error_answer(error))

        def _body_is_late(self) -> None:
            pending, self._body_timer = self._reading, None
            if pending is not None and pending.written is None:
                self._fail(pending, BadRequest(f"body: was not complete within {limits.body_s:g} s", 408))

        def _stop_timer(self) -> None:
            if self._body_timer is not None:
                self._body_timer.cancel()
                self._body_timer = None

    return ScoringProtocol


def _is_allowed(headers: Headers, security: ServerSecurity) -> bool:
    given = next((value for name, value in headers if name == b"authorization"), b"")
    return security.accepts(given.decode("latin-1"))
