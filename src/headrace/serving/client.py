"""`Client`: asks a server of scores, for programs in Python."""

from __future__ import annotations

import http.client
import json
import ssl
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from headrace.errors import ConfigError, HeadraceError

__all__ = ["Client", "Refused", "Scores"]

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"

Float32s = npt.NDArray[np.float32]
Record = Mapping[str, Any]


class Refused(HeadraceError):
    """A server refused a request.

    Attributes:
        status: HTTP status; 503 can be tried again.
    """

    def __init__(self, text: str, status: int) -> None:
        super().__init__(text)
        self.status = status


@dataclass(frozen=True, eq=False)
class Scores:
    """The answer to a request.

    Attributes:
        scores: float32 [N] for each label: probabilities, or the values of numbers.
        version: The version that answered.
        age_s: Its age in seconds.
        request: The id of the request, for `Client.labels`.
    """

    scores: dict[str, Float32s]
    version: int
    age_s: float
    request: str


class Client:
    """Asks one server, on one connection for each thread. Thread-safe; a context manager.

    Args:
        url: The server, such as `http://127.0.0.1:8080`.
        model: Name of the model that is asked; None for the one that the server chooses.
        token: The server's token.
        authority: PEM file with the authority of the server's certificate.
        timeout_s: Seconds to wait for an answer.

    Raises:
        ConfigError: The URL is none of HTTP.
    """

    def __init__(
        self,
        url: str,
        *,
        model: str | None = None,
        token: str | None = None,
        authority: str | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        where = urlsplit(url)
        if where.scheme not in ("http", "https") or not where.hostname:
            raise ConfigError(f"url: given {url}, expected http://HOST:PORT or https://HOST:PORT")
        self._where, self._timeout_s = where, timeout_s
        self._tls = ssl.create_default_context(cafile=authority) if where.scheme == "https" else None
        self._path = "/v1" if model is None else f"/v1/models/{model}"
        self._headers = {} if token is None else {"authorization": f"Bearer {token}"}
        self._of_thread = threading.local()
        self._connections: list[http.client.HTTPConnection] = []

    def score(self, rows: Sequence[Record] | pa.Table | pa.RecordBatch, *, request: str | None = None) -> Scores:
        """Scores of rows: records, or a table, which is sent as Arrow.

        Args:
            rows: N rows with columns of the log.
            request: Id of the request; None for one that the server makes.

        Raises:
            Refused: The server refused.
            HeadraceError: It cannot be reached.
        """
        if isinstance(rows, pa.Table | pa.RecordBatch):
            return self._scores("score", ARROW, _arrow_bytes(rows), request)
        return self._scores("score", JSON, _json_bytes({"records": list(rows)}), request)

    def rank(
        self,
        context: Record,
        candidates: Sequence[Record] | pa.Table | pa.RecordBatch,
        *,
        request: str | None = None,
    ) -> Scores:
        """Scores of candidates that share a context, which is sent and computed once.

        Args:
            context: Columns of the log that are the same for all.
            candidates: N rows with other columns.
            request: Id of the request; None for one that the server makes.

        Raises:
            Refused, HeadraceError: As for `score`.
        """
        if isinstance(candidates, pa.Table | pa.RecordBatch):
            body = _arrow_bytes(pa.Table.from_pylist([dict(context)])) + _arrow_bytes(candidates)
            return self._scores("rank", ARROW, body, request)
        values = {"context": dict(context), "candidates": list(candidates)}
        return self._scores("rank", JSON, _json_bytes(values), request)

    def labels(self, request: str, **labels: Sequence[float | None]) -> bool:
        """Send what happened after a request.

        Args:
            request: Its id.
            labels: N values for each label that is known; None for unknown.

        Returns:
            Whether the server still knew the request.

        Raises:
            Refused, HeadraceError: As for `score`.
        """
        body = _json_bytes({"labels": [{"request": request, **{name: list(each) for name, each in labels.items()}}]})
        return bool(json.loads(self._call("POST", "/v1/labels", JSON, body))["unknown_requests"] == 0)

    def model(self) -> dict[str, Any]:
        """Version, step, age and more of the model that the server chooses.

        Raises:
            Refused, HeadraceError: As for `score`.
        """
        found: dict[str, Any] = json.loads(self._call("GET", "/v1/model", JSON, b""))
        return found

    def close(self) -> None:
        """Close the connections of all threads."""
        for connection in self._connections:
            connection.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def _scores(self, route: str, content_type: str, body: bytes, request: str | None) -> Scores:
        headers = {} if request is None else {"x-request-id": request}
        answer = self._call("POST", f"{self._path}/{route}", content_type, body, headers)
        if content_type == JSON:
            values = json.loads(answer)
            scores = {name: np.array(column, np.float32) for name, column in values["scores"].items()}
            return Scores(scores, int(values["version"]), float(values["age_s"]), str(values["request"]))
        table = pa.ipc.open_stream(answer).read_all()
        about = {name.decode(): value.decode() for name, value in table.schema.metadata.items()}
        columns = {name: column.to_numpy() for name, column in zip(table.column_names, table.columns, strict=True)}
        return Scores(columns, int(about["version"]), float(about["age_s"]), about["request"])

    def _call(
        self, method: str, path: str, content_type: str, body: bytes, headers: Mapping[str, str] | None = None
    ) -> bytes:
        sent = {"content-type": content_type, "accept": content_type, **self._headers, **(headers or {})}
        for is_last in (False, True):
            connection = self._connection()
            try:
                connection.request(method, path, body or None, sent)
                answer = connection.getresponse()
                text = answer.read()
            except (http.client.HTTPException, OSError) as error:
                connection.close()
                self._of_thread.connection = None
                if is_last:  # the first may have been closed meanwhile, as it was idle
                    raise HeadraceError(f"{self._where.geturl()}: cannot be reached: {error}") from error
                continue
            if answer.status != 200:
                raise Refused(_error_of(text), answer.status)
            return text
        raise AssertionError

    def _connection(self) -> http.client.HTTPConnection:
        connection: http.client.HTTPConnection | None = getattr(self._of_thread, "connection", None)
        if connection is None:
            host, port = str(self._where.hostname), self._where.port
            if self._tls is None:
                connection = http.client.HTTPConnection(host, port, timeout=self._timeout_s)
            else:
                connection = http.client.HTTPSConnection(host, port, timeout=self._timeout_s, context=self._tls)
            self._of_thread.connection = connection
            self._connections.append(connection)
        return connection


def _json_bytes(values: Any) -> bytes:
    return json.dumps(values, separators=(",", ":")).encode()


def _arrow_bytes(rows: pa.Table | pa.RecordBatch) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write(rows)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def _error_of(text: bytes) -> str:
    try:
        return str(json.loads(text)["error"])
    except (ValueError, KeyError, TypeError):
        return text[:200].decode("utf-8", "replace")
