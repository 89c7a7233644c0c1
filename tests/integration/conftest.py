"""Lets the tests here import their helper `saved_runs`, and has the fixture of shards in this process."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from headrace.embeddings.shards.service import ShardServer

sys.path.insert(0, str(Path(__file__).parent))


@pytest.fixture
def shards() -> Iterator[list[ShardServer]]:
    """Shards in this process, which a test adds and may replace."""
    servers: list[ShardServer] = []
    yield servers
    for server in servers:
        server.shutdown()
