"""Features next to dense work on two cores, without a network: `python -m schedule.barrier STEPS` prints JSON.

A parallel matrix product ends when its slowest thread does, so a background thread on one of its cores makes the other
threads wait at the barrier. Here each step has dense work (forward and backward pass of an MLP, on two threads) and
computes the features of the next batch, in two orders: on a background thread during the dense work, as with plain
prefetching, or after it on both cores, as the scheduler does. The total work is the same.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.threads import use_threads
from schedule.workloads import make_workload

ALONE, FEATURES = "dense work alone", "features alone, one thread"
BESIDE, AFTER = "features on a thread beside dense work", "features after dense work, on both cores"
ARMS = (ALONE, FEATURES, BESIDE, AFTER)
NUM_ROWS, WIDTH, CORES = 1024, 512, 2
FEATURE_ROWS = 1024


class Step:
    """A step: dense work and the features of a batch, alone or in either order."""

    def __init__(self) -> None:
        use_threads(CORES)
        work = make_workload("industrial")
        self._plan = FeaturePlan.from_config(work.features, Schema.from_dict(work.schema, where="schema"))
        rows = work.table.combine_chunks().to_batches(max_chunksize=FEATURE_ROWS)[0]
        half = len(rows) // 2
        self._whole, self._halves = rows, (rows.slice(0, half), rows.slice(half))
        self._model = nn.Sequential(
            nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, 1)
        )
        self._input = torch.rand(NUM_ROWS, WIDTH, generator=torch.Generator().manual_seed(0))
        self._threads = ThreadPoolExecutor(CORES)

    def dense(self) -> float:
        """Make a forward and a backward pass, and return the seconds they took."""
        began = time.perf_counter()
        self._model.zero_grad()
        self._model(self._input).mean().backward()
        return time.perf_counter() - began

    def features(self) -> None:
        """Compute the features of one batch on the calling thread."""
        self._plan.apply(self._whole)

    def beside(self) -> float:
        """Do both at the same time, and return the seconds of the dense work."""
        waiting = self._threads.submit(self.features)
        seconds = self.dense()
        waiting.result()
        return seconds

    def after(self) -> float:
        """Do one after the other, each on both cores, and return the seconds of the dense work."""
        seconds = self.dense()
        list(self._threads.map(self._plan.apply, self._halves))
        return seconds


def main() -> None:
    """Time all arms in turn, and print the samples."""
    steps, step = int(sys.argv[1]), Step()
    work: dict[str, Callable[[], float | None]] = {
        ALONE: step.dense,
        FEATURES: step.features,
        BESIDE: step.beside,
        AFTER: step.after,
    }
    samples: dict[str, dict[str, list[float]]] = {name: {"step": [], "dense": []} for name in ARMS}
    for number in range(steps + 5):
        for name in ARMS:
            began = time.perf_counter()
            dense_s = work[name]()
            if number >= 5:
                samples[name]["step"].append(time.perf_counter() - began)
                samples[name]["dense"].append(dense_s or 0.0)
    print(json.dumps(samples), flush=True)


if __name__ == "__main__":
    main()
