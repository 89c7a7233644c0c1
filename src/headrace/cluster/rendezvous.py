"""How trainers of a run find each other: the environment variables that torchrun sets, as often as it takes.

A *round* is one stretch in which all trainers train together. It ends for all when it ends for one: whoever leaves
closes its connections, and the others' next exchange of gradients fails. All then meet again in the next round.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch.distributed as dist

# Its functions take the process group of the moment of its import as a default, and so would keep the connections of a
# round open; imported before the first one they keep nothing.
import torch.distributed.nn.functional  # noqa: F401
from torch.distributed import PrefixStore  # type: ignore[attr-defined]
from torch.distributed.rendezvous import rendezvous

from headrace.errors import ConfigError
from headrace.training.peers import Alone, DataParallel, PeerLost, Peers

__all__ = ["Rendezvous"]

VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


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
        missing = [name for name in VARIABLES if name not in os.environ]
        if self.size > 1 and missing:
            raise ConfigError(
                f"WORLD_SIZE is {self.size}, but not set: {', '.join(missing)}; start with headrace launch"
            )
        self._timeout = timedelta(seconds=max(timeout_s, 1.0))
        self._store: Any = None
        self._round = 0

    @contextmanager
    def round(self) -> Iterator[Peers]:
        """Train together with the others; whoever leaves first ends it for all.

        Raises:
            PeerLost: The others did not come in time.
        """
        if self.size == 1:
            yield Alone()
            return
        try:
            if self._store is None:
                self._store, _, _ = next(iter(rendezvous("env://", timeout=self._timeout)))
            self._round += 1
            store = PrefixStore(f"headrace-{self._round}", self._store)
            rank = int(os.environ["RANK"])
            dist.init_process_group("gloo", store=store, rank=rank, world_size=self.size, timeout=self._timeout)
        except (RuntimeError, ValueError) as error:
            raise PeerLost(f"trainers did not meet: {str(error).splitlines()[0]}") from error
        try:
            yield DataParallel()
        finally:
            dist.destroy_process_group()
