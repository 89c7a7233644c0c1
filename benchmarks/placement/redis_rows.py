"""Rows in a Redis server, one value per key: an `EmbeddingStore` that reads with MGET and writes with MSET.

A value holds the row and its optimizer state, a key the table and the id. The trainer reads values, trains them with
torch, and writes them back, which is exact with one trainer. Requests are encoded and replies decoded without a loop in
Python, and are sent in parts, so that the server works on one while the next is on its way.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from typing import Any

import numba
import numpy as np
import numpy.typing as npt
import torch

from headrace.embeddings import Keys
from headrace.embeddings.optimizers import RowWiseAdagrad
from headrace.embeddings.tables.table_group import TableGroup

__all__ = ["Redis", "RedisStore"]

KEYS_PER_COMMAND = 4096
CONNECT_S = 20.0
RECEIVE_BYTES = 1 << 18

Bytes = npt.NDArray[np.uint8]
Float32s = npt.NDArray[np.float32]


class Redis:
    """A connection to a Redis server that reads and writes values of equal size by (table, id).

    Attributes:
        num_sent: Bytes sent so far.
        num_received: Bytes received so far.
    """

    def __init__(self, address: str, num_columns: int) -> None:
        host, port = address.rsplit(":", 1)
        self._socket = _connect(host, int(port))
        self._num_columns = num_columns
        self._key = np.dtype([("head", "S5"), ("table", ">u2"), ("id", ">i8"), ("tail", "S2")])
        size = 4 * num_columns
        head = f"${size}\r\n".encode()
        self._value_head = len(head)
        self._pair = np.dtype(
            [("key", self._key), ("head", f"S{len(head)}"), ("value", np.float32, num_columns), ("tail", "S2")]
        )
        self._heads = head
        self._left = b""
        self.num_sent = self.num_received = 0

    def clear(self) -> None:
        """Delete all values."""
        self._send(b"*1\r\n$8\r\nFLUSHALL\r\n")
        self._lines(1)

    def read(self, keys: Keys) -> tuple[Float32s, npt.NDArray[np.bool_]]:
        """Values float32 [U, columns], and bool [U] whether there is one; others are zeros."""
        for part in _parts(len(keys)):
            self._send(_command(b"MGET", part.stop - part.start), self._keys(keys, part).tobytes())
        values = np.zeros((len(keys), self._num_columns), dtype=np.float32)
        found = np.zeros(len(keys), dtype=np.bool_)
        for part in _parts(len(keys)):
            self._replies(values[part], found[part])
        return values, found

    def write(self, keys: Keys, values: Float32s) -> None:
        """Write values float32 [U, columns]."""
        parts = _parts(len(keys))
        for part in parts:
            pairs = np.empty(part.stop - part.start, dtype=self._pair)
            pairs["key"], pairs["head"], pairs["tail"] = self._keys(keys, part), self._heads, b"\r\n"
            pairs["value"] = values[part]
            self._send(_command(b"MSET", 2 * len(pairs)), pairs.tobytes())
        self._lines(len(parts))

    def _keys(self, keys: Keys, part: slice) -> npt.NDArray[np.void]:
        found = np.empty(part.stop - part.start, dtype=self._key)
        found["head"], found["tail"] = b"$10\r\n", b"\r\n"
        found["table"], found["id"] = keys.tables[part], keys.ids[part]
        return found

    def _send(self, *messages: bytes) -> None:
        for message in messages:
            self._socket.sendall(message)
            self.num_sent += len(message)

    def _receive(self) -> None:
        more = self._socket.recv(RECEIVE_BYTES)
        if not more:
            raise ConnectionError("the Redis server has closed the connection")
        self.num_received += len(more)
        self._left += more

    def _lines(self, count: int) -> None:
        """Receive replies of one line each, which must not be errors."""
        while self._left.count(b"\r\n") < count:
            self._receive()
        lines = self._left.split(b"\r\n", count)
        self._left = lines.pop()
        for line in lines:
            if not line.startswith(b"+"):
                raise ConnectionError(f"Redis answered {line!r}")

    def _replies(self, values: Float32s, found: npt.NDArray[np.bool_]) -> None:
        """Receive the reply to one MGET."""
        head = f"*{len(values)}\r\n".encode()
        least = len(head) + len(b"$-1\r\n") * len(values)
        size = 4 * values.shape[1]
        while True:
            if len(self._left) >= least:
                if not self._left.startswith(head):
                    raise ConnectionError(f"Redis answered {self._left[:80]!r}")
                raw = np.frombuffer(self._left, dtype=np.uint8)
                end = _decode(raw, len(head), self._value_head, size, values.view(np.uint8), found)
                if end > 0:
                    self._left = self._left[end:]
                    return
            self._receive()


class RedisStore:
    """An `EmbeddingStore` of one table group with row-wise Adagrad, for one trainer that reads before it updates."""

    def __init__(self, address: str, tables: Sequence[Any], seed: int, embedding_dim: int, *, step: int = 0) -> None:
        self.redis = Redis(address, embedding_dim + 1)
        self.step = step
        self._dim = embedding_dim
        self._first_values = TableGroup(tables, seed=seed)  # of rows that no one has trained
        numbers = [RowWiseAdagrad.numbers(table.optimizer, 0) for table in tables]
        self._numbers = torch.tensor(numbers, dtype=torch.float32)
        self._initial = np.array([table.optimizer.initial_accumulator for table in tables], dtype=np.float32)
        self._read: tuple[Keys, Float32s] | None = None

    def read(self, keys: Keys, *, after: int | None = None) -> Future[Float32s]:
        """See `EmbeddingStore.read`."""
        values, found = self.redis.read(keys)
        missing = np.flatnonzero(~found)
        if len(missing):
            new = keys.take(missing)
            values[missing, : self._dim] = self._first_values.read(new.unseen())
            values[missing, self._dim] = self._initial[new.tables]
        self._read = keys, values
        rows: Future[Float32s] = Future()
        rows.set_result(np.ascontiguousarray(values[:, : self._dim]))
        return rows

    def update(self, keys: Keys, gradients: Float32s, *, num_rows: int = 1, lr_factor: float = 1.0) -> Future[None]:
        """See `EmbeddingStore.update`."""
        assert self._read is not None
        read, values = self._read
        assert np.array_equal(read.ids, keys.ids), "an update of other keys than those read last"
        lr, eps = self._numbers[torch.from_numpy(keys.tables).long()].split(1, dim=1)
        state = torch.from_numpy(values)
        rows, accumulator = RowWiseAdagrad.update_tensors(
            state[:, : self._dim], torch.from_numpy(gradients), state[:, self._dim :], lr * lr_factor, eps
        )
        self.redis.write(keys, torch.cat([rows, accumulator], dim=1).numpy())
        self.step += 1
        done: Future[None] = Future()
        done.set_result(None)
        return done

    def changes(self, since: int = 0) -> Iterator[Any]:
        """Nothing: a server keeps its values itself."""
        return iter(())


def _connect(host: str, port: int) -> socket.socket:
    """Connect to a server that may be starting."""
    until = time.monotonic() + CONNECT_S
    while True:
        try:
            connection = socket.create_connection((host, port), timeout=CONNECT_S)
        except OSError:
            if time.monotonic() > until:
                raise
            time.sleep(0.1)
            continue
        connection.settimeout(None)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection


def _parts(count: int) -> list[slice]:
    return [slice(first, min(count, first + KEYS_PER_COMMAND)) for first in range(0, count, KEYS_PER_COMMAND)]


def _command(name: bytes, num_arguments: int) -> bytes:
    return b"*%d\r\n$%d\r\n%s\r\n" % (num_arguments + 1, len(name), name)


@numba.njit(nogil=True)  # type: ignore[untyped-decorator]
def _decode(raw: Bytes, at: int, head: int, size: int, values: Bytes, found: npt.NDArray[np.bool_]) -> int:
    """Copy the values of a reply of bulk strings; returns where it ends, or -1 if it is not complete."""
    for place in range(len(values)):
        if at + 5 > len(raw):
            return -1
        if raw[at + 1] == 45:  # $-1: no value
            at += 5
            continue
        if at + head + size + 2 > len(raw):
            return -1
        at += head
        values[place] = raw[at : at + size]
        found[place] = True
        at += size + 2
    return at
