"""BentoML with adaptive batches, which count records: it learns how long to wait within a latency, and takes no wait.

The latency is 20 ms, the promise of the benchmark. Records are not validated beyond being a list of objects.
"""

from __future__ import annotations

from typing import Any

import bentoml

from serve.peers import Settings
from serve.torch_dlrm import TorchScorer

_settings = Settings.from_environment()


@bentoml.service(
    workers=1,
    threads=1,
    traffic={"timeout": 10, "max_concurrency": 100_000},
    metrics={"enabled": False},
    logging={"access": {"enabled": False}},
)
class Scoring:
    """Scores records."""

    def __init__(self) -> None:
        self._scorer = TorchScorer(_settings.weights)

    @bentoml.api(route="/score", batchable=True, max_batch_size=_settings.max_records, max_latency_ms=1000)
    def score(self, records: list[dict[str, Any]]) -> list[float]:
        """Score the records of a batch."""
        return self._scorer(records)


if __name__ == "__main__":
    # BentoML's workers import the service by name, so it must not be that of `__main__`.
    from serve.peers.bentoml_server import Scoring as ImportedScoring

    ImportedScoring.serve_http(host="127.0.0.1", port=_settings.port)
