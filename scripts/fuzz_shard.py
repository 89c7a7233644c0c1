"""Sends a real shard thousands of malformed requests, and counts what became of them; seeded.

    python scripts/fuzz_shard.py --requests 5000 --seed 0

Each is a good request with something changed: bodies and headers field by field, values out of range, of other types,
deeply nested or cut off, streams with other columns, columns that claim more rows than they have, raw bytes on the
socket. After each the shard must still serve the trainer that was there before, with the same rows. Ends with code 1 if
the shard died, said something that is not one clear line, or changed a row.
"""

from __future__ import annotations

import argparse
import json
import random
import socket
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.flight as fl

from headrace.embeddings import Keys, TableConfig
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.plan import make_plan
from headrace.embeddings.shards.requests import OpenRequest
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.embeddings.shards.wire import (
    PROTOCOL,
    EvictHeader,
    ReadHeader,
    StreamHeader,
    UpdateHeader,
    pack_ids,
    pack_rows,
    read_schema,
    update_schema,
)
from headrace.embeddings.stores.remote import RemoteStore

TABLES = (
    TableConfig(name="users", num_embeddings=50, embedding_dim=4),
    TableConfig(name="items", kind="collisionless", num_embeddings=8, embedding_dim=4),
)
SPEC = TableGroupSpec(TABLES, seed=3)
KEYS = Keys(np.array([0, 0, 1], np.int32), np.array([1, 7, 10**15]), np.ones(3, np.int32))

ODD_VALUES: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2, 2**31, 2**32, 2**53, 2**63, 2**64, 10**30, -(2**63), 1.5, 1e308, -0.0),
    *(float("nan"), float("inf"), "", "0", "x" * 5_000, "\x00", "a\nb", "../..", "%s%n", "\ud800"),
    *([], {}, [[]], [None], [-1], [2**40] * 3, {"a": 1}, [1] * 5_000),
)
ODD_BYTES = (
    b"",
    b"\x00" * 64,
    b"\xff\xfe",
    b"{",
    b"[" * 50_000,
    b'{"a":' * 20_000,
    b"\x80\x04N.",
    b"null",
    b"1e999999",
)
LONGEST_LINE = 600
TIMEOUT_S = 10.0


@dataclass
class Counts:
    """What became of the requests.

    Attributes:
        outcomes: (kind of request, refused or accepted) -> how often.
        faults: Lines about what should not have happened.
    """

    outcomes: Counter[tuple[str, str]] = field(default_factory=Counter)
    faults: list[str] = field(default_factory=list)

    def total(self, outcome: str) -> int:
        """Of all kinds."""
        return sum(count for (_, found), count in self.outcomes.items() if found == outcome)

    def table(self) -> str:
        """As text."""
        lines = [f"{'kind':<14} {'refused':>8} {'accepted':>9}"]
        for kind in sorted({kind for kind, _ in self.outcomes}):
            refused, accepted = self.outcomes[kind, "refused"], self.outcomes[kind, "accepted"]
            lines.append(f"{kind:<14} {refused:>8,} {accepted:>9,}")
        faults = f"{len(self.faults):,} faults: the shard died, or changed a row, or gave no clear line"
        total = f"{self.total('refused'):,} refused with one line, {self.total('accepted'):,} accepted as valid"
        return "\n".join([*lines, total, faults, *self.faults[:20]])


