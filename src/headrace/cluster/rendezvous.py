"""How trainers of a run find each other: the environment variables that torchrun sets, as often as it takes.

A *round* is one stretch in which all trainers train together. It ends for all when it ends for one: whoever leaves
closes its connections, and the others' next exchange of gradients fails. All then meet again in the next round.
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

# Its functions take the process group of the moment of its import as a default, and so would keep the connections of a
# round open; imported before the first one they keep nothing.
import torch.distributed.nn.functional  # noqa: F401
from torch.distributed import FileStore, PrefixStore, TCPStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from headrace.embeddings.shards.security import is_loopback
from headrace.errors import ConfigError
from headrace.training.process_group import DataParallel, PeerLost, ProcessGroup, SingleProcess

__all__ = ["RENDEZVOUS_VARIABLE", "Rendezvous"]

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")

RENDEZVOUS_VARIABLE = "HEADRACE_RENDEZVOUS"
"""A file in a folder that only this user may enter, through which trainers of one machine meet instead of at
MASTER_ADDR. Nobody else can write to it, and nothing listens."""


class Rendezvous:
    """Meets the other trainers, round after round.

    Args:
        timeout_s: How long to wait for the others, in a rendezvous and in a step.

    Attributes:
        size: Trainers of the run: WORLD_SIZE, or 1 where it is not set.

    Raises:
        ConfigError: Some of the variables are set, others are not.
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
        """Train together with the others; whoever leaves first ends it for all.

        Raises:
            PeerLost: The others did not come in time.
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
        """Where trainers leave their addresses for each other; listens no further than they are apart."""
        if self._file is not None or _all_are_here():
            os.environ["GLOO_SOCKET_IFNAME"] = loopback_interface()  # gloo listens on the machine's address otherwise
        if self._file is not None:
            store = FileStore(self._file, self.size)
            store.set_timeout(self._timeout)
            return store
        host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if not is_loopback(host) or os.environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            return next(iter(rendezvous("env://", timeout=self._timeout)))[0]
        if rank != 0:
            return TCPStore(host, port, self.size, False, self._timeout)
        # Given a port alone, torch listens on all addresses.
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, port), family=family) as listener:
            listening = listener.detach()
        return TCPStore(host, port, self.size, True, self._timeout, master_listen_fd=listening)


def _all_are_here() -> bool:
    """Whether all trainers of the run are on this machine, as far as the environment tells."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    return is_loopback(os.environ["MASTER_ADDR"]) or (local is not None and local == os.environ["WORLD_SIZE"])


def loopback_interface() -> str:
    """The network interface that only this machine reaches: lo on Linux, lo0 on macOS.

    Raises:
        ConfigError: There is none.
    """
    for name, addresses in psutil.net_if_addrs().items():
        for address in addresses:
            if address.family == socket.AF_INET and ipaddress.ip_address(address.address).is_loopback:
                return str(name)
    raise ConfigError("trainers on one machine need its loopback interface, 127.0.0.1, which is not up")


@contextmanager
def _without_greeting() -> Iterator[None]:
    """Leave out the line that gloo writes, from C++, when it is connected; what others write meanwhile is passed on."""
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
