"""A process at an end of the star: the trainer (end 0), or a replica. Reads commands from standard input as JSON lines.

python benchmarks/publish/agent.py trainer|replica
"""

from __future__ import annotations

import hashlib
import json
import sys
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np

from headrace.embeddings import Keys, RowWiseAdagradConfig, TableConfig, TableGroup
from headrace.threads import use_threads
from publish.arms import DIM, RECEIVERS, SENDERS, Receiver, Sender

STEP_S = 0.02
"""Seconds between two batches."""


class TrainerAgent:
    """Trains a table at a given rate, and publishes it."""

    def __init__(self) -> None:
        self._sender: Sender | None = None

    def start(self, arm: str, num_rows: int, host: str, folder: str) -> dict[str, Any]:
        """Train all rows once, and publish them as version 1."""
        table = TableConfig(
            name="t",
            kind="collisionless",
            num_embeddings=num_rows,
            embedding_dim=DIM,
            optimizer=RowWiseAdagradConfig(lr=0.1),
        )
        self._group, self._rng = TableGroup([table], seed=0), np.random.default_rng(1)
        self._places = self._rng.permutation(num_rows)
        for first in range(0, num_rows, 100_000):
            self._train(np.arange(first, min(num_rows, first + 100_000)))
        self._sender = SENDERS[arm](self._group, host, Path(folder))
        self._cut(1)
        return {}

    def run(self, seconds: float, every_s: float, touches_per_s: int) -> dict[str, Any]:
        """Train, and cut versions when they are due and the one before is on its way."""
        batches: list[tuple[float, list[int]]] = []
        cuts: list[tuple[int, float]] = []
        version, start, cpu = 1, time.time(), time.process_time()
        next_step, next_cut = start, start + every_s
        while time.time() < start + seconds:
            ids = self._changed(int(touches_per_s * STEP_S))
            self._train(ids)
            batches.append((time.time(), ids.tolist()))
            if time.time() >= next_cut and self._sender.is_idle:
                version += 1
                cuts.append((version, self._cut(version)))
                next_cut = max(next_cut + every_s, time.time())
            next_step += STEP_S
            time.sleep(max(0.0, next_step - time.time()))
        while not self._sender.is_idle:
            time.sleep(0.001)
        version += 1
        cuts.append((version, self._cut(version)))
        while not self._sender.is_idle:
            time.sleep(0.001)
        times = np.array([at for at, _ in batches])
        counts = np.array([len(ids) for _, ids in batches])
        ends = np.searchsorted(times, [cut_at for _, cut_at in cuts])
        changed, unique = 0, []
        for begin, end in zip([0, *ends], ends, strict=False):
            parts = [ids for _, ids in batches[begin:end]]
            unique.append(len(np.unique(np.concatenate(parts))) if parts else 0)
            changed += unique[-1]
        return {
            "times": times.tolist(),
            "counts": counts.tolist(),
            "cuts": cuts,
            "changed": changed,
            "version": version,
            "cpu_s": time.process_time() - cpu,
            "unique_after": self._unique_after(batches),
        }

    def rows(self) -> dict[str, Any]:
        """The trainer's rows."""
        num_rows = len(self._places)
        none = np.zeros(num_rows, np.int32)
        rows = self._group.read(Keys(none, np.arange(num_rows), none))
        return {
            "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
            "sum": float(np.abs(rows, dtype=np.float64).sum()),
        }

    def stop(self) -> dict[str, Any]:
        self._sender.close()
        return {}

    def _cut(self, version: int) -> float:
        return self._sender.cut(version)

    def _changed(self, count: int) -> np.ndarray:
        ranks = self._rng.zipf(1.05, 4 * count)
        return np.unique(self._places[ranks[ranks <= len(self._places)][:count] - 1])

    def _train(self, ids: np.ndarray) -> None:
        keys = Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))
        self._group.update(keys, self._rng.standard_normal((len(ids), DIM), dtype=np.float32))

    @staticmethod
    def _unique_after(batches: list[tuple[float, list[int]]]) -> list[tuple[float, int]]:
        """How many rows change within a time: (seconds, rows)."""
        found = []
        for count in (1, 2, 5, 10, 20, 50, 100, 200):
            if count <= len(batches):
                rows = len(np.unique(np.concatenate([ids for _, ids in batches[:count]])))
                found.append((count * STEP_S, rows))
        return found


class ReplicaAgent:
    """Receives versions."""

    def __init__(self) -> None:
        self._receiver: Receiver | None = None

    def start(self, arm: str, num_rows: int, hosts: list[str], me: int, folder: str) -> dict[str, Any]:
        self._cpu = time.process_time()
        self._receiver = RECEIVERS[arm](num_rows, hosts, me, Path(folder))
        return {}

    def wait(self, version: int, seconds: float) -> dict[str, Any]:
        """Wait until a version is visible."""
        until = time.monotonic() + seconds
        while time.monotonic() < until and not any(seen >= version for seen, _ in self._receiver.seen):
            time.sleep(0.002)
        return {"newest": max((seen for seen, _ in self._receiver.seen), default=0)}

    def stop(self) -> dict[str, Any]:
        seen, rows = list(self._receiver.seen), self._receiver.close()
        return {
            "seen": seen,
            "cpu_s": time.process_time() - self._cpu,
            "sha256": hashlib.sha256(rows.tobytes()).hexdigest(),
            "sum": float(np.abs(rows, dtype=np.float64).sum()),
        }


def main(role: str) -> None:
    use_threads(1)
    agent: Any = TrainerAgent() if role == "trainer" else ReplicaAgent()
    print(json.dumps({"ready": True}), flush=True)
    for line in sys.stdin:
        command = json.loads(line)
        try:
            answer = getattr(agent, command.pop("do"))(**command)
        except Exception as error:
            answer = {"error": f"{type(error).__name__}: {error}"}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
