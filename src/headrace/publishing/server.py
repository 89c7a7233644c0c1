"""`PublicationServer`: a folder of publications on the network, over Arrow Flight; see `docs/publishing.md`.

The server knows nothing of who writes the folder, so publishers and replicas use it alike. Each request has a thread,
so a slow client holds up nobody else.
"""

from __future__ import annotations

import json
import os
import re
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings.changes.chains import SEGMENT_NAME
from headrace.embeddings.changes.segment_folder import NAME as SEGMENTS
from headrace.embeddings.shards.flight import SecureServer, as_flight_errors
from headrace.embeddings.shards.security import ServerSecurity
from headrace.errors import PublishingError, TornCheckpoint
from headrace.manifest import MANIFEST, open_regular
from headrace.publishing.publications import PublicationFolder

__all__ = ["ACTIONS", "FILE_NAME", "Act", "PublicationServer", "RawAct"]

ACTIONS = {
    "status": "Versions in the folder",
    "wait": "The same, as soon as there is a version after `after`, or after `timeout_s`",
    "manifest": "The manifest of a version, as it is",
}

CHUNK_BYTES = 1 << 20
"""Bytes per message: small beside what a stream buffers, large beside the cost of a message."""
LONGEST_WAIT_S = 60.0
MAX_WAITING = 256
"""Requests that may wait at a time, each in a thread; others are answered at once."""
POLL_S = 0.02
SETTLED_NS = 50_000_000
"""Age of a folder's time of change from which on a listing is valid: files that appear within a tick of the clock do
not change it."""
MAX_BODY = 1 << 16

FILE_NAME = re.compile(rf"[0-9]{{8,}}/[A-Za-z0-9_][A-Za-z0-9._-]*|{SEGMENTS}/[^/\0]+/{SEGMENT_NAME}")
"""Files that can be fetched, by path below the folder."""

_SCHEMA = pa.schema([("bytes", pa.binary())])

Act = Callable[[dict[str, Any]], Any]
"""An action: a function from a JSON-able body to a JSON-able answer."""
RawAct = Callable[[bytes], bytes]
"""An action of bytes."""


