"""Mosec: HTTP and batches in Rust, the model in one Python process beside it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import orjson
from mosec import Server, Worker

from serve.peers import Settings
from serve.torch_dlrm import TorchScorer


class Scoring(Worker):
    """Scores batches of requests."""

    def __init__(self) -> None:
        super().__init__()
        self._scorer = TorchScorer(Settings.from_environment().weights)

    def deserialize(self, data: bytes) -> Any:
        """Read a body."""
        return orjson.loads(data)["records"]

    def serialize(self, data: Any) -> bytes:
        """Write an answer."""
        return orjson.dumps({"probabilities": data})

    def forward(self, data: Sequence[Any]) -> Any:
        """Score requests. A batch size of 1 hands over a single request."""
        return self._scorer.many(data) if Settings.from_environment().max_requests > 1 else self._scorer(data)


if __name__ == "__main__":
    settings = Settings.from_environment()
    sys.argv += ["--address", "127.0.0.1", "--port", str(settings.port), "--log-level", "warning", "--timeout", "10000"]
    server = Server()
    server.append_worker(
        Scoring, num=1, max_batch_size=settings.max_requests, max_wait_time=max(1, int(settings.max_wait_ms))
    )
    server.run()
