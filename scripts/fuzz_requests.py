"""Sends a server of scores malformed requests of many kinds, and checks how each is answered; seeded.

    headrace serve demo-run/job.yaml --listen 127.0.0.1:8080 &
    python scripts/fuzz_requests.py http://127.0.0.1:8080 '{"user": 3, "item": 7}' --each 10000

Each must be answered with a status from 400 to 499 and one line about what is wrong, on a connection that can be used
again, and must change nothing: after each kind, a good request has the same scores as before. Ends with code 1 if not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import pyarrow as pa

JSON = "application/json"
ARROW = "application/vnd.apache.arrow.stream"
MOST_RECORDS = 10_000


@dataclass(frozen=True)
class Request:
    """A request that cannot be answered."""

    body: bytes
    path: str = "/v1/score"
    method: str = "POST"
    headers: dict[str, str] = field(default_factory=lambda: {"content-type": JSON})


Kind = Callable[[random.Random, dict[str, Any]], Request]
KINDS: dict[str, Kind] = {}


def kind(make: Kind) -> Kind:
    """Add a kind of request, named like its function."""
    KINDS[make.__name__.replace("_", " ")] = make
    return make


def of_records(records: Any) -> Request:
    """A request for scores of records."""
    return Request(json.dumps({"records": records}).encode())


def arrow_bytes(table: pa.Table, **options: Any) -> bytes:
    """A table as an Arrow IPC stream."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, table.schema, **options) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def a_name(draw: random.Random, record: dict[str, Any]) -> str:
    """A column of the record."""
    return draw.choice(sorted(record))


@kind
def nothing(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b"")


@kind
def random_bytes(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b"\xff" + draw.randbytes(draw.randrange(1, 2000)))


@kind
def json_that_ends_early(draw: random.Random, record: dict[str, Any]) -> Request:
    body = of_records([record]).body
    return Request(body[: draw.randrange(1, len(body))])


