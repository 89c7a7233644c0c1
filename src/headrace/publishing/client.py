"""`PublicationClient`: reads a folder of publications of another process."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings.shards.flight import first_line, location
from headrace.embeddings.shards.security import ClientSecurity, split_address
from headrace.errors import PublishingError, VersionGone

__all__ = ["PUBLISH_TOKEN", "PublicationClient", "ServerStatus"]

PUBLISH_TOKEN = "HEADRACE_PUBLISH_TOKEN"
"""Environment variable with the token of servers of publications, used if no file is given."""


@dataclass(frozen=True)
class ServerStatus:
    """What a server has.

    Attributes:
        newest: Its newest version; 0 if it has none.
        versions: All of its versions, ascending.
    """

    newest: int
    versions: tuple[int, ...]


class PublicationClient:
    """Client of a `PublicationServer`. Thread-safe. It connects with the first call, and again after an error.

    Args:
        address: Address, "host:port".
        security: Token and certificate authority.
        timeout_s: Maximum time for an answer, and for each part of a file.

    Raises:
        ConfigError: A server on another machine needs token and authority.
    """

    def __init__(self, address: str, *, security: ClientSecurity | None = None, timeout_s: float = 10.0) -> None:
        security = security or ClientSecurity()
        host, port = split_address(address)
        security.check(host, who="publisher", key="--tls-authority")
        self.address = address
        self._timeout_s = timeout_s
        where = location(host, port, is_secure=security.authority is not None)
        self._headers = [] if security.token is None else [(b"authorization", f"Bearer {security.token}".encode())]
        self._client = fl.connect(where, tls_root_certs=security.authority)

    def act(self, action: str, body: dict[str, Any], *, timeout_s: float | None = None) -> bytes:
        """Run an action of the server, see `PublicationServer`, and return its answer.

        Raises:
            PublishingError: It refused, or cannot be reached.
        """
        return self.act_raw(action, json.dumps(body).encode(), timeout_s=timeout_s)

    def act_raw(self, action: str, body: bytes, *, timeout_s: float | None = None) -> bytes:
        """Run an action whose body is bytes.

        Raises:
            VersionGone: The version that it needs is not in memory there.
            PublishingError: See `act`.
        """
        options = fl.FlightCallOptions(headers=self._headers, timeout=timeout_s or self._timeout_s)
        try:
            (result,) = self._client.do_action(fl.Action(action, body), options)
        except (pa.ArrowException, OSError) as error:
            if getattr(error, "extra_info", b"") == VersionGone.__name__.encode():
                raise VersionGone(f"{self.address}: {first_line(error)}") from error
            raise PublishingError(f"{self.address}: {first_line(error)}") from error
        data: bytes = result.body.to_pybytes()
        return data

    def status(self) -> ServerStatus:
        """The versions of the server.

        Raises:
            PublishingError: See `act`.
        """
        return self._status_of(self.act("status", {}))

    def wait(self, after: int, *, timeout_s: float = 30.0) -> ServerStatus:
        """The versions of the server, as soon as there is one after `after`, or after a time.

        Raises:
            PublishingError: See `act`.
        """
        body = {"after": after, "timeout_s": timeout_s}
        return self._status_of(self.act("wait", body, timeout_s=timeout_s + self._timeout_s))

    def manifest(self, version: int) -> bytes:
        """The manifest of a version, as it is in its file.

        Raises:
            PublishingError: See `act`.
        """
        return self.act("manifest", {"version": version})

    def read(self, file: str, offset: int = 0) -> Iterator[bytes]:
        """Read a file, a part at a time.

        Args:
            file: Its path below the folder: `00000042/dense.safetensors`, or `segments/<table group>/<name>`.
            offset: Where to begin.

        Raises:
            PublishingError: It is not there, or the connection broke; what was read before can be kept.
        """
        ticket = fl.Ticket(json.dumps({"file": file, "offset": offset}).encode())
        reader: Any = None
        is_late = threading.Event()

        def give_up() -> None:
            is_late.set()
            reader.cancel()

        try:
            reader = self._client.do_get(ticket, fl.FlightCallOptions(headers=self._headers))
            while True:
                deadline = threading.Timer(self._timeout_s, give_up)
                deadline.daemon = True
                deadline.start()
                try:
                    chunk = reader.read_chunk()
                except StopIteration:
                    return
                finally:
                    deadline.cancel()
                for value in chunk.data.column("bytes"):
                    yield value.as_py()
        except (pa.ArrowException, OSError) as error:
            reason = f"no data for {self._timeout_s:g} s" if is_late.is_set() else first_line(error)
            raise PublishingError(f"{self.address}: {file}: {reason}") from error

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _status_of(self, answer: bytes) -> ServerStatus:
        try:
            values = json.loads(answer)
            return ServerStatus(int(values["newest"]), tuple(int(version) for version in values["versions"]))
        except (ValueError, KeyError, TypeError) as error:
            raise PublishingError(f"{self.address}: answered something else than a status: {answer[:80]!r}") from error
