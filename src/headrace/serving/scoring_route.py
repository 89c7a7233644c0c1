"""`ScoringRoute`: a route that scores the rows of a request, without a framework between it and the server.

Bodies are passed on as bytes: they are read, scored and written in the threads that score, so that one large request
does not hold up the loop that serves all connections.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable

import pyarrow as pa
from starlette.types import Receive, Scope, Send

from headrace.serving.answers import ARROW, write_arrow, write_json
from headrace.serving.feedback import Predicted
from headrace.serving.http_bodies import Headers, error_answer, media_types, read_body
from headrace.serving.mailbox import Mailbox
from headrace.serving.requests import BadRequest, RequestReader
from headrace.serving.service import Answer, Question
from headrace.serving.state import NamedModel, ServingState

__all__ = ["ReadRows", "ScoringRoute", "read_ranking", "read_records"]

ReadRows = Callable[[RequestReader, bytes, bytes], pa.RecordBatch]
"""Reads rows from a body, which has a media type."""

REQUEST_ID = b"x-request-id"
LONGEST_ID = 200
_BYTES_PER_ROW = 400
_PREFIX = secrets.token_hex(4)
_numbers = itertools.count()


def read_records(reader: RequestReader, media_type: bytes, body: bytes) -> pa.RecordBatch:
    """Rows that are given one by one, as JSON or Arrow."""
    return reader.arrow(body) if media_type == ARROW else reader.records(body)


def read_ranking(reader: RequestReader, media_type: bytes, body: bytes) -> pa.RecordBatch:
    """Rows of candidates that share a context, as JSON or Arrow."""
    return reader.arrow_ranking(body) if media_type == ARROW else reader.ranking(body)


class ScoringRoute:
    """An ASGI application.

    Args:
        state: The models.
        name: Name of the route in metrics.
        read: Reads rows.
    """

    def __init__(self, state: ServingState, name: str, read: ReadRows) -> None:
        self._state, self._name, self._read = state, name, read
        self._mailbox: Mailbox | None = None  # of the loop, which runs when the first request comes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        began = time.perf_counter()
        status, headers, body = 200, Headers(), b""
        try:
            content_type, accepted = media_types(scope)
            body = await read_body(receive, self._state.limits)
            body = await self._score(scope, body, content_type, accepted)
            headers = [(b"content-type", accepted)]
        except Exception as error:
            status, headers, body = error_answer(error)
        self._state.counters.add(self._name, status, time.perf_counter() - began)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _score(self, scope: Scope, body: bytes, content_type: bytes, accepted: bytes) -> bytes:
        state, request = self._state, _id_of(scope)
        mailbox = self._mailbox = self._mailbox or Mailbox(asyncio.get_running_loop())
        answered: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        write = write_arrow if accepted == ARROW else write_json
        model = _named(state, scope) or state.models[state.traffic.model_of(request.encode())]

        def reply(answer: Answer | Exception) -> None:
            """In the thread that scores."""
            result: bytes | Exception
            try:
                if isinstance(answer, Exception):
                    result = answer
                else:
                    _remember(state, request, model, answer)
                    result = write(answer, request)
            except Exception as error:
                result = error
            mailbox.put(answered, result)

        self._ask(model, body, content_type, reply)
        for name in state.traffic.shadows:
            self._shadow(state.models[name], request, body, content_type)
        async with asyncio.timeout(state.limits.answer_s):
            return await answered

    def _ask(
        self, model: NamedModel, body: bytes, content_type: bytes, reply: Callable[[Answer | Exception], object]
    ) -> None:
        reader = model.service.model.reader
        num_rows = 1 + len(body) // _BYTES_PER_ROW  # the body is not read yet
        model.service.ask(Question(lambda: self._read(reader, content_type, body), num_rows, reply))

    def _shadow(self, model: NamedModel, request: str, body: bytes, content_type: bytes) -> None:
        """Have a model score a request for comparison; it must not disturb the one that answers."""
        state = self._state

        def reply(answer: Answer | Exception) -> None:
            if isinstance(answer, Answer):
                _remember(state, request, model, answer)
            else:
                model.num_shadow_errors += 1

        try:
            self._ask(model, body, content_type, reply)
        except Exception:
            model.num_shadow_errors += 1


def _remember(state: ServingState, request: str, model: NamedModel, answer: Answer) -> None:
    binary = zip(answer.model.label_names, answer.model.is_regression, strict=True)
    labels = tuple(None if is_number else name for name, is_number in binary)
    state.feedback.remember(request, Predicted(model.name, answer.model.version, labels, answer.scores.copy()))


def _id_of(scope: Scope) -> str:
    """The id that the client gave, or a new one."""
    for name, value in scope["headers"]:
        if name == REQUEST_ID:
            if not value or len(value) > LONGEST_ID:
                raise BadRequest(f"x-request-id: given {len(value)} bytes, expected 1 to {LONGEST_ID}")
            return str(value.decode("latin-1"))
    return f"{_PREFIX}-{next(_numbers):x}"


def _named(state: ServingState, scope: Scope) -> NamedModel | None:
    """The model in the path of the request, if there is one."""
    name = scope.get("path_params", {}).get("model")
    if name is None:
        return None
    model = state.models.get(name)
    if model is None:
        raise BadRequest(f"model {name[:100]!r}: unknown, expected one of: {', '.join(state.models)}", 404)
    return model
