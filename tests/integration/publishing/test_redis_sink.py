"""A Redis server has one whole version at any moment, also through kills of the publisher and of the server."""

import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from headrace.errors import ConfigError, StorageError
from headrace.publishing.sinks import redis_sink
from headrace.publishing.sinks.feeding import Feeder, open_sink
from headrace.publishing.sinks.redis_sink import RedisSink
from headrace.testing.publications import GROUPS, RowPublisher

redis = pytest.importorskip("redis", reason="needs the extra publish: redis")
pytestmark = pytest.mark.skipif(shutil.which("redis-server") is None, reason="needs redis-server: apt install redis")

NAMES = ("items", "users")


class Server:
    """A `redis-server` process, which writes each command to disk."""

    def __init__(self, folder: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.client: Any = redis.Redis(port=self.port)

    def start(self) -> None:
        options = ("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self._folder), "--save", "")
        durable = ("--appendonly", "yes", "--appendfsync", "always", "--maxmemory-policy", "noeviction")
        with (self._folder / "log").open("ab") as log:
            self._process = subprocess.Popen(["redis-server", *options, *durable], stdout=log)
        for _ in range(1_000):
            try:
                if self.client.ping():
                    return
            except redis.RedisError:
                threading.Event().wait(0.01)
        raise AssertionError("redis-server does not answer")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    found = Server(tmp_path_factory.mktemp("redis"))
    yield found
    found.kill()
    found.client.close()


@pytest.fixture
def server(running: Server) -> Iterator[Server]:
    """Each test begins with an empty server."""
    running.start()
    running.client.flushall()
    yield running
    running.kill()
    running.client.close()


@pytest.fixture
def sink(server: Server) -> Iterator[RedisSink]:
    found = open_sink(f"redis://127.0.0.1:{server.port}/0?prefix=news")
    assert isinstance(found, RedisSink)
    yield found
    found.close()


@pytest.fixture
def publisher(tmp_path: Path) -> RowPublisher:
    return RowPublisher(tmp_path)


Rows = dict[tuple[str, str, int], bytes]
"""By table group, table and id."""


def rows_of(publisher: RowPublisher) -> Rows:
    return {
        (group, NAMES[table], each): (sign * row).tobytes()
        for group, sign in GROUPS.items()
        for (table, each), row in publisher.rows.items()
    }


def read_all(server: Server) -> tuple[int, Rows]:
    """The version, and the rows that a reader finds, in one transaction."""
    tables = [(group, name) for group in GROUPS for name in NAMES]
    while True:
        generation = server.client.hget("news", "generation").decode()
        with server.client.pipeline() as pipeline:
            pipeline.hmget("news", "version", "generation")
            for group, name in tables:
                pipeline.hgetall(f"news:{generation}:{group}:{name}")
            (version, now), *contents = pipeline.execute()
        if now.decode() == generation:
            rows = {
                (*table, int(each)): row
                for table, found in zip(tables, contents, strict=True)
                for each, row in found.items()
            }
            return int(version), rows


def feeder_of(publisher: RowPublisher, sink: RedisSink) -> Feeder:
    return Feeder(publisher.folder, sink, lambda line: None)


def check(server: Server, publisher: RowPublisher) -> None:
    assert read_all(server) == (publisher.version, rows_of(publisher))
    keys = {key.decode() for key in server.client.keys("*")}
    generation = server.client.hget("news", "generation").decode()
    tables = {f"news:{generation}:{group}:{NAMES[table]}" for table, _ in publisher.rows for group in GROUPS}
    assert keys == {"news", "news:dense", "news:job"} | tables, "nothing else is left"


def test_redis_has_the_rows_of_each_version(server: Server, sink: RedisSink, publisher: RowPublisher) -> None:
    feeder = feeder_of(publisher, sink)
    publisher.publish({(0, 1): 1.0, (0, 2): 2.0, (1, -5): 3.0})
    feeder.feed()
    check(server, publisher)
    publisher.publish({(0, 2): 5.0, (1, 2**62): 6.0}, removed=[(0, 1)])
    feeder.feed()
    check(server, publisher)
    publisher.publish({(0, 1): 7.0}, removed=[(1, -5)])
    publisher.publish({(0, 9): 8.0}, removed=[(0, 1)])
    feeder.feed()
    check(server, publisher)
    publisher.publish({(1, 1): 1.0}, removed=[(0, 9)], is_base=True)
    feeder.feed()
    check(server, publisher)
    assert feeder.num_written == 4
    assert server.client.hget("news", "step") == b"50"
    assert float(server.client.hget("news", "cut_at")) == 1.5


def test_the_reader_of_the_documentation_reads_rows_of_one_version(
    server: Server, sink: RedisSink, publisher: RowPublisher
) -> None:
    publisher.publish({(0, 1): 1.0, (0, -2): 2.0})
    feeder_of(publisher, sink).feed()
    text = (Path(__file__).parents[3] / "docs" / "publishing.md").read_text(encoding="utf-8")
    code = text.split("### Redis")[1].split("```python\n")[1].split("```")[0]
    names: dict[str, Any] = {}
    exec(code.replace("redis.Redis()", f"redis.Redis(port={server.port})"), names)
    version, rows = names["read"]("embeddings", "items", [-2, 1, 7], prefix="news")
    names["server"].close()
    assert version == 1
    assert [None if row is None else row.tolist() for row in rows] == [[2.0, 3.0, 4.0, 5.0], [1.0, 2.0, 3.0, 4.0], None]


def test_many_changes_become_a_generation(
    server: Server, sink: RedisSink, publisher: RowPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sink, "MAX_TRANSACTION_ROWS", 20)
    monkeypatch.setattr(redis_sink, "ROWS_PER_CALL", 3)
    feeder = feeder_of(publisher, sink)
    publisher.publish({(0, each): float(each) for each in range(40)})
    feeder.feed()
    publisher.publish({(0, each): -1.0 for each in range(20)}, removed=[(0, 30)])
    feeder.feed()
    check(server, publisher)
    assert server.client.hget("news", "generation") == b"2"
    publisher.publish({(0, each): -2.0 for each in range(5)}, removed=[(0, 31)])
    feeder.feed()
    check(server, publisher)
    assert server.client.hget("news", "generation") == b"2"


class Killed(BaseException):
    """Ends a publisher as a kill would: no code of its own runs after it."""


@pytest.mark.parametrize("is_base", [False, True])
def test_a_publisher_killed_at_any_call_leaves_a_whole_version(
    is_base: bool, server: Server, publisher: RowPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    from redis.client import Pipeline
    from redis.connection import Connection

    monkeypatch.setattr(Pipeline, "__del__", lambda pipeline: None, raising=False)  # a killed process tidies nothing
    monkeypatch.setattr(redis_sink, "ROWS_PER_CALL", 2)
    monkeypatch.setattr(redis_sink, "CALLS_AT_ONCE", 2)
    url = f"redis://127.0.0.1:{server.port}/0?prefix=news"
    publisher.publish({(0, each): 1.0 for each in range(8)})
    first = RedisSink(url)
    feeder_of(publisher, first).feed()
    first.close()
    before = (1, rows_of(publisher))
    publisher.publish({(0, each): 2.0 for each in range(6)}, removed=[(0, 7)], is_base=is_base)
    after = (2, rows_of(publisher))
    send, seen = Connection.send_packed_command, set()
    for last in range(100):
        calls = [0]

        def counted(connection: Any, command: Any, **options: Any) -> Any:
            calls[0] += 1  # noqa: B023
            if calls[0] > last + 1:  # noqa: B023
                raise Killed
            return send(connection, command, **options)

        doomed = RedisSink(url)
        with monkeypatch.context() as patched:
            patched.setattr(Connection, "send_packed_command", counted)
            try:
                feeder_of(publisher, doomed).feed()
                is_done = True
            except Killed:
                is_done = False
        doomed._client.connection_pool.disconnect()
        found = read_all(server)
        assert found in (before, after)
        seen.add(found[0])
        if is_done:
            break
    assert seen == {1, 2}
    publisher.publish({(0, 1): 3.0})  # also removes what a killed publisher left
    last_one = RedisSink(url)
    feeder_of(publisher, last_one).feed()
    last_one.close()
    check(server, publisher)


def test_readers_never_see_parts_of_a_version(
    server: Server, sink: RedisSink, publisher: RowPublisher, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_sink, "ROWS_PER_CALL", 10)
    feeder = feeder_of(publisher, sink)
    publisher.publish({(table, each): 1.0 for table in (0, 1) for each in range(50)})
    feeder.feed()
    is_over, seen = threading.Event(), []

    def read() -> None:
        while not is_over.is_set():
            seen.append(read_all(server))

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(2, 12):
        rows = {(table, each): float(number) for table in (0, 1) for each in range(50)}
        publisher.publish(rows, is_base=number % 3 == 0)
        feeder.feed()
    is_over.set()
    reader.join()
    for version, rows in seen:
        assert len(rows) == 200
        assert {abs(np.frombuffer(row, np.float32)[0]) for row in rows.values()} == {float(version)}


def test_a_server_that_is_killed_and_comes_back_gets_the_newest_version(
    server: Server, sink: RedisSink, publisher: RowPublisher
) -> None:
    lines: list[str] = []
    feeder = Feeder(publisher.folder, sink, lines.append)
    publisher.publish({(0, 1): 1.0, (0, 2): 1.0})
    feeder.feed()
    server.kill()
    publisher.publish({(0, 1): 2.0}, removed=[(0, 2)])
    assert not feeder.feed()
    assert not feeder.feed()
    assert sum("not written to redis://127.0.0.1" in line for line in lines) == 1
    server.start()
    assert feeder.feed()
    check(server, publisher)


def test_a_server_that_came_back_empty_is_filled_again(
    server: Server, sink: RedisSink, publisher: RowPublisher
) -> None:
    feeder = feeder_of(publisher, sink)
    publisher.publish({(0, 1): 1.0, (0, 2): 1.0})
    feeder.feed()
    server.client.flushall()
    publisher.publish({(0, 1): 2.0})
    feeder.feed()
    check(server, publisher)


def test_a_full_server_keeps_the_version_that_it_has(server: Server, sink: RedisSink, publisher: RowPublisher) -> None:
    feeder = feeder_of(publisher, sink)
    publisher.publish({(0, 1): 1.0})
    feeder.feed()
    before = server.client.hgetall("news:1:embeddings:items")
    server.client.config_set("maxmemory", 1)
    publisher.publish({(0, 1): 2.0, (0, 2): 1.0})
    assert not feeder.feed()
    assert server.client.hget("news", "version") == b"1"
    assert server.client.hgetall("news:1:embeddings:items") == before
    server.client.config_set("maxmemory", 0)
    assert feeder.feed()
    check(server, publisher)


def test_two_publishers_do_not_mix(server: Server, sink: RedisSink, publisher: RowPublisher) -> None:
    publisher.publish({(0, 1): 1.0})
    feeder_of(publisher, sink).feed()
    second = publisher.publish({(0, 1): 2.0})
    with pytest.raises(StorageError, match="written by another publisher"):
        sink.write(publisher.folder, second, None)
    server.client.hset("news", "format", "other")
    with pytest.raises(ConfigError, match="is of format 'other', expected 'headrace-redis 1'"):
        feeder_of(publisher, sink).feed()
