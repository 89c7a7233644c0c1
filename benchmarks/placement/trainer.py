"""The trainer of `bench_placement.py`: trains the windows of a log as requested, and measures them.

It reads commands from standard input, one line of JSON each, and answers with a line of JSON: for each window, seconds
and bytes per step, and the loss, which must be the same for all arms. Rows are in the shard at `address`, in the Redis
server at `redis`, or, without both, in this process.

    {"run": "/tmp/run", "log": "/tmp/log", "address": "127.9.0.2:4711", "job": {"placement": "none"}}
"""

from __future__ import annotations

import json
import shutil
import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import numba
import torch

torch.set_num_threads(1)
numba.set_num_threads(1)

from headrace.embeddings import embedding_bags  # noqa: E402
from headrace.observe.timeline import SCHEDULE_FILE  # noqa: E402
from headrace.placement.resident_store import ResidentStore  # noqa: E402
from headrace.training import JobConfig, Trainer  # noqa: E402
from placement.meters import Meters  # noqa: E402
from placement.phases import phases_of  # noqa: E402
from placement.redis_rows import RedisStore  # noqa: E402

NUM_WINDOWS = 2
METERS = Meters()


def train(command: dict[str, Any]) -> dict[str, Any]:
    """Train the windows, each with a new trainer, as scheduled jobs do."""
    run = Path(command["run"])
    shutil.rmtree(run, ignore_errors=True)
    (run / "checkpoints").mkdir(parents=True)
    answers: list[dict[str, Any]] = []
    for number in range(NUM_WINDOWS):
        values = {"run": str(run), "data": {"path": command["log"], "window": {"kind": "file"}}, **command["job"]}
        if command["address"]:
            values["cluster"] = {"shards": [command["address"]]}
        trainer = Trainer(JobConfig.from_dict(values, where="job").resolve(run))
        if command.get("redis"):
            use_redis(trainer, command["redis"], is_first=number == 0)
        answers.append(train_window(trainer, run, steps_before=sum(answer["steps"] for answer in answers)))
    return {"windows": answers}


def train_window(trainer: Trainer, run: Path, *, steps_before: int) -> dict[str, Any]:
    """Train the next window, and return what it took, per step."""
    (run / SCHEDULE_FILE).unlink(missing_ok=True)
    returns_s = METERS.returns.wall_s
    cpu_s, planner_s = METERS.steps.cpu_s + METERS.returns.cpu_s, METERS.planner.cpu_s
    with redirect_stdout(sys.stderr):
        (window,) = trainer.run(windows=1).windows
    steps, (sent, received, kept_rows) = trainer.state.step - steps_before, moved(trainer)
    returns_s = METERS.returns.wall_s - returns_s
    (score,) = list(window.scores.values())[:1]
    return {
        "steps": steps,
        "step_s": (window.seconds + returns_s) / steps,
        "returns_s": returns_s / steps,
        "cpu_s": (METERS.steps.cpu_s + METERS.returns.cpu_s - cpu_s) / steps,
        "planner_s": (METERS.planner.cpu_s - planner_s) / steps,
        "bytes": (sent + received) / steps,
        "most_bytes": max(sent, received) / steps,
        "kept_rows": kept_rows,
        "loss": score.log_loss,
        "phases": phases_of(run),
    }


def moved(trainer: Trainer) -> tuple[int, int, int]:
    """Bytes that the stores of a trainer sent and received, and the most rows that it kept."""
    sent = received = kept_rows = 0
    for bags in embedding_bags(trainer.components.model).values():
        store = bags.store
        if isinstance(store, RedisStore):
            sent, received = sent + store.redis.num_sent, received + store.redis.num_received
            continue
        if isinstance(store, ResidentStore):
            kept_rows += store.counters.peak_rows
            store = store.remote
        if hasattr(store, "counters"):
            counters = store.counters()
            sent, received = sent + counters.bytes_sent, received + counters.bytes_received
    return sent, received, kept_rows


def use_redis(trainer: Trainer, address: str, *, is_first: bool) -> None:
    """Keep the rows of a trainer in a Redis server, which is emptied at the start."""
    for bags in embedding_bags(trainer.components.model).values():
        store = RedisStore(address, bags.tables, trainer.job.training.seed, bags.embedding_dim)
        bags.use_store(store)
        if is_first:
            store.redis.clear()


def main() -> None:
    """Answer commands until the input ends."""
    for line in sys.stdin:
        answer = train(json.loads(line))
        sys.stdout.write(json.dumps(answer) + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
