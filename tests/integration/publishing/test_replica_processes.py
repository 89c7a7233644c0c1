"""Replicas as servers and as processes: actions, and convergence after kills of replicas and of the publisher."""

from __future__ import annotations

import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from forks import Forks, forks

from headrace.errors import PublishingError
from headrace.publishing.client import PublicationClient
from headrace.publishing.freshness import freshness_of
from headrace.publishing.guard import GuardLimits
from headrace.publishing.publications import PublicationFolder
from headrace.publishing.replica import Replica
from headrace.publishing.replica_actions import feed_back, replica_actions, replica_status, roll_back
from headrace.publishing.server import PublicationServer
from headrace.testing.published_table import GROUP, PublishedTable, every_key

PATIENCE_S = 30.0


def wait_for(client: PublicationClient, served: int) -> None:
    until = time.monotonic() + PATIENCE_S
    found: object = None
    while found != served:
        assert time.monotonic() < until, found
        try:
            found = replica_status(client)["served"]
        except PublishingError as error:  # it is not up yet
            found = str(error)
        time.sleep(0.02)


@pytest.fixture
def publisher(tmp_path: Path) -> PublishedTable:
    return PublishedTable(tmp_path / "publisher")


@pytest.fixture
def served(publisher: PublishedTable, tmp_path: Path) -> Iterator[tuple[Replica, PublicationClient, list[str]]]:
    """A replica in this process that follows a server, with a client."""
    lines: list[str] = []
    stop = threading.Event()
    with PublicationServer(publisher.folder, "127.0.0.1:0") as source:
        client = PublicationClient(f"127.0.0.1:{source.port}")
        folder = PublicationFolder(tmp_path / "replica")
        limits = GuardLimits(max_ne=0.9, rows=3000, windows=1)
        replica = Replica(folder, [client], address="r:1", limits=limits, on_message=lines.append)
        replica.restore()
        following = threading.Thread(target=replica.run, args=(stop,))
        following.start()
        with PublicationServer(folder, "127.0.0.1:0", actions=replica_actions(replica)) as server:
            own = PublicationClient(f"127.0.0.1:{server.port}")
            yield replica, own, lines
            own.close()
        stop.set()
        source.shutdown()
        following.join()
        replica.close()
        client.close()


def test_a_replica_follows_and_answers_to_its_actions(
    publisher: PublishedTable, served: tuple[Replica, PublicationClient, list[str]]
) -> None:
    replica, client, _ = served
    for version in range(1, 4):
        publisher.publish()
        wait_for(client, version)
        np.testing.assert_array_equal(replica.tables.read(GROUP, every_key()), publisher.expected[version])
    assert roll_back(client, 2, "by  hand") == 2
    assert str(replica_status(client)["held"]).endswith("UTC: by hand")
    assert freshness_of(replica_status(client), 10.0)["replica.seconds_behind"] == 7.0
    assert freshness_of(replica_status(client), 10.0)["replica.is_held"] == 1.0
    assert client.status().versions == (1, 2, 3)
    assert roll_back(client, "newest", "fixed") == 3
    with pytest.raises(PublishingError, match="version 9: is not in memory, expected one of 1, 2, 3"):
        roll_back(client, 9, "why")
    with pytest.raises(PublishingError, match="rollback: to: given 'last', expected a version or newest"):
        client.act("rollback", {"to": "last", "reason": "why"})
    with pytest.raises(PublishingError, match="rollback: reason: expected text of 1 to 500 characters"):
        client.act("rollback", {"to": 2})
    with pytest.raises(PublishingError, match="feedback: given version 3 with 1 predictions and 2 labels"):
        client.act("feedback", {"version": 3, "predictions": [0.5], "labels": [0, 1]})
    with pytest.raises(PublishingError, match="feedback: labels: expected a list of numbers"):
        client.act("feedback", {"version": 3, "predictions": [0.5], "labels": ["x"]})
    labels = np.tile(np.array([0, 1]), 1500)
    assert feed_back(client, 3, np.full(3000, 0.5), labels) == 2
    assert "guard: normalized entropy 1.0000 above 0.9" in str(replica_status(client)["held"])


class Process:
    """A replica in a process of its own."""

    def __init__(self, program: Forks, path: Path, address: str, sources: list[str]) -> None:
        self.path, self.address, self._sources, self._program = path, address, sources, program
        self.client = PublicationClient(self.address)
        self.start()

    def start(self) -> None:
        command = ["replica", "--from", ",".join(self._sources), "--listen", self.address, "--path", str(self.path)]
        output = self.path.with_suffix(".log")
        self._pid = self._program.command([*command, "--patience", "0.2"], output)

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return ports


def test_replicas_converge_after_kills_of_replicas_and_of_the_publisher(
    publisher: PublishedTable, tmp_path: Path
) -> None:
    where, rng = [f"127.0.0.1:{each}" for each in free_ports(3)], np.random.default_rng()
    server = PublicationServer(publisher.folder, where[2])
    with forks() as program:
        replicas = [
            Process(program, tmp_path / "r0", where[0], [where[1], where[2]]),
            Process(program, tmp_path / "r1", where[1], [where[0], where[2]]),
        ]
        publisher.publish(2)
        for replica in replicas:
            wait_for(replica.client, 2)
        for _ in range(10):  # while both fetch, apply and merge
            publisher.publish()
            time.sleep(rng.uniform(0, 0.03))
        replicas[1].kill()
        publisher.publish(3)
        wait_for(replicas[0].client, publisher.version)
        server.shutdown()
        replicas[1].start()
        wait_for(replicas[1].client, publisher.version)  # from its peer
        publisher.publish(2)
        server = PublicationServer(publisher.folder, where[2])
        for replica in replicas:
            wait_for(replica.client, publisher.version)
            replica.kill()
            replica.client.close()
        program.wait()
    server.shutdown()
    for replica in replicas:
        restored = Replica(PublicationFolder(replica.path), [PublicationClient(where[2])], address="x:1")
        restored.restore()
        restored.close()
        assert restored.tables.served == publisher.version
        expected = publisher.expected[publisher.version]
        np.testing.assert_array_equal(restored.tables.read(GROUP, every_key()), expected)
