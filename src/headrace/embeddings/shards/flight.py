"""What all servers and clients over Arrow Flight share: tokens, and errors as one line."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings.shards.requests import MAX_LINE
from headrace.embeddings.shards.security import ServerSecurity, split_address
from headrace.errors import ConfigError, HeadraceError

__all__ = ["BROKEN", "SecureServer", "as_flight_errors", "first_line", "flight_error", "location"]

BROKEN = fl.FlightUnavailableError, fl.FlightCancelledError, fl.FlightTimedOutError
"""Errors of a connection, after which a request can be sent again."""


class SecureServer(fl.FlightServerBase):  # type: ignore[misc]
    """A Flight server with token and TLS.

    Args:
        listen: Address "host:port"; port 0 for any free port, see the attribute `port`.
        security: Security settings; by default neither.

    Raises:
        ConfigError: An address other than loopback lacks token or TLS, certificate and key cannot be used, or the
            address is in use.
    """

    def __init__(self, listen: str, security: ServerSecurity | None) -> None:
        security = security or ServerSecurity()
        host, port = split_address(listen)
        security.check(host)
        where = location(host, port, is_secure=security.key is not None)
        certificates = None if security.key is None else [(security.certificate, security.key)]
        try:
            super().__init__(where, tls_certificates=certificates, middleware={"token": _TokenCheck(security)})
        except pa.ArrowException as error:
            raise ConfigError(f"--listen {listen}: cannot listen on this address; is the port in use?") from error


class _TokenCheck(fl.ServerMiddlewareFactory):  # type: ignore[misc]
    """Refuses calls without the token."""

    def __init__(self, security: ServerSecurity) -> None:
        self._security = security

    def start_call(self, info: Any, headers: dict[str, list[str]]) -> None:
        """Check the headers of a call."""
        if not self._security.accepts(headers.get("authorization", [""])[0]):
            raise fl.FlightUnauthenticatedError("the token is missing or wrong")


@contextmanager
def as_flight_errors(kind: type[HeadraceError]) -> Iterator[None]:
    """Convert every error to one line for the client. Unexpected errors, which get a kind, end the request only."""
    try:
        yield
    except HeadraceError as error:
        raise flight_error(error) from error
    except fl.FlightError:  # the connection broke
        raise
    except Exception as error:
        line = " ".join(f"{type(error).__name__}: {error}".split())
        raise flight_error(kind(f"request: {line[:MAX_LINE]}")) from error


def flight_error(error: HeadraceError) -> fl.FlightError:
    """A Flight error with the kind of error and its line."""
    return fl.FlightServerError(str(error), extra_info=type(error).__name__.encode())


def first_line(error: Exception) -> str:
    """The server's error message without gRPC's additions."""
    text = str(error).split(". gRPC client debug context")[0].split("\n")[0]
    return text.removeprefix("Flight error: ").split(". Detail: ")[0]


def location(host: str, port: int, *, is_secure: bool) -> str:
    """The location of a server, with TLS or without."""
    return f"{'grpc+tls' if is_secure else 'grpc'}://{f'[{host}]' if ':' in host else host}:{port}"
