"""Bodies over HTTP: their types and limits, and errors as answers."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from dataclasses import dataclass

import orjson
from starlette.types import Receive

from headrace.errors import HeadraceError, PublishingError
from headrace.serving.answers import ARROW, JSON
from headrace.serving.batcher import Overloaded
from headrace.serving.requests import BadRequest
from headrace.serving.service import NotReady

__all__ = ["Headers", "RequestLimits", "error_answer", "media_types", "read_body"]

Headers = list[tuple[bytes, bytes]]
RETRY_S = 1
"""Seconds after which a refused client may try again."""


@dataclass(frozen=True)
class RequestLimits:
    """What a request may be.

    Attributes:
        most_body_bytes: Maximum bytes of a body.
        body_s: Seconds within which a body must have come, so that slow clients hold no memory.
        answer_s: Seconds after which a request that has no answer gets an error.
    """

    most_body_bytes: int = 16 << 20
    body_s: float = 10.0
    answer_s: float = 30.0


def media_types(headers: Iterable[tuple[bytes, bytes]]) -> tuple[bytes, bytes]:
    """The media types of the body and of the answer, each JSON or ARROW.

    Raises:
        BadRequest: The body has another type.
    """
    content_type, accepted = JSON, b""
    for name, value in headers:
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


async def read_body(receive: Receive, limits: RequestLimits) -> bytes:
    """The body of a request.

    Raises:
        BadRequest: It is too large, or came too slowly.
    """
    parts: list[bytes] = []
    num_bytes = 0
    try:
        async with asyncio.timeout(limits.body_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise BadRequest("body: the connection was closed")
                parts.append(message.get("body", b""))
                num_bytes += len(parts[-1])
                if num_bytes > limits.most_body_bytes:
                    raise BadRequest(f"body: more than {limits.most_body_bytes:,} bytes", 413)
                if not message.get("more_body", False):
                    return parts[0] if len(parts) == 1 else b"".join(parts)
    except TimeoutError:
        raise BadRequest(f"body: was not complete within {limits.body_s:g} s", 408) from None


def error_answer(error: Exception) -> tuple[int, Headers, bytes]:
    """Status, headers and JSON body of an error."""
    headers = [(b"content-type", JSON)]
    text = str(error)
    if isinstance(error, BadRequest):
        status = error.status
    elif isinstance(error, Overloaded | NotReady | PublishingError):
        status = 503
        headers.append((b"retry-after", str(RETRY_S).encode()))
    elif isinstance(error, TimeoutError):
        status, text = 504, "no answer in time"
    else:
        status = 500
        if not isinstance(error, HeadraceError):
            text = f"{type(error).__name__}: {error}"
    return status, headers, orjson.dumps({"error": text})
