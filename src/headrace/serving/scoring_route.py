"""`ScoringRoute`: a route that scores the rows of a request, without a framework between it and the server.

Bodies are passed on as bytes: they are read, scored and written in the threads that score, so that one large request
does not hold up the loop that serves all connections.
"""

from __future__ import annotations

import asyncio
import itertools
import secrets
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pyarrow as pa
from starlette.types import Receive, Scope, Send

from headrace.serving.answers import ARROW, write_arrow, write_json
from headrace.serving.feedback import Predicted
from headrace.serving.http_bodies import Headers, error_answer, media_types, read_body
from headrace.serving.requests import BadRequest, RequestReader
from headrace.serving.service import Answer, Question, Records
from headrace.serving.state import NamedModel, ServingState

__all__ = ["Reading", "ScoringRoute", "read_ranking", "read_records"]

Done = Callable[[int, Headers, bytes], object]
Read = Callable[[], pa.RecordBatch | Records]
Reading = Callable[[RequestReader, bytes, bytes], tuple[Read, Callable[[Records], pa.RecordBatch] | None]]
"""How to read rows from a body, which has a media type: `read` and `columns` of a `Question`."""

REQUEST_ID = b"x-request-id"
LONGEST_ID = 200
LEARN = 0.05
_BYTES_PER_ROW = 400
_PREFIX = secrets.token_hex(4)
_numbers = itertools.count()


def read_records(reader: RequestReader, media_type: bytes, body: bytes) -> tuple[Read, Any]:
    """Rows that are given one by one, as JSON or Arrow."""
    return (partial(reader.arrow, body), None) if media_type == ARROW else (partial(reader.parse, body), reader.columns)


def read_ranking(reader: RequestReader, media_type: bytes, body: bytes) -> tuple[Read, Any]:
    """Rows of candidates that share a context, as JSON or Arrow."""
    return partial(reader.arrow_ranking if media_type == ARROW else reader.ranking, body), None


class ScoringRoute:
    """A route that answers through `submit`; it is an ASGI application, too.

    Args:
        state: The models.
        name: Name of the route in metrics.
        read: How rows are read.
    """

    def __init__(self, state: ServingState, name: str, read: Reading) -> None:
        self._state, self._name, self._read = state, name, read
        self._bytes_per_row: dict[bytes, float] = {}  # by media type, as seen lately

    def submit(self, headers: Sequence[tuple[bytes, bytes]], model: str | None, body: bytes, done: Done) -> None:
        """Have a request answered.

        Args:
            headers: Its headers, with names in lower case.
            model: Name of the model that answers; None for that of the traffic.
            body: Its body.
            done: Called with status, headers and body of the answer, soon, in the thread of the event loop.
        """
        state, began = self._state, time.perf_counter()

        def finish(status: int, headers: Headers, body: bytes) -> None:
            state.counters.add(self._name, status, time.perf_counter() - began)
            done(status, headers, body)

        try:
            content_type, accepted = media_types(headers)
            request = _id_of(headers)
            named = _named(state, model) if model else state.models[state.traffic.model_of(request.encode())]
            write = write_arrow if accepted == ARROW else write_json

            def reply(answer: Answer | Exception) -> None:
                """In the thread that scores."""
                try:
                    if isinstance(answer, Exception):
                        raise answer
                    _remember(state, request, named, answer)
                    self._learn(content_type, len(body), len(answer.scores))
                    found = 200, [(b"content-type", accepted)], write(answer, request)
                except Exception as error:
                    found = error_answer(error)
                if state.mailbox is None:
                    finish(*found)
                else:
                    state.mailbox.put(partial(finish, *found))

            self._ask(named, body, content_type, reply)
        except Exception as error:
            finish(*error_answer(error))
            return
        for name in state.traffic.shadows:
            self._shadow(state.models[name], request, body, content_type)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request."""
        answered: asyncio.Future[tuple[int, Headers, bytes]] = asyncio.get_running_loop().create_future()

        def done(*answer: Any) -> None:
            if not answered.done():  # the client has gone, or did not wait any longer
                answered.set_result(answer)

        try:
            body = await read_body(receive, self._state.limits)
            self.submit(scope["headers"], scope.get("path_params", {}).get("model"), body, done)
            async with asyncio.timeout(self._state.limits.answer_s):
                status, headers, body = await answered
        except Exception as error:
            status, headers, body = error_answer(error)
        headers.append((b"content-length", str(len(body)).encode()))
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _ask(
        self, model: NamedModel, body: bytes, content_type: bytes, reply: Callable[[Answer | Exception], object]
    ) -> None:
        read, columns = self._read(model.service.model.reader, content_type, body)
        bytes_per_row = self._bytes_per_row.get(content_type, _BYTES_PER_ROW)
        num_rows = max(round(len(body) / bytes_per_row), 1)  # the body is not read yet
        model.service.ask(Question(read, num_rows, reply, columns))

    def _learn(self, content_type: bytes, num_bytes: int, num_rows: int) -> None:
        """Note how long the body of some rows was."""
        if num_rows:
            before = self._bytes_per_row.get(content_type, num_bytes / num_rows)
            self._bytes_per_row[content_type] = before + LEARN * (num_bytes / num_rows - before)

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
    state.feedback.remember(request, Predicted(model.name, answer.model.version, labels, answer.scores.tobytes()))


def _id_of(headers: Sequence[tuple[bytes, bytes]]) -> str:
    """The id that the client gave, or a new one."""
    for name, value in headers:
        if name == REQUEST_ID:
            if not value or len(value) > LONGEST_ID:
                raise BadRequest(f"x-request-id: given {len(value)} bytes, expected 1 to {LONGEST_ID}")
            return str(value.decode("latin-1"))
    return f"{_PREFIX}-{next(_numbers):x}"


def _named(state: ServingState, name: str) -> NamedModel:
    model = state.models.get(name)
    if model is None:
        raise BadRequest(f"model {name[:100]!r}: unknown, expected one of: {', '.join(state.models)}", 404)
    return model