class Fuzzer:
    """Makes malformed requests and sends them.

    Args:
        address: Of the shard, which serves `SPEC` as table group "t" to a session "s" of trainer 0.
        seed: Of the requests.
        member: The name of that trainer's client: requests that come from nobody would be refused for that alone.
    """

    def __init__(self, address: str, seed: int, member: str) -> None:
        self._member = member
        self._random = random.Random(seed)
        self._address = address
        self._client = fl.connect(f"grpc://{address}")
        self._kinds: dict[str, Callable[[], None]] = {
            "open": lambda: self._act("open"),
            "end_window": lambda: self._act("end_window"),
            "save": lambda: self._act("save"),
            "other action": lambda: self._send_action(self._random.choice(["", "sudo", "\n", "x" * 9_999]), b"{}"),
            "stream": self._open_stream,
            "acknowledge": lambda: self._act("acknowledge"),
            "changes": self._get_changes,
            "read": lambda: self._ask("read"),
            "update": lambda: self._ask("update"),
            "evict": self._evict,
            "columns": self._send_columns,
            "raw bytes": self._send_bytes,
        }

    def send_one(self, counts: Counts, kind: str | None = None) -> None:
        """Send a request of a kind, None for a random one, and note what came of it."""
        kind = kind or self._random.choice(list(self._kinds))
        try:
            self._kinds[kind]()
            counts.outcomes[kind, "accepted"] += 1
        except (fl.FlightError, pa.ArrowException) as error:
            line = str(error).split(". gRPC client debug context")[0].split(". Detail: ")[0]
            counts.outcomes[kind, "refused"] += 1
            if "\n" in line or len(line) > LONGEST_LINE or "Traceback" in line:
                counts.faults.append(f"{kind}: no clear line: {line[:200]!r}")
            if isinstance(error, fl.FlightUnavailableError | fl.FlightTimedOutError | fl.FlightInternalError):
                counts.faults.append(f"{kind}: {type(error).__name__}: {line[:200]!r}")
        except OSError:  # raw bytes: the connection is closed
            counts.outcomes[kind, "refused"] += 1

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _act(self, action: str) -> None:
        session = self._random.choice(["s", "s", "other"])
        plan = make_plan(TABLES, 1)
        body: dict[str, Any] = {
            "open": OpenRequest("fuzzed", session, 0, 1, {"t": (SPEC, plan)}, 0, None, True, 0, self._member).to_dict(),
            "end_window": {"session": session, "window": 1, "step": 0, "client": self._member},
            "save": {"session": session, "folder": ".00000001.1.partial", "step": 0, "client": self._member},
            "acknowledge": {
                "session": session,
                "table_group": "t",
                "consumer": "copy",
                "version": 0,
                "client": self._member,
            },
        }[action]
        self._send_action(action, self._damaged(body))

    def _send_action(self, action: str, body: bytes) -> None:
        list(self._client.do_action(fl.Action(action, body), fl.FlightCallOptions(timeout=TIMEOUT_S)))

    def _get_changes(self) -> None:
        asked = {"session": "s", "table_group": "t", "since": 0, "step": 1, "client": self._member}
        ticket = fl.Ticket(self._damaged(asked))
        self._client.do_get(ticket, fl.FlightCallOptions(timeout=TIMEOUT_S)).read_all()

    def _stream_header(self, call: str) -> StreamHeader:
        return StreamHeader(PROTOCOL, call, "s", "t", 0, "fp32", self._member)

    def _open_stream(self) -> None:
        call = self._random.choice(["read", "update", "evict"])
        command = self._damaged(json.loads(self._stream_header(call).to_json()))
        request = pack_ids(KEYS, with_counts=False)
        self._exchange(command, request.schema, request, ReadHeader(0, False, [2, 1]).to_json())

    def _ask(self, call: str) -> None:
        """A good stream, with a damaged header or damaged values."""
        reads = call == "read"
        header = ReadHeader(0, False, [2, 1]) if reads else UpdateHeader(1, 8, [2, 1])
        schema = read_schema(with_counts=False) if reads else update_schema("fp32", 4)
        metadata, keys = header.to_json(), KEYS
        gradients = np.zeros((3, 4), np.float32)
        if self._random.random() < 0.6:
            metadata = self._damaged(json.loads(metadata))
        elif reads:
            ids = KEYS.ids.copy()
            ids[self._random.randrange(2)] = self._random.choice([-1, 50, 2**62])
            keys = Keys(KEYS.tables, ids, KEYS.counts)
        elif self._random.random() < 0.3:
            counts = KEYS.counts.copy()
            counts[self._random.randrange(3)] = self._random.choice([-1, -(2**31)])
            keys = Keys(KEYS.tables, KEYS.ids, counts)
        elif self._random.random() < 0.5:
            gradients[self._random.randrange(3), 1] = self._random.choice([np.nan, np.inf, -np.inf])
        else:
            keys = Keys(KEYS.tables, np.array([7, 7, 1]), KEYS.counts)
        rows = gradients.view(np.uint8)
        scales = np.empty(0, np.float32)
        request = pack_ids(keys, with_counts=False) if reads else pack_rows(keys, rows, scales, schema)
        self._exchange(self._stream_header(call).to_json(), schema, request, metadata)

    def _evict(self) -> None:
        """A good stream, with a damaged header or ids that do not fit; none of `KEYS`, so that rows stay."""
        metadata, ids = EvictHeader(1, 1, [2, 1]).to_json(), np.array([2, 3, 5])
        if self._random.random() < 0.6:
            metadata = self._damaged(json.loads(metadata))
        else:
            ids[self._random.randrange(2)] = self._random.choice([-1, 3, 50, 2**62])
        request = pack_ids(Keys(KEYS.tables, ids, KEYS.counts), with_counts=False)
        self._exchange(self._stream_header("evict").to_json(), request.schema, request, metadata)

    def _send_columns(self) -> None:
        """Other columns than those of the protocol."""
        rng = self._random
        types = [pa.int64(), pa.int32(), pa.float32(), pa.binary(16), pa.string(), pa.list_(pa.int64()), pa.null()]
        names = ["id", "count", "row", "scale", "", "x" * 2_000]
        fields = [pa.field(rng.choice(names), rng.choice(types)) for _ in range(rng.randrange(4))]
        schema = pa.schema(fields)
        nulls = pa.RecordBatch.from_arrays([pa.nulls(3, each.type) for each in fields], schema=schema)
        call = rng.choice(["read", "update"])
        header = ReadHeader(0, False, [2, 1]) if call == "read" else UpdateHeader(1, 8, [2, 1])
        self._exchange(self._stream_header(call).to_json(), schema, nulls, header.to_json())

    def _send_bytes(self) -> None:
        """What does not speak gRPC."""
        host, _, port = self._address.rpartition(":")
        with socket.create_connection((host, int(port)), timeout=TIMEOUT_S) as connection:
            connection.sendall(
                self._random.choice([b"", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"]) + self._random.randbytes(200)
            )
        raise ConnectionResetError

    def _exchange(self, command: bytes, schema: pa.Schema, request: pa.RecordBatch, metadata: bytes) -> None:
        options = fl.FlightCallOptions(timeout=TIMEOUT_S)
        writer, reader = self._client.do_exchange(fl.FlightDescriptor.for_command(command), options)
        with suppress(fl.FlightError, pa.ArrowException, StopIteration):
            writer.begin(schema)
            writer.write_with_metadata(request, metadata)
            writer.done_writing()
            reader.read_chunk()
        writer.close()

    def _damaged(self, values: dict[str, Any]) -> bytes:
        """As JSON with one to three fields changed, left out or added; or cut off; or not JSON."""
        rng = self._random
        if rng.random() < 0.1:
            return rng.choice(ODD_BYTES)
        values = json.loads(json.dumps(values))
        for _ in range(rng.randint(1, 3)):
            place, key = rng.choice(list(_places(values)))
            if rng.random() < 0.1 and isinstance(place, dict):
                del place[key]
            elif rng.random() < 0.1 and isinstance(place, dict):
                place[rng.choice(["", "x", "__class__", "é"])] = deepcopy(rng.choice(ODD_VALUES))
            else:
                place[key] = deepcopy(rng.choice(ODD_VALUES))
            if not values:
                break
        text = json.dumps(values).encode()
        return text[: rng.randrange(len(text))] if rng.random() < 0.1 else text


def _places(values: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in nested values."""
    items = list(values.items()) if isinstance(values, dict) else list(enumerate(values))
    for key, value in items:
        yield values, key
        if isinstance(value, dict | list) and value:
            yield from _places(value)


def fuzz(address: str, num_requests: int, seed: int, is_alive: Callable[[], bool] = lambda: True) -> Counts:
    """Send requests to a shard that no session uses, and watch the rows of a trainer meanwhile.

    The last tenth are requests to open a session, once the trainer is gone and valid ones may be granted.

    Args:
        address: Of the shard.
        num_requests: How many.
        seed: Of the requests.
        is_alive: Whether its process runs.
    """
    counts = Counts()
    with ShardGroup([address], {"t": SPEC}, session="s", run="trainer") as group:
        fuzzer = Fuzzer(address, seed, group._client)
        store = group.store("t")
        rows, applied = _train(store), 1
        for number in range(num_requests * 9 // 10):
            fuzzer.send_one(counts)
            if not is_alive():
                counts.faults.append(f"request {number}: the shard died")
                return counts
            now, steps = store.read(KEYS, after=0).result(), group.status()[0]["table_groups"]["t"]["applied"]
            if steps == applied and not np.array_equal(now, rows):
                counts.faults.append(f"request {number}: rows changed without a step")
            rows, applied = now, steps  # an update may be valid by chance
    for number in range(num_requests - num_requests * 9 // 10):
        fuzzer.send_one(counts, "open")
        if not is_alive():
            counts.faults.append(f"open {number}: the shard died")
            return counts
    fuzzer.close()
    return counts


def _train(store: RemoteStore) -> Any:
    """Make a step, and return the rows."""
    store.update(KEYS, np.ones((3, 4), np.float32)).result()
    return store.read(KEYS).result()


@contextmanager
def start_shard() -> Iterator[tuple[str, Callable[[], bool]]]:
    """A shard process: its address, and whether it runs."""
    command = [sys.executable, "-P", "-m", "headrace", "shard", "--listen", "127.0.0.1:0", "--hold", "0.1"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            yield line.split()[-1], lambda: process.poll() is None
        finally:
            process.kill()


def main() -> int:
    """Run it from the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--requests", type=int, default=5_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with start_shard() as (address, is_alive):
        counts = fuzz(address, arguments.requests, arguments.seed, is_alive)
    print(counts.table())
    return 1 if counts.faults else 0


if __name__ == "__main__":
    sys.exit(main())
