"""The trainer of `bench_placement.py`: trains the windows of a log as requested, and measures them.

It reads commands from standard input, one line of JSON each, and answers with a line of JSON: for each window, seconds
and bytes per step, and the loss, which must be the same for all arms.

    {"run": "/tmp/run", "log": "/tmp/log", "address": "127.9.0.2:4711", "job": {"placement": "none"}}
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numba
import torch

torch.set_num_threads(1)
numba.set_num_threads(1)

from headrace.embeddings import embedding_bags  # noqa: E402
from headrace.placement.resident_store import ResidentStore  # noqa: E402
from headrace.training import JobConfig, Trainer  # noqa: E402

NUM_WINDOWS = 2


class TimedReturns:
    """Measures how long trainers wait until changed rows are back in their shards."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._flush = ResidentStore.flush
        ResidentStore.flush = lambda store: self._timed(store)  # type: ignore[method-assign]

    def _timed(self, store: ResidentStore) -> None:
        start = time.perf_counter()
        self._flush(store)
        self.seconds += time.perf_counter() - start


RETURNS = TimedReturns()


def train(command: dict[str, Any]) -> dict[str, Any]:
    """Train the windows, each with a new trainer, as scheduled jobs do."""
    run = Path(command["run"])
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    answers = []
    for _ in range(NUM_WINDOWS):
        values = {"run": str(run), "data": {"path": command["log"], "window": {"kind": "file"}}, **command["job"]}
        if command["address"]:
            values["cluster"] = {"shards": [command["address"]]}
        trainer = Trainer(JobConfig.from_dict(values, where="job").resolve(run))
        returns_s, cpu_s = RETURNS.seconds, time.process_time()
        with redirect_stdout(sys.stderr):
            (window,) = trainer.run(windows=1).windows
        steps, kept_rows, sent, received = trainer.state.step, 0, 0, 0
        for bags in embedding_bags(trainer.components.model).values():
            remote = bags.store.remote if isinstance(bags.store, ResidentStore) else bags.store
            if isinstance(bags.store, ResidentStore):
                kept_rows += bags.store.counters.peak_rows
            if command["address"]:
                counters = remote.counters()  # type: ignore[attr-defined]
                sent, received = sent + counters.bytes_sent, received + counters.bytes_received
        steps -= sum(answer["steps"] for answer in answers)
        returns_s = RETURNS.seconds - returns_s
        (score,) = list(window.scores.values())[:1]
        answers.append(
            {
                "steps": steps,
                "step_s": (window.seconds + returns_s) / steps,
                "returns_s": returns_s / steps,
                "cpu_s": (time.process_time() - cpu_s) / steps,
                "bytes": (sent + received) / steps,
                "most_bytes": max(sent, received) / steps,
                "kept_rows": kept_rows,
                "loss": score.log_loss,
            }
        )
    return {"windows": answers}


def main() -> None:
    """Answer commands until the input ends."""
    for line in sys.stdin:
        answer = train(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
