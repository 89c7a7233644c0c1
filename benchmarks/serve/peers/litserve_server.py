"""LitServe: FastAPI in one process, the model in another, requests between them over ZeroMQ."""

# No `from __future__ import annotations`: LitServe reads the type of a request from its annotation.
from collections.abc import Sequence
from typing import Any

import litserve
from fastapi import Request

from serve.peers import Settings
from serve.torch_dlrm import TorchScorer


class Scoring(litserve.LitAPI):
    """Scores batches of requests. Without batches, `predict` gets single requests."""

    def setup(self, device: str) -> None:
        """Load the model."""
        self.scorer = TorchScorer(Settings.from_environment().weights)

    def decode_request(self, request: Request) -> Any:
        """Take the records."""
        return request["records"]  # the body, parsed already

    def batch(self, inputs: Sequence[Any]) -> Any:
        """Keep requests as they are."""
        return inputs

    def predict(self, x: Any) -> Any:
        """Score requests."""
        return self.scorer.many(x) if self.max_batch_size > 1 else self.scorer(x)

    def unbatch(self, output: Any) -> Any:
        """Answers are by request already."""
        return output

    def encode_response(self, output: Any) -> Any:
        """Name the answer."""
        return {"probabilities": output}


if __name__ == "__main__":
    settings = Settings.from_environment()
    api = Scoring(
        max_batch_size=settings.max_requests,
        batch_timeout=settings.max_wait_ms / 1000 if settings.max_requests > 1 else 0.0,
        api_path="/score",
    )
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, fast_queue=True, track_requests=False)
    server.run(
        host="127.0.0.1",
        port=settings.port,
        num_api_servers=1,
        generate_client_file=False,
        log_level="warning",
        access_log=False,
    )