class PublicationServer(SecureServer):
    """A Flight server for a folder of publications. An invalid request gets a one-line error; the server continues.

    Args:
        folder: The folder; it may be empty.
        listen: Address "host:port"; port 0 for any free port, see the attribute `port`.
        security: Token and TLS.
        actions: Further actions by name.
        raw_actions: Further actions whose bodies and answers are bytes.

    Raises:
        ConfigError: An address other than loopback lacks token or TLS, certificate and key cannot be used, or the
            address is in use.
    """

    def __init__(
        self,
        folder: PublicationFolder,
        listen: str,
        *,
        security: ServerSecurity | None = None,
        actions: Mapping[str, Act] | None = None,
        raw_actions: Mapping[str, RawAct] | None = None,
    ) -> None:
        self.folder = folder
        self._actions: dict[str, Act] = {"status": self._status, "wait": self._wait, **(actions or {})}
        self._raw_actions = dict(raw_actions or {})
        self._stopping = threading.Event()
        self._waiting = threading.Semaphore(MAX_WAITING)
        self._listed: tuple[int, list[int]] = -1, []  # time of change of the folder, and its versions
        super().__init__(listen, security)

    def shutdown(self) -> None:
        """End waiting requests, and stop."""
        self._stopping.set()
        super().shutdown()

    def do_action(self, context: Any, action: Any) -> list[Any]:
        """Run an action; body and answer are JSON."""
        with as_flight_errors(PublishingError):
            if action.type in self._raw_actions:
                return [fl.Result(pa.py_buffer(self._raw_actions[action.type](action.body.to_pybytes())))]
            body = _body_of(action.type, action.body.to_pybytes())
            if action.type == "manifest":
                answer = self._manifest(body)
            elif action.type in self._actions:
                answer = json.dumps(self._actions[action.type](body)).encode()
            else:
                names = ", ".join(["manifest", *self._actions, *self._raw_actions])
                raise PublishingError(f"action {action.type[:40]!r}: expected one of: {names}")
            return [fl.Result(pa.py_buffer(answer))]

    def list_actions(self, context: Any) -> list[tuple[str, str]]:
        """Names and descriptions of actions."""
        return [(name, ACTIONS.get(name, name)) for name in ["manifest", *self._actions, *self._raw_actions]]

    def do_get(self, context: Any, ticket: Any) -> Any:
        """Stream a file from an offset; the ticket is JSON: `file`, its path below the folder, and `offset`."""
        with as_flight_errors(PublishingError):
            asked = _body_of("file", ticket.ticket)
            name, offset = asked.get("file"), _check_number("offset", asked.get("offset", 0))
            if not isinstance(name, str) or not FILE_NAME.fullmatch(name) or "/../" in name or "/./" in name:
                raise PublishingError(f"file: given {str(name)[:200]!r}, expected a file of a version, or a segment")
            try:
                file = open_regular(self.folder.path / name)
            except TornCheckpoint as error:
                raise PublishingError(f"{name}: is not here (any more), expected a file of a version here") from error
            num_bytes = os.fstat(file.fileno()).st_size
            if offset > num_bytes:
                file.close()
                raise PublishingError(f"{name}: offset: given {offset}, expected up to {num_bytes}")
            file.seek(offset)
            return fl.GeneratorStream(_SCHEMA, _chunks(file))

    def do_put(self, context: Any, descriptor: Any, reader: Any, writer: Any) -> None:
        """Not part of the protocol; always refused."""
        with as_flight_errors(PublishingError):
            raise PublishingError("do_put: a server of publications takes no data")

    def _versions(self) -> list[int]:
        """Versions in the folder, which is only listed if it has changed."""
        try:
            changed = self.folder.path.stat().st_mtime_ns
        except OSError:
            return []
        listed, versions = self._listed
        if listed != changed:
            versions = self.folder.versions()
            if time.time_ns() - changed > SETTLED_NS:
                self._listed = changed, versions
        return versions

    def _status(self, body: dict[str, Any]) -> dict[str, Any]:
        versions = self._versions()
        return {"newest": versions[-1] if versions else 0, "versions": versions}

    def _wait(self, body: dict[str, Any]) -> dict[str, Any]:
        after, timeout_s = _check_number("after", body.get("after", 0)), body.get("timeout_s", LONGEST_WAIT_S)
        if not isinstance(timeout_s, int | float) or not 0 <= timeout_s <= LONGEST_WAIT_S:
            raise PublishingError(f"wait: timeout_s: given {timeout_s!r}, expected 0 to {LONGEST_WAIT_S:g}")
        if not self._waiting.acquire(blocking=False):
            return self._status(body)
        try:
            until = time.monotonic() + timeout_s
            while max(self._versions(), default=0) <= after and time.monotonic() < until:
                if self._stopping.wait(POLL_S):
                    break
        finally:
            self._waiting.release()
        return self._status(body)

    def _manifest(self, body: dict[str, Any]) -> bytes:
        version = _check_number("version", body.get("version"))
        try:
            with open_regular(self.folder.place(version) / MANIFEST) as file:
                return file.read()
        except TornCheckpoint as error:
            versions = self._versions()
            known = f"{versions[0]} to {versions[-1]}" if versions else "none yet"
            raise PublishingError(f"version {version}: is not here, expected one of: {known}") from error


def _body_of(what: str, body: bytes) -> dict[str, Any]:
    try:
        values = json.loads(body[: MAX_BODY + 1] or b"{}") if len(body) <= MAX_BODY else None
    except (ValueError, RecursionError) as error:
        raise PublishingError(f"{what[:40]}: is not JSON") from error
    if not isinstance(values, dict):
        raise PublishingError(f"{what[:40]}: expected a JSON object of up to {MAX_BODY:,} bytes")
    return values


def _check_number(name: str, value: Any) -> int:
    if type(value) is not int or not 0 <= value < 1 << 62:
        raise PublishingError(f"{name}: given {str(value)[:40]!r}, expected a whole number from 0")
    return value


def _chunks(file: Any) -> Iterator[pa.RecordBatch]:
    with file:
        while data := file.read(CHUNK_BYTES):
            yield pa.record_batch([pa.array([data], pa.binary())], schema=_SCHEMA)