@kind
def json_followed_by_something(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(of_records([record]).body + draw.choice([b"{}", b"]", b"\0", b"x"]))


@kind
def another_root(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(json.dumps(draw.choice([[record], 3, "records", None, True, 1e300])).encode())


@kind
def unknown_key(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(json.dumps({"records": [record], f"key{draw.random()}": 1}).encode())


@kind
def records_that_are_no_list(draw: random.Random, record: dict[str, Any]) -> Request:
    return of_records(draw.choice([record, 3, "x", None, True]))


@kind
def a_record_that_is_no_object(draw: random.Random, record: dict[str, Any]) -> Request:
    return of_records([record, draw.choice([3, "x", None, [record], True])])


@kind
def unknown_column(draw: random.Random, record: dict[str, Any]) -> Request:
    return of_records([record, {**record, "\u200b" * draw.randrange(1, 5) + a_name(draw, record): 1}])


@kind
def another_type(draw: random.Random, record: dict[str, Any]) -> Request:
    return of_records([{**record, a_name(draw, record): draw.choice([{"a": 1}, [[1]], [{}], "one and a half"])}])


@kind
def half_an_id(draw: random.Random, record: dict[str, Any]) -> Request:
    name = next(name for name, value in record.items() if isinstance(value, int))
    return of_records([{**record, name: draw.randrange(1000) + 0.5}])


@kind
def values_of_several_types(draw: random.Random, record: dict[str, Any]) -> Request:
    name = a_name(draw, record)
    return of_records([{**record, name: "text"}, {**record, name: [1]}, {**record, name: 2}])


@kind
def deep_nesting(draw: random.Random, record: dict[str, Any]) -> Request:
    depth = draw.randrange(2_000, 200_000)
    return Request(b'{"records": ' + b"[" * depth + b"]" * depth + b"}")


@kind
def huge_integers(draw: random.Random, record: dict[str, Any]) -> Request:
    name = next(name for name, value in record.items() if isinstance(value, int))
    return of_records([{**record, name: draw.choice([-1, 1]) * 10 ** draw.randrange(21, 400)}])


@kind
def not_a_number(draw: random.Random, record: dict[str, Any]) -> Request:
    value = draw.choice(["NaN", "Infinity", "-Infinity", "+1", "0x10", "1e", ".5", "01"])
    return Request(f'{{"records": [{{"{a_name(draw, record)}": {value}}}]}}'.encode())


@kind
def invalid_utf_8(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b'{"records": [{"' + draw.choice([b"\xff", b"\xc0\x80", b"\xed\xa0\x80"]) + b'": 1}]}')


@kind
def half_a_surrogate(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(f'{{"records": [{{"{a_name(draw, record)}": "\\ud8{draw.randrange(16, 99)}"}}]}}'.encode())


@kind
def too_many_records(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b'{"records": [' + b",".join([b"{}"] * (MOST_RECORDS + draw.randrange(1, 50))) + b"]}")


@kind
def unknown_media_type(draw: random.Random, record: dict[str, Any]) -> Request:
    given = draw.choice(["text/html", "application/octet-stream", "image/png; q=1", "x" * 500])
    return Request(of_records([record]).body, headers={"content-type": given})


@kind
def arrow_that_ends_early(draw: random.Random, record: dict[str, Any]) -> Request:
    body = arrow_bytes(pa.Table.from_pylist([record] * 20))
    return Request(body[: draw.randrange(0, len(body) - 200)], headers={"content-type": ARROW})


@kind
def arrow_with_wrong_bytes(draw: random.Random, record: dict[str, Any]) -> Request:
    body = bytearray(arrow_bytes(pa.Table.from_pylist([record] * 20)))
    for _ in range(draw.randrange(1, 5)):
        body[draw.randrange(8)] ^= 1 + draw.randrange(255)
    body[0] = 0x7F
    return Request(bytes(body), headers={"content-type": ARROW})


@kind
def arrow_with_other_columns(draw: random.Random, record: dict[str, Any]) -> Request:
    table = pa.Table.from_pylist([record] * 3)
    name = a_name(draw, record)
    wrong = pa.array([{"a": 1}] * 3) if draw.random() < 0.5 else pa.array([b"\xff"] * 3)
    place = table.schema.get_field_index(name)
    return Request(arrow_bytes(table.set_column(place, name, wrong)), headers={"content-type": ARROW})


@kind
def json_as_arrow(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(of_records([record] * draw.randrange(1, 5)).body, headers={"content-type": ARROW})


@kind
def ranking_without_a_part(draw: random.Random, record: dict[str, Any]) -> Request:
    values = draw.choice([{"context": record}, {"candidates": [record]}, {"context": [record], "candidates": []}, {}])
    return Request(json.dumps(values).encode(), path="/v1/rank")


@kind
def ranking_with_a_column_twice(draw: random.Random, record: dict[str, Any]) -> Request:
    name = a_name(draw, record)
    values = {"context": {name: record[name]}, "candidates": [record, record]}
    return Request(json.dumps(values).encode(), path="/v1/rank")


@kind
def unknown_model(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(of_records([record]).body, path=f"/v1/models/{draw.choice(['x', 'a%2Fb', '%00', 'y' * 900])}/score")


@kind
def unknown_route(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b"", path=draw.choice(["/", "/v1", "/v2/score", "/v1/score/", "/../etc/passwd", "/" + "z" * 3000]))


@kind
def another_method(draw: random.Random, record: dict[str, Any]) -> Request:
    return Request(b"", method=draw.choice(["GET", "PUT", "DELETE", "PATCH", "OPTIONS"]))


@kind
def a_long_request_id(draw: random.Random, record: dict[str, Any]) -> Request:
    headers = {"content-type": JSON, "x-request-id": "i" * draw.randrange(201, 3000)}
    return Request(of_records([record]).body, headers=headers)


@kind
def labels_of_another_form(draw: random.Random, record: dict[str, Any]) -> Request:
    values = draw.choice([{}, [], {"labels": 3}, {"labels": [3]}, {"labels": [{"click": [1]}]}, {"labels": None}])
    return Request(json.dumps(values).encode(), path="/v1/labels")


@dataclass
class Counts:
    """What became of the requests: how many of each kind had each status, and what was wrong with answers."""

    outcomes: Counter[tuple[str, int]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)


class Connection:
    """Calls a server, on one connection as long as it stays open."""

    def __init__(self, url: str) -> None:
        self._where = urlsplit(url)
        self._http: http.client.HTTPConnection | None = None

    def call(self, request: Request) -> tuple[int, bytes]:
        """Send a request; returns status and body."""
        if self._http is None:
            self._http = http.client.HTTPConnection(str(self._where.hostname), self._where.port, timeout=60)
        try:
            self._http.request(request.method, request.path, request.body, request.headers)
            answer = self._http.getresponse()
            status, body = answer.status, answer.read()
        except (http.client.HTTPException, OSError):
            self.close()
            raise
        return status, body

    def close(self) -> None:
        """Close the connection; the next call opens another one."""
        if self._http is not None:
            self._http.close()
            self._http = None


def fuzz(url: str, record: dict[str, Any], each: int, *, seed: int = 0) -> Counts:
    """Send requests of each kind.

    Args:
        url: The server.
        record: A record that it answers, with an integer among its values.
        each: Requests of each kind.
        seed: Seed of what is wrong.
    """
    counts, connection = Counts(), Connection(url)
    good = of_records([record])
    expected = scores_of(connection, good)
    for name, make in KINDS.items():
        draw = random.Random(f"{seed} {name}")
        for _ in range(each):
            request = make(draw, record)
            try:
                status, body = connection.call(request)
            except (http.client.HTTPException, OSError) as error:
                counts.faults.append(f"{name}: no answer: {error!r}")
                continue
            counts.outcomes[name, status] += 1
            if fault := fault_of(status, body):
                counts.faults.append(f"{name}: {fault}: {request.body[:100]!r}")
        if (found := scores_of(connection, good)) != expected:
            counts.faults.append(f"after {name}: a good request has {found}, expected {expected}")
    connection.close()
    return counts


def scores_of(connection: Connection, request: Request) -> Any:
    """The scores of a good request."""
    status, body = connection.call(request)
    return json.loads(body)["scores"] if status == 200 else (status, body)


def fault_of(status: int, body: bytes) -> str | None:
    """What is wrong with an answer; None if nothing is."""
    if not 400 <= status < 500:
        return f"status {status}, expected one from 400 to 499: {body[:200]!r}"
    try:
        text = json.loads(body)["error"]
    except (ValueError, KeyError, TypeError):
        return f"status {status} without an error in JSON: {body[:200]!r}"
    if not isinstance(text, str) or not text.strip() or "\n" in text or len(text) > 1_000:
        return f"not one clear line: {text!r}"
    return None


def main() -> None:
    """Fuzz a server, and print what became of the requests."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("url", help="URL of the server")
    parser.add_argument("record", type=json.loads, help="a record that it answers, as JSON, with an integer in it")
    parser.add_argument("--each", type=int, default=10_000, help="requests of each kind [10000]")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = fuzz(options.url, options.record, options.each, seed=options.seed)
    for (name, status), count in sorted(counts.outcomes.items()):
        print(f"{name:32} {status}  {count:,}")
    print(f"{sum(counts.outcomes.values()):,} requests of {len(KINDS)} kinds, {len(counts.faults)} faults")
    for fault in counts.faults[:20]:
        print(fault)
    sys.exit(bool(counts.faults))


if __name__ == "__main__":
    main()
