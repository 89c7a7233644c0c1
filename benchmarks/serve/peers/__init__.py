"""Servers of other libraries, one a file: `python -m serve.peers.NAME`, with settings from the environment.

Each answers `POST` of `{"records": [{column: value, ...}, ...]}` with `{"probabilities": [...]}`, puts requests
together into batches, and runs the model in one thread of one process.
"""

from __future__ import annotations

import os
from dataclasses import asdict, dataclass
from typing import Self

__all__ = ["Settings"]

_PREFIX = "BENCH_SERVE_"


@dataclass(frozen=True)
class Settings:
    """What a server is told.

    Attributes:
        weights: Path of the weights.
        port: Port on 127.0.0.1.
        max_requests: Maximum requests of a batch.
        max_records: Maximum records of a batch, for libraries that count these.
        max_wait_ms: Maximum time for which a request waits for others.
    """

    weights: str
    port: int
    max_requests: int
    max_records: int
    max_wait_ms: float

    def to_environment(self) -> dict[str, str]:
        """As variables of the environment, which all libraries hand to their worker processes."""
        return {_PREFIX + name.upper(): str(value) for name, value in asdict(self).items()}

    @classmethod
    def from_environment(cls) -> Self:
        """As given by `to_environment`."""
        values = {name: os.environ[_PREFIX + name.upper()] for name in cls.__dataclass_fields__}
        return cls(
            values["weights"],
            int(values["port"]),
            int(values["max_requests"]),
            int(values["max_records"]),
            float(values["max_wait_ms"]),
        )
