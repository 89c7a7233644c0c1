"""A link between trainer and shards: two network namespaces and a token bucket, or a relay where that needs root.

    namespace A: trainer, core 0 ── veth, tc tbf each way ── namespace B: shard, core 1

Both ends have addresses of the loopback range, for they are on one machine and shards ask for TLS beyond it; without
TLS the measured bytes are those of the rows.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, suppress
from typing import Self

__all__ = ["Link", "can_make_namespaces"]

HOSTS = ("127.9.0.1", "127.9.0.2")
NAMES = (f"headrace-{os.getpid()}-a", f"headrace-{os.getpid()}-b")
DEVICES = (f"hr{os.getpid()}a", f"hr{os.getpid()}b")


def can_make_namespaces() -> str:
    """Why namespaces cannot be made; empty if they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)} (iproute2)" if missing else ""


class Link:
    """Runs processes at both ends of a link and sets its bandwidth; a context manager that takes everything down."""

    def __init__(self) -> None:
        """Decide how; `is_real` says whether it is namespaces."""
        self.why_not = can_make_namespaces()
        self.is_real = not self.why_not
        self.rate_mbit: float | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.is_real:
            for name in NAMES:
                with suppress(subprocess.CalledProcessError):
                    _run("ip", "netns", "del", name)
                _run("ip", "netns", "add", name)
                self._stack.callback(_run, "ip", "netns", "del", name)
            _run("ip", "link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
            for name, device, host in zip(NAMES, DEVICES, HOSTS, strict=True):
                _run("ip", "link", "set", device, "netns", name)
                for place in ("all", device):
                    _inside(name, "sysctl", "-qw", f"net.ipv4.conf.{place}.route_localnet=1")
                # Loopback itself keeps one address only: it would take all of 127.0.0.0/8 for its own.
                _inside(name, "ip", "link", "set", "lo", "up")
                _inside(name, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
                _inside(name, "ip", "addr", "add", "127.0.0.1/32", "dev", "lo")
                _inside(name, "ip", "link", "set", device, "up")
                _inside(name, "ip", "addr", "add", f"{host}/24", "dev", device)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def shard_host(self) -> str:
        """Where shards listen."""
        return HOSTS[1] if self.is_real else "127.0.0.1"

    def core(self, end: int) -> int:
        """The core of an end: 0 the trainer's, 1 the shards'."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[end % len(cores)]

    def command(self, end: int, command: list[str], *, pinned: bool = True) -> list[str]:
        """A command that runs at an end, on its core unless it sees to that itself."""
        if pinned and shutil.which("taskset"):
            command = ["taskset", "-c", str(self.core(end)), *command]
        return ["ip", "netns", "exec", NAMES[end], *command] if self.is_real else command

    def set_rate(self, gbit: float | None) -> None:
        """Bandwidth each way; None for no limit. Not for a link that is not real, see `relay`."""
        self.rate_mbit = None if gbit is None else gbit * 1000
        if not self.is_real:
            return
        for name, device in zip(NAMES, DEVICES, strict=True):
            with suppress(subprocess.CalledProcessError):
                _inside(name, "tc", "qdisc", "del", "dev", device, "root")
            if gbit is not None:
                # A bucket of 2 ms, at least two of the largest packets a veth carries.
                burst = max(131_072, int(gbit * 1e9 / 8 * 0.002))
                limit = ["rate", f"{gbit * 1000:g}mbit", "burst", str(burst), "limit", "16000000"]
                _inside(name, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)


def _inside(name: str, *command: str) -> None:
    _run("ip", "netns", "exec", name, *command)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
