"""`serving_app`: the HTTP interface of a scoring service, as an ASGI application.

Bodies are passed on as bytes: they are read, scored and written in the threads that score, so that one large request
does not hold up the loop that serves all connections.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive, Scope, Send

from headrace.embeddings.shards.security import ServerSecurity
from headrace.errors import HeadraceError
from headrace.serving.answers import ARROW, JSON, write_arrow, write_json
from headrace.serving.batcher import Overloaded
from headrace.serving.metrics import ServingCounters, gauges
from headrace.serving.requests import BadRequest, RequestReader
from headrace.serving.service import Answer, NotReady, Question, ScoringService

__all__ = ["ServingLimits", "ServingState", "WithToken", "metrics_text", "serving_app"]

OPEN_ROUTES = ("/healthz", "/readyz")
RETRY_S = 1
"""Seconds after which a refused client may try again."""


@dataclass(frozen=True)
class ServingLimits:
    """What a request may be.

    Attributes:
        most_body_bytes: Maximum bytes of a body.
        most_records: Maximum rows of a request.
        body_s: Seconds within which a body must have come, so that slow clients hold no memory.
        answer_s: Seconds after which a request that has no answer gets an error.
    """

    most_body_bytes: int = 16 << 20
    most_records: int = 10_000
    body_s: float = 10.0
    answer_s: float = 30.0


@dataclass
class ServingState:
    """What the routes share.

    Attributes:
        service: The service.
        read_status: Further values of `/v1/model`, for example those of a replica.
        limits: Limits of requests.
        counters: Counts of requests.
        is_draining: Whether the server is about to stop, so that no new connections should come.
    """

    service: ScoringService
    read_status: Callable[[], Mapping[str, Any]] = dict
    limits: ServingLimits = field(default_factory=ServingLimits)
    counters: ServingCounters = field(default_factory=ServingCounters)
    is_draining: bool = False


def serving_app(state: ServingState) -> Starlette:
    """The application; see `docs/serving.md` for the routes."""
    routes = [
        Route("/v1/score", _Score(state), methods=["POST"]),
        Route("/v1/model", lambda _: JSONResponse(_describe(state))),
        Route("/healthz", lambda _: PlainTextResponse("ok\n")),
        Route("/readyz", lambda _: _ready(state)),
        Route("/metrics", lambda _: PlainTextResponse(metrics_text(state), media_type="text/plain; version=0.0.4")),
    ]
    return Starlette(routes=routes, exception_handlers={404: _not_found, 405: _wrong_method, HeadraceError: _refused})


class WithToken:
    """An ASGI application whose callers need the server's token, except for `/healthz` and `/readyz`.

    Args:
        app: The application.
        security: The token; without one, everyone may call.
    """

    def __init__(self, app: ASGIApp, security: ServerSecurity) -> None:
        self._app, self._security = app, security

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._security.token is not None and scope["path"] not in OPEN_ROUTES:
            given = next((value for name, value in scope["headers"] if name == b"authorization"), b"")
            if not self._security.accepts(given.decode("latin-1")):
                answer = JSONResponse({"error": "authorization: expected the header Authorization: Bearer TOKEN"}, 401)
                await answer(scope, receive, send)
                return
        await self._app(scope, receive, send)


class _Score:
    """`POST /v1/score`, without the framework between it and the server."""

    def __init__(self, state: ServingState) -> None:
        self._state = state

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = time.perf_counter()
        status, headers, body = 200, [], b""
        try:
            content_type, accepted = _types_of(scope)
            body = await _body_of(scope, receive, self._state.limits)
            body = await self._score(body, content_type, accepted)
            headers = [(b"content-type", accepted)]
        except Exception as error:
            status, headers, body = _error_of(error)
        self._state.counters.add("score", status, time.perf_counter() - began)
        await send(
            {
                "type": "http.response.start",
                "status": status,
                "headers": [*headers, (b"content-length", str(len(body)).encode())],
            }
        )
        await send({"type": "http.response.body", "body": body})

    async def _score(self, body: bytes, content_type: bytes, accepted: bytes) -> bytes:
        loop = asyncio.get_running_loop()
        answered: asyncio.Future[bytes] = loop.create_future()
        service, limits = self._state.service, self._state.limits
        reader = RequestReader(service.model.plan, most_records=limits.most_records)
        read = reader.arrow if content_type == ARROW else reader.records
        write = write_arrow if accepted == ARROW else write_json

        def reply(answer: Answer | Exception) -> None:
            """In the thread that scores."""
            try:
                result: bytes | Exception = answer if isinstance(answer, Exception) else write(answer)
            except Exception as error:
                result = error
            loop.call_soon_threadsafe(_settle, answered, result)

        service.ask(Question(lambda: read(body), _guess_rows(body), reply))
        async with asyncio.timeout(limits.answer_s):
            return await answered


def _settle(answered: asyncio.Future[bytes], result: bytes | Exception) -> None:
    if answered.done():  # the client has gone, or did not wait any longer
        return
    if isinstance(result, Exception):
        answered.set_exception(result)
    else:
        answered.set_result(result)


BYTES_PER_ROW = 400


def _guess_rows(body: bytes) -> int:
    """Rows of a body that is not read yet, for the length of the queue."""
    return 1 + len(body) // BYTES_PER_ROW


def _types_of(scope: Scope) -> tuple[bytes, bytes]:
    """The media types of the body and of the answer."""
    content_type, accepted = JSON, b""
    for name, value in scope["headers"]:
        if name == b"content-type":
            content_type = value.partition(b";")[0].strip().lower()
        elif name == b"accept":
            accepted = value.lower()
    if content_type in (b"", b"application/x-www-form-urlencoded"):  # what curl --data sends
        content_type = JSON
    if content_type not in (JSON, ARROW):
        given = content_type[:100].decode("latin-1")
        raise BadRequest(f"content-type: given {given!r}, expected {JSON.decode()} or {ARROW.decode()}", 415)
    if ARROW in accepted or (content_type == ARROW and JSON not in accepted):
        return content_type, ARROW
    return content_type, JSON


async def _body_of(scope: Scope, receive: Receive, limits: ServingLimits) -> bytes:
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BadRequest("body: the connection was closed", 400)
                parts.append(message.get("body", b""))
                num_bytes += len(parts[-1])
                if num_bytes > limits.most_body_bytes:
                    raise BadRequest(f"body: more than {limits.most_body_bytes:,} bytes", 413)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise BadRequest(f"body: was not complete within {limits.body_s:g} s", 408) from None


def _error_of(error: Exception) -> tuple[int, list[tuple[bytes, bytes]], bytes]:
    """Status, headers and body of an error."""
    headers = [(b"content-type", JSON)]
    if isinstance(error, BadRequest):
        status = error.status
    elif isinstance(error, Overloaded | NotReady):
        status = 503
    elif isinstance(error, TimeoutError):
        status, error = 504, HeadraceError("no answer in time")
    elif isinstance(error, HeadraceError):
        status = 500
    else:
        status, error = 500, HeadraceError(f"{type(error).__name__}: {error}")
    if status == 503:
        headers.append((b"retry-after", str(RETRY_S).encode()))
    return status, headers, orjson.dumps({"error": str(error)})


def _describe(state: ServingState) -> dict[str, Any]:
    model = state.service.model
    return {
        "version": model.version,
        "step": model.about.step,
        "age_s": max(0.0, time.time() - model.about.cut_at),
        "labels": list(model.label_names),
        "most_rows": state.service.batcher.most_rows,
        **state.read_status(),
    }


def _ready(state: ServingState) -> Response:
    if state.is_draining:
        return PlainTextResponse("the server is stopping\n", 503)
    try:
        return PlainTextResponse(f"version {state.service.model.version}\n")
    except NotReady as error:
        return PlainTextResponse(f"{error}\n", 503)


def metrics_text(state: ServingState) -> str:
    """All metrics in the text format of Prometheus."""
    batcher, service = state.service.batcher, state.service
    values: dict[str, float] = {
        "serve.rows": batcher.num_rows,
        "serve.batches": batcher.num_batches,
        "serve.batch_rows_limit": batcher.most_rows,
        "serve.waiting_rows": batcher.waiting_rows,
        "serve.shed_requests": batcher.num_shed,
        "serve.swaps": service.num_swaps,
    }
    try:
        values["serve.version"] = service.model.version
        values["serve.seconds_behind"] = max(0.0, time.time() - service.model.about.cut_at)
    except NotReady:
        pass
    return "\n".join([*state.counters.to_prometheus(), *gauges(values)]) + "\n"


async def _refused(request: Request, error: Exception) -> Response:
    status, headers, body = _error_of(error)
    return Response(body, status, {name.decode(): value.decode() for name, value in headers})


async def _not_found(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{request.url.path[:200]}: no such route, see /v1/model"}, 404)


async def _wrong_method(request: Request, error: Exception) -> Response:
    return JSONResponse({"error": f"{request.url.path[:200]}: does not take {request.method[:20]}"}, 405)
