"""Ray Serve: its proxy and one replica, with `serve.batch`."""

from __future__ import annotations

import signal
from typing import Any

import orjson
import ray
from ray import serve
from starlette.requests import Request
from starlette.responses import Response

from serve.peers import Settings
from serve.torch_dlrm import TorchScorer

_settings = Settings.from_environment()


@serve.deployment(num_replicas=1, max_ongoing_requests=10_000, ray_actor_options={"num_cpus": 1})
class Scoring:
    """Scores batches of requests."""

    def __init__(self, weights: str) -> None:
        self._scorer = TorchScorer(weights)

    @serve.batch(max_batch_size=_settings.max_requests, batch_wait_timeout_s=_settings.max_wait_ms / 1000)
    async def score(self, requests: list[Any]) -> list[list[float]]:
        """Score requests."""
        return self._scorer.many(requests)

    async def __call__(self, request: Request) -> Response:
        """Score the records of a request."""
        found = await self.score(orjson.loads(await request.body())["records"])
        return Response(orjson.dumps({"probabilities": found}), media_type="application/json")


if __name__ == "__main__":
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, configure_logging=False)
    serve.start(http_options={"host": "127.0.0.1", "port": _settings.port}, logging_config={"log_level": "ERROR"})
    serve.run(Scoring.bind(_settings.weights), route_prefix="/score")
    signal.sigwait({signal.SIGTERM, signal.SIGINT})
    serve.shutdown()
    ray.shutdown()
