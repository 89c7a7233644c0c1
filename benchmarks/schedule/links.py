"""The link between trainer and shard: two network namespaces and a token bucket, or a relay where root is missing.

    namespace A: trainer, core 0 ── veth, tc tbf each way ── namespace B: shard, core 1

Both ends have addresses in the loopback range, because shards require TLS for others. Without TLS, the measured bytes
are those of the rows.
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
    """Return why namespaces cannot be created, or an empty string if they can."""
    if not sys.platform.startswith("linux"):
        return "needs Linux"
    if os.geteuid() != 0:
        return "needs root"
    missing = [tool for tool in ("ip", "tc") if shutil.which(tool) is None]
    return f"needs {' and '.join(missing)} (iproute2)" if missing else ""


class Link:
    """A link that runs processes at both ends and limits the bandwidth; a context manager that removes everything."""

    def __init__(self) -> None:
        """Decide between namespaces (`is_real`) and a relay."""
        self.why_not = can_make_namespaces()
        self.is_real = not self.why_not
        self.rate_mbit: float | None = None
        self._stack = ExitStack()

    def __enter__(self) -> Self:
        if self.is_real:
            for name in NAMES:
                with suppress(subprocess.CalledProcessError):
                    run("ip", "netns", "del", name)
                run("ip", "netns", "add", name)
                self._stack.callback(run, "ip", "netns", "del", name)
            run("ip", "link", "add", DEVICES[0], "type", "veth", "peer", "name", DEVICES[1])
            for name, device, host in zip(NAMES, DEVICES, HOSTS, strict=True):
                give_device(name, device, host)
        return self

    def __exit__(self, *error: object) -> None:
        self._stack.close()

    @property
    def shard_host(self) -> str:
        """Address at which shards listen."""
        return HOSTS[1] if self.is_real else "127.0.0.1"

    def core(self, end: int) -> int:
        """Return the CPU core of an end: 0 is the trainer's, 1 the shard's."""
        cores = sorted(os.sched_getaffinity(0))
        return cores[end % len(cores)]

    def command(self, end: int, command: list[str], *, pinned: bool = True) -> list[str]:
        """Return a command that runs at an end, pinned to its core unless the process does this itself."""
        if pinned and shutil.which("taskset"):
            command = ["taskset", "-c", str(self.core(end)), *command]
        return ["ip", "netns", "exec", NAMES[end], *command] if self.is_real else command

    def set_rate(self, gbit: float | None) -> None:
        """Limit the bandwidth in each direction (None removes the limit); without namespaces, `relay` must do this."""
        self.rate_mbit = None if gbit is None else gbit * 1000
        if not self.is_real:
            return
        for name, device in zip(NAMES, DEVICES, strict=True):
            limit_device(name, device, gbit)


def give_device(name: str, device: str, host: str) -> None:
    """Move a device into a namespace, where it has a loopback address, which others reach over it."""
    run("ip", "link", "set", device, "netns", name)
    for place in ("all", device):
        run_in_namespace(name, "sysctl", "-qw", f"net.ipv4.conf.{place}.route_localnet=1")
    # Loopback keeps only one address; otherwise it would claim all of 127.0.0.0/8.
    run_in_namespace(name, "ip", "link", "set", "lo", "up")
    run_in_namespace(name, "ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
    run_in_namespace(name, "ip", "addr", "add", "127.0.0.1/32", "dev", "lo")
    run_in_namespace(name, "ip", "link", "set", device, "up")
    run_in_namespace(name, "ip", "addr", "add", f"{host}/24", "dev", device)


def limit_device(name: str, device: str, gbit: float | None) -> None:
    """Limit what a device sends; None removes the limit."""
    with suppress(subprocess.CalledProcessError):
        run_in_namespace(name, "tc", "qdisc", "del", "dev", device, "root")
    if gbit is not None:
        # The bucket holds 2 ms of data, but at least two of the largest packets of a veth.
        burst = max(131_072, int(gbit * 1e9 / 8 * 0.002))
        limit = ["rate", f"{gbit * 1000:g}mbit", "burst", str(burst), "limit", "16000000"]
        run_in_namespace(name, "tc", "qdisc", "add", "dev", device, "root", "tbf", *limit)


def run_in_namespace(name: str, *command: str) -> None:
    """Run a command in a namespace."""
    run("ip", "netns", "exec", name, *command)


def run(*command: str) -> None:
    """Run a command, without its output."""
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
