"""Ways to bring changed rows to replicas: headrace, and the peers. Each has a sender at the trainer and a receiver.

Peers send raw rows: id, version and float32 weights, 80 bytes at dimension 16 (88 with a key of 16 bytes). Their
receivers write rows into an array by id, which is the cheapest that a server could do.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from headrace.embeddings.changes.delta import Delta
from headrace.embeddings.changes.log import PUBLICATIONS
from headrace.embeddings.tables.table_group import TableGroup
from headrace.publishing.client import PublicationClient
from headrace.publishing.config import PublishConfig
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica import Replica
from headrace.publishing.replica_actions import replica_actions
from headrace.publishing.server import PublicationServer
from headrace.publishing.writer import Cut, PublicationWriter

__all__ = ["PORTS", "RECEIVERS", "SENDERS", "Receiver", "Sender"]

DIM = 16
GROUP = "items"
DENSE = {"bias": np.zeros(1, np.float32)}
RAW = np.dtype([("id", "<i8"), ("version", "<i8"), ("weights", "<f4", (DIM,))])
PORTS = {"headrace": 9300, "snapshot": 9400, "redis": 6379, "nats": 4222}
ROWS_PER_MESSAGE = 8_000
"""640 kB; servers of NATS take up to 1 MiB."""

Seen = list[tuple[int, float]]


class Sender(Protocol):
    """At the trainer."""

    is_idle: bool

    def cut(self, version: int) -> float:
        """Start to publish what changed; returns when rows were copied."""

    def close(self) -> None:
        """Stop."""


class Receiver(Protocol):
    """At a replica; `seen` has each version and when readers could see it."""

    seen: Seen

    def close(self) -> np.ndarray:
        """Stop; returns the rows of all ids, float32 [N, 16]."""


class HeadraceSender:
    """A writer of publications, and a server of its folder."""

    def __init__(self, group: TableGroup, host: str, folder: Path, *, weights: str) -> None:
        publications = PublicationFolder(folder)
        self._group = group
        self._writer = PublicationWriter(publications, PublishConfig.from_dict({"weights": weights}, where="bench"))
        self._server = PublicationServer(publications, f"{host}:{PORTS['headrace']}")

    @property
    def is_idle(self) -> bool:
        return self._writer.is_idle

    def cut(self, version: int) -> float:
        self._settle()
        cut_at = time.time()
        everything = not self._writer.has_base(GROUP)
        deltas = self._group.deltas(everything=everything, consumer=PUBLICATIONS)
        self._writer.start(Cut(version, DENSE, "", None, cut_at), {GROUP: deltas})
        return cut_at

    def close(self) -> None:
        self._settle()
        self._writer.close()
        self._server.shutdown()

    def _settle(self) -> None:
        for version in self._writer.settle().values():
            self._group.mark_saved(version, PUBLICATIONS)


class HeadraceReceiver:
    """A replica that serves its files to others; a thread notes when versions become visible."""

    def __init__(self, num_rows: int, hosts: list[str], me: int, folder: Path) -> None:
        self.seen: Seen = []
        self._num_rows = num_rows
        address = f"{hosts[me]}:{PORTS['headrace']}"
        peers = [f"{host}:{PORTS['headrace']}" for end, host in enumerate(hosts) if end not in (0, me)]
        sources = [PublicationClient(each) for each in (*peers, f"{hosts[0]}:{PORTS['headrace']}")]
        publications = PublicationFolder(folder)
        self._replica = Replica(publications, sources, address=address, on_message=lambda line: None)
        self._server = PublicationServer(publications, address, actions=replica_actions(self._replica))
        self._stop = threading.Event()
        self._threads = [
            threading.Thread(target=self._replica.run, args=(self._stop,), daemon=True),
            threading.Thread(target=self._watch, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _watch(self) -> None:
        before: int | None = None
        while not self._stop.is_set():
            served = self._replica.tables.served
            if served is not None and served != before:
                self.seen.append((served, time.time()))
                before = served
            time.sleep(0.001)

    def close(self) -> np.ndarray:
        from headrace.embeddings import Keys

        self._stop.set()
        for thread in self._threads:
            thread.join()
        none = np.zeros(self._num_rows, np.int32)
        keys = Keys(none, np.arange(self._num_rows), none)
        rows: np.ndarray = self._replica.tables.read(GROUP, keys)
        self._server.shutdown()
        self._replica.close()
        return rows


class PeerSender:
    """Copies what changed, and sends it in a thread."""

    needs_all = False

    def __init__(self, group: TableGroup) -> None:
        self._group = group
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None

    @property
    def is_idle(self) -> bool:
        return self._thread is None or not self._thread.is_alive()

    def cut(self, version: int) -> float:
        self._join()
        cut_at = time.time()
        everything = version == 1 or self.needs_all
        delta = self._group.delta(everything=everything, consumer=PUBLICATIONS)
        self._group.mark_saved(delta.version, PUBLICATIONS)
        self._thread = threading.Thread(target=self._run, args=(version, delta))
        self._thread.start()
        return cut_at

    def close(self) -> None:
        self._join()

    def _join(self) -> None:
        if self._thread is not None:
            self._thread.join()
        if self._error is not None:
            raise self._error

    def _run(self, version: int, delta: Delta) -> None:
        raw = np.empty(len(delta.rows["ids"]), RAW)
        raw["id"], raw["version"], raw["weights"] = delta.rows["ids"], version, delta.rows["weights"]
        try:
            self.send(version, np.sort(raw, order="id") if self.needs_all else raw)
        except BaseException as error:
            self._error = error

    def send(self, version: int, raw: np.ndarray) -> None:
        """Send rows."""
        raise NotImplementedError


class PeerReceiver:
    """Writes rows into an array, in a thread."""

    def __init__(self, num_rows: int, host: str) -> None:
        self.seen: Seen = []
        self.rows = np.zeros((num_rows, DIM), np.float32)
        self.host, self.is_over = host, threading.Event()
        self._thread = threading.Thread(target=self.receive, daemon=True)
        self._thread.start()

    def apply(self, data: bytes) -> None:
        """Write rows."""
        raw = np.frombuffer(data, RAW)
        self.rows[raw["id"]] = raw["weights"]

    def complete(self, version: int) -> None:
        """Note that a version is there."""
        self.seen.append((version, time.time()))

    def receive(self) -> None:
        """Receive until `is_over`."""
        raise NotImplementedError

    def close(self) -> np.ndarray:
        self.is_over.set()
        self._thread.join(5)
        return self.rows


def _messages(raw: np.ndarray) -> list[bytes]:
    return [raw[at : at + ROWS_PER_MESSAGE].tobytes() for at in range(0, len(raw), ROWS_PER_MESSAGE)] or [b""]


class RedisSender(PeerSender):
    """A Redis stream; entries of a version, and whether it is the last one."""

    def __init__(self, group: TableGroup, host: str, folder: Path) -> None:
        import redis

        super().__init__(group)
        self._client = redis.Redis(host=host, port=PORTS["redis"])
        self._client.flushall()

    def send(self, version: int, raw: np.ndarray) -> None:
        parts = _messages(raw)
        for number, part in enumerate(parts):
            fields: Any = {"v": version, "last": int(number == len(parts) - 1), "rows": part}
            self._client.xadd("rows", fields, maxlen=200, approximate=True)


class RedisReceiver(PeerReceiver):
    def receive(self) -> None:
        import redis

        client = redis.Redis(host=self.host, port=PORTS["redis"])
        after: Any = "0"
        while not self.is_over.is_set():
            for _, entries in client.xread({"rows": after}, count=1, block=200) or ():
                for number, fields in entries:
                    after = number
                    self.apply(fields[b"rows"])
                    if int(fields[b"last"]):
                        self.complete(int(fields[b"v"]))
        client.close()


class NatsSender(PeerSender):
    """A JetStream stream in memory."""

    def __init__(self, group: TableGroup, host: str, folder: Path) -> None:
        super().__init__(group)
        self._host = host
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._call(self._open())

    def _call(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(60)

    async def _open(self) -> None:
        import nats

        self._connection = await nats.connect(f"nats://{self._host}:{PORTS['nats']}")
        self._stream = self._connection.jetstream()
        await self._stream.add_stream(name="rows", subjects=["rows"], storage="memory", max_bytes=1 << 30)

    async def _send(self, version: int, parts: list[bytes]) -> None:
        for number, part in enumerate(parts):
            await self._stream.publish("rows", struct.pack("<q?", version, number == len(parts) - 1) + part)

    def send(self, version: int, raw: np.ndarray) -> None:
        self._call(self._send(version, _messages(raw)))

    def close(self) -> None:
        super().close()
        self._call(self._connection.close())
        self._loop.call_soon_threadsafe(self._loop.stop)


class NatsReceiver(PeerReceiver):
    def receive(self) -> None:
        asyncio.run(self._receive())

    async def _receive(self) -> None:
        import nats
        from nats.js.errors import NotFoundError

        connection = await nats.connect(f"nats://{self.host}:{PORTS['nats']}")
        stream = connection.jetstream()
        while not self.is_over.is_set():
            try:
                subscription = await stream.subscribe("rows", ordered_consumer=True)
                break
            except NotFoundError:
                await asyncio.sleep(0.05)
        while not self.is_over.is_set():
            try:
                message = await subscription.next_msg(timeout=0.2)
            except TimeoutError:
                continue
            version, is_last = struct.unpack_from("<q?", message.data)
            self.apply(message.data[9:])
            if is_last:
                self.complete(version)
        await connection.close()


class SnapshotSender(PeerSender):
    """All rows, compressed by zstd with the snapshot before as a dictionary, over TCP."""

    needs_all = True

    def __init__(self, group: TableGroup, host: str, folder: Path) -> None:
        super().__init__(group)
        self._before = b""
        self._news = threading.Condition()
        self._frame: tuple[int, bytes, int] = (0, b"", 0)
        self._server = socket.create_server((host, PORTS["snapshot"]))
        threading.Thread(target=self._accept, daemon=True).start()

    def send(self, version: int, raw: np.ndarray) -> None:
        import zstandard

        # Columns, as a row's version would make each row differ from the one before.
        data = raw["id"].tobytes() + raw["weights"].tobytes()
        options: Any = {"compression_params": _zstd_parameters(len(data))}
        if self._before:
            options["dict_data"] = zstandard.ZstdCompressionDict(self._before, zstandard.DICT_TYPE_RAWCONTENT)
        frame = zstandard.ZstdCompressor(**options).compress(data)
        self._before = data
        with self._news:
            self._sent = 0
            self._frame = version, frame, len(data)
            self._news.notify_all()
            # Each frame needs the one before, so nobody may miss one.
            self._news.wait_for(lambda: self._sent >= self._num_connections, 60)

    _sent = _num_connections = 0

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._server.accept()
            except OSError:
                return
            with self._news:
                self._num_connections += 1
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        done = 0
        while True:
            with self._news:
                while self._frame[0] <= done:
                    self._news.wait()
                done, frame, num_bytes = self._frame
            try:
                connection.sendall(struct.pack("<qqq", done, len(frame), num_bytes) + frame)
                connection.recv(1)  # it has been received
            except OSError:
                return
            with self._news:
                self._sent += 1
                self._news.notify_all()

    def close(self) -> None:
        super().close()
        with suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)  # otherwise `accept` keeps the port
        self._server.close()


class SnapshotReceiver(PeerReceiver):
    def receive(self) -> None:
        import zstandard

        before = b""
        with socket.create_connection((self.host, PORTS["snapshot"])) as connection:
            connection.settimeout(0.2)
            while not self.is_over.is_set():
                head = self._take(connection, 24)
                if head is None:
                    return
                version, size, num_bytes = struct.unpack("<qqq", head)
                frame = self._take(connection, size)
                if frame is None:
                    return
                connection.sendall(b"1")
                options: Any = {"max_window_size": 1 << 31}
                if before:
                    options["dict_data"] = zstandard.ZstdCompressionDict(before, zstandard.DICT_TYPE_RAWCONTENT)
                before = zstandard.ZstdDecompressor(**options).decompress(frame, max_output_size=num_bytes)
                count = num_bytes // (8 + 4 * DIM)
                rows = np.frombuffer(before, np.float32, offset=8 * count).reshape(count, DIM)
                self.rows[np.frombuffer(before, np.int64, count)] = rows
                self.complete(version)

    def _take(self, connection: socket.socket, size: int) -> bytes | None:
        data = bytearray()
        while len(data) < size and not self.is_over.is_set():
            try:
                part = connection.recv(min(1 << 20, size - len(data)))
            except TimeoutError:
                continue
            if not part:
                return None
            data += part
        return bytes(data) if len(data) == size else None


def _zstd_parameters(num_bytes: int) -> Any:
    """Those of `zstd --patch-from`: a window over both snapshots, and long-distance matching."""
    import zstandard

    window = min(30, max(20, (2 * num_bytes).bit_length()))
    return zstandard.ZstdCompressionParameters.from_level(1, window_log=window, enable_ldm=True)


SENDERS: dict[str, Callable[..., Sender]] = {
    "headrace, int8": lambda group, host, folder: HeadraceSender(group, host, folder, weights="int8"),
    "headrace, exact": lambda group, host, folder: HeadraceSender(group, host, folder, weights="exact"),
    "snapshot + zstd": SnapshotSender,
    "Redis Streams": RedisSender,
    "NATS JetStream": NatsSender,
}
RECEIVERS: dict[str, Callable[[int, list[str], int, Path], Receiver]] = {
    "headrace, int8": HeadraceReceiver,
    "headrace, exact": HeadraceReceiver,
    "snapshot + zstd": lambda num_rows, hosts, me, folder: SnapshotReceiver(num_rows, hosts[0]),
    "Redis Streams": lambda num_rows, hosts, me, folder: RedisReceiver(num_rows, hosts[0]),
    "NATS JetStream": lambda num_rows, hosts, me, folder: NatsReceiver(num_rows, hosts[0]),
}
