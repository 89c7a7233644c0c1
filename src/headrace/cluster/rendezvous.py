"""`Rendezvous`: connects the trainers of a run, repeatedly, using the environment variables that torchrun sets.

A *round* is a period in which all trainers train together. It ends for all when it ends for one: a leaving trainer
closes its connections, so the others' next gradient exchange fails. All then meet again in the next round.
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from tempfile import TemporaryFile
from typing import Any

import psutil
import torch.distributed as dist

# Its functions bind the current process group as a default at import time, and so would keep a round's connections
# open. Importing it before the first round avoids this.
import torch.distributed.nn.functional  # noqa: F401
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from headrace.embeddings.shards.security import is_loopback
from headrace.errors import ConfigError
from headrace.training.process_group import DataParallel, PeerLost, ProcessGroup, SingleProcess

__all__ = ["RENDEZVOUS_VARIABLE", "Rendezvous"]

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

RENDEZVOUS_VARIABLE = "HEADRACE_RENDEZVOUS"
"""File through which trainers on one machine meet, instead of at MASTER_ADDR. It is in a folder that only this user can
access, and no port is opened."""


class Rendezvous:
    """Connects to the other trainers, once per round.

    Args:
        timeout_s: Seconds to wait for the others, in a rendezvous and in a step.

    Attributes:
        size: Number of trainers of the run: WORLD_SIZE, or 1 if it is not set.

    Raises:
        ConfigError: Only some of the variables are set.
    """

    def __init__(self, timeout_s: float) -> None:
        self.size = int(os.environ.get("WORLD_SIZE", "1"))
        self._file = os.environ.get(RENDEZVOUS_VARIABLE)
        needed = VARIABLES if self._file is None else VARIABLES[:2]
        missing = [name for name in needed if name not in os.environ]
        if self.size > 1 and missing:
            raise ConfigError(
                f"WORLD_SIZE is {self.size}, but these are not set: {', '.join(missing)}; start with headrace launch"
            )
        self._timeout = timedelta(seconds=max(timeout_s, 1.0))
        self._store: Any = None
        self._round = 0

    @contextmanager
    def round(self) -> Iterator[ProcessGroup]:
        """Join a round with the other trainers; it ends for all when the first one leaves.

        Raises:
            PeerLost: The others did not arrive in time.
        """
        if self.size == 1:
            yield SingleProcess()
            return
        try:
            rank = int(os.environ["RANK"])
            if self._store is None:
                self._store = self._open_store(rank)
            self._round += 1
            store = PrefixStore(f"headrace-{self._round}", self._store)
            with _without_greeting():
                dist.init_process_group("gloo", store=store, rank=rank, world_size=self.size, timeout=self._timeout)
        except (OSError, RuntimeError, ValueError) as error:
            raise PeerLost(f"trainers could not connect to each other: {str(error).splitlines()[0]}") from error
        try:
            yield DataParallel()
        finally:
            dist.destroy_process_group()

    def _open_store(self, rank: int) -> Any:
        """Open the store in which trainers exchange addresses; it listens only as widely as needed."""
        if self._file is not None or _all_are_here():
            os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()  # by default gloo uses the machine's address
        if self._file is not None:
            store = FileStore(self._file, self.size)
            store.set_timeout(self._timeout)
            return store
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not is_loopback(host) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return next(iter(rendezvous("env://", timeout=self._timeout)))[0]
        if rank != 0:
            return TCPStore(host, port, self.size, False, self._timeout)
        # With only a port, torch would listen on all addresses.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            listening = listener.detach()
        return TCPStore(host, port, self.size, True, self._timeout, master_listen_fd=listening)


def _all_are_here() -> bool:
    """Whether all trainers of the run are on this machine, according to the environment."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return is_loopback(os.environ["MASTER_ADDR"]) or (local is not None and local == os.environ["WORLD_SIZE"])


def loopback_interface() -> str:
    """The loopback network interface: lo on Linux, lo0 on macOS.

    Raises:
        ConfigError: There is no loopback interface.
    """
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and ipaddress.ip_address(address.address).is_loopback:
                return str(name)
    raise ConfigError("trainers on one machine need the loopback interface, 127.0.0.1, which is not up")


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Suppress the line that gloo prints from C++ when it connects; other output is passed on."""
    sys.stdout.flush()
    with TemporaryFile() as kept:
        terminal = os.dup(1)
        os.dup2(kept.fileno(), 1)
        try:
            yield
        finally:
            os.dup2(terminal, 1)
            os.close(terminal)
            kept.seek(0)
            for line in kept:
                if not line.startswith(b"[Gloo] "):
                    os.write(1, line)
