"""A star of network namespaces around a bridge; each end has a link of its own, limited in both directions.

    publisher ── veth, tbf ──┐
    replica 1 ── veth, tbf ──┤ bridge
    replica 2 ── veth, tbf ──┘

Ends have addresses in the loopback range, as in `schedule.links`, because servers require TLS for others.
"""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import ExitStack
from typing import Self

from schedule.links import can_make_namespaces, give_device, limit_device, run, run_in_namespace

__all__ = ["Star", "can_make_namespaces"]

HUB = f"headrace-{os.getpid()}-hub"

ECHO = """
import socket, sys
server = socket.create_server((sys.argv[1], 9299))
connection, _ = server.accept()
while data := connection.recv(64):
    connection.sendall(data)
"""
ASK = """
import socket, statistics, sys, time
for _ in range(200):
    try:
        connection = socket.create_connection((sys.argv[1], 9299), 5)
        break
    except ConnectionRefusedError:
        time.sleep(0.02)
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
seconds = []
for _ in range(100):
    start = time.perf_counter()
    connection.sendall(b"?")
    connection.recv(64)
    seconds.append(time.perf_counter() - start)
print(statistics.median(seconds))
"""


class Star:
    """Ends 0 to n - 1; a context manager that removes everything.

    Args:
        num_ends: Number of ends.
    """

    def __init__(self, num_ends: int) -> None:
        self.hosts = [f"127.9.0.{end + 1}" for end in range(num_ends)]
        self._names = [f"headrace-{os.getpid()}-{end}" for end in range(num_ends)]
        self._inner = [f"hr{os.getpid()}e{end}" for end in range(num_ends)]
        self._outer = [f"hr{os.getpid()}b{end}" for end in range(num_ends)]
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        for name in (HUB, *self._names):
            run("ip", "netns", "add", name)
            self._stack.callback(run, "ip", "netns", "del", name)
        run_in_namespace(HUB, "ip", "link", "add", "hub", "type", "bridge")
        run_in_namespace(HUB, "ip", "link", "set", "hub", "up")
        for name, inner, outer, host in zip(self._names, self._inner, self._outer, self.hosts, strict=True):
            run("ip", "link", "add", inner, "type", "veth", "peer", "name", outer)
            run("ip", "link", "set", outer, "netns", HUB)
            run_in_namespace(HUB, "ip", "link", "set", outer, "master", "hub")
            run_in_namespace(HUB, "ip", "link", "set", outer, "up")
            give_device(name, inner, host)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    def command(self, end: int, command: list[str]) -> list[str]:
        """A command that runs at an end."""
        return ["ip", "netns", "exec", self._names[end], *command]

    def set_rate(self, gbit: float) -> None:
        """Limit each end's link in both directions."""
        ends = [*zip(self._names, self._inner, strict=True), *((HUB, outer) for outer in self._outer)]
        for name, device in ends:
            limit_device(name, device, gbit)

    def sent_bytes(self, end: int) -> int:
        """Bytes that an end has sent so far, with headers."""
        path = f"/sys/class/net/{self._inner[end]}/statistics/tx_bytes"
        found = subprocess.run(self.command(end, ["cat", path]), check=True, capture_output=True, text=True)
        return int(found.stdout)

    def round_trip_s(self, end: int) -> float:
        """Median time of a small message to an end and back from end 0, on a link without other traffic."""
        server = subprocess.Popen(self.command(end, [sys.executable, "-c", ECHO, self.hosts[end]]))
        try:
            client = self.command(0, [sys.executable, "-c", ASK, self.hosts[end]])
            return float(subprocess.run(client, check=True, capture_output=True, text=True).stdout)
        finally:
            server.kill()
            server.wait()
