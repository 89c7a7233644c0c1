"""Shards in this process; one Numba thread, for batches are tiny."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import numba
import pytest

from headrace.embeddings.shards.security import ServerSecurity
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard

sys.path.insert(0, str(Path(__file__).parent))

Serve = Callable[..., str]


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = numba.get_num_threads()
    numba.set_num_threads(1)
    yield
    numba.set_num_threads(before)


@pytest.fixture
def serve() -> Iterator[Serve]:
    """Starts shards in this process; gives the address of each."""
    with ExitStack() as stack:

        def start(
            *,
            security: ServerSecurity | None = None,
            max_keys: int = 1000,
            hold_s: float = 20.0,
            port: int = 0,
            checkpoints: Path | None = None,
        ) -> str:
            server = ShardServer(
                Shard(hold_s=hold_s, checkpoints=checkpoints),
                f"127.0.0.1:{port}",
                security=security,
                max_keys=max_keys,
                threads=1,
            )
            stack.callback(server.shutdown)
            return f"127.0.0.1:{server.port}"

        yield start
