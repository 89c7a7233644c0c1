"""A sample of what `scripts/fuzz_shard.py` sends: the shard answers each request, with one line, and goes on."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import pytest

from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz_shard.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fuzz_shard", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "fuzz_shard", module)
    spec.loader.exec_module(module)
    return module


def test_a_shard_outlives_malformed_requests_and_keeps_its_rows(script: ModuleType, tmp_path: Path) -> None:
    server = ShardServer(Shard(checkpoints=tmp_path, hold_s=0.05), "127.0.0.1:0")
    try:
        counts = script.fuzz(f"127.0.0.1:{server.port}", 200, seed=7)
    finally:
        server.shutdown()
    assert counts.faults == []
    assert counts.total("refused") > 150
    assert sum(counts.outcomes.values()) == 200
