"""Kills a job under a budget, with rows in files and in shards, again and again, and compares the bits it ends with.

    python scripts/kill_budget_job.py --kills 20 --seed 0

The job has two shards, tiered storage, a budget that most ids have no row in, and partitions that grow and shrink. The
launcher is restarted whenever it ends. Between kills there is a random pause, so they hit trainer, shard or both in a
step, a checkpoint, the end of a window, or the start. Ends with code 1 if the last checkpoint differs in any bit from
that of the same job in one process, in memory, without kills.
"""

from __future__ import annotations

import argparse
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil

from headrace.logs.generate import GenerateConfig, generate_logs
from headrace.testing.checkpoints import checkpoint_arrays
from headrace.testing.processes import running_children
from headrace.training import CheckpointFolder

JOB = """\
run: {run}
data: {{path: logs}}
pipeline: {{shuffle: {{num_rows: 700, seed: 3}}, workers: 1, tuner: none}}
embeddings:
  budget: 100KiB
  partitions: 3
  retention: {{kind: importance, half_life_rows: 3000}}
  storage: {storage}
  default: {{num_embeddings: 3000, optimizer: {{kind: rowwise_adagrad, lr: 0.05}}}}
  tables: {{item: {{kind: collisionless, num_embeddings: 64, evict_after: 1}}}}
model: {{kind: deepfm, embedding_dim: 8, deep: [16]}}
training: {{batch_size: 64, threads: 1, checkpoint_every_steps: 7, dense_optimizer: {{kind: sgd, lr: 0.05}}}}
"""
TARGETS = (("train",), ("shard",), ("train", "shard"), ("shard", "shard"))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--rows", type=int, default=60_000, help="rows of the log, in four windows")
    parser.add_argument("--pause", type=float, default=6.0, help="longest pause between kills, in seconds of training")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        generate_logs(GenerateConfig(rows=options.rows, windows=4, users=3_000, items=3_000, seed=5), folder / "logs")
        storages = {"plain": "memory", "killed": f"{{kind: tiered, memory: 36KiB, path: {folder}}}"}
        for run, storage in storages.items():
            (folder / f"{run}.yaml").write_text(JOB.format(run=run, storage=storage))
        run_and_kill(folder, random.Random(options.seed), options.kills, options.pause)
        subprocess.run([sys.executable, "-m", "headrace", "train", "plain.yaml"], cwd=folder, check=True)
        expected, found = checkpoint_arrays(folder / "plain"), checkpoint_arrays(folder / "killed")
    wrong = sorted(name for name in expected.keys() | found.keys() if not _equal(expected, found, name))
    print(f"{len(expected)} arrays compared, {len(wrong)} differ{': ' if wrong else ''}{', '.join(wrong)}")
    return 1 if wrong else 0


def run_and_kill(folder: Path, choices: random.Random, num_kills: int, pause_s: float) -> None:
    """Run the job to its end, restarted after each kill that ends it."""
    command = [sys.executable, "-m", "headrace", "launch", "killed.yaml", "--trainers=1", "--shards=2"]
    counts: Counter[str] = Counter()
    checkpoints = CheckpointFolder(folder / "killed" / "checkpoints")
    starts = 0
    while True:
        starts += 1
        with (folder / "killed.log").open("a") as log:
            process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log)
        while process.poll() is None and counts.total() < num_kills:
            before = checkpoints.numbers()
            if choices.random() < 0.8:  # otherwise it may be killed while it starts
                while process.poll() is None and checkpoints.numbers() == before:
                    time.sleep(0.02)
            time.sleep(choices.random() * pause_s)
            kill(process, choices, counts, before=checkpoints.numbers())
        if process.wait() == 0:
            break
    print(f"{counts.total()} kills in {starts} starts: {', '.join(f'{n} {what}' for what, n in counts.items())}")


def kill(process: subprocess.Popen[bytes], choices: random.Random, counts: Counter[str], *, before: list[int]) -> None:
    """Kill a random choice of the job's processes."""
    with suppress(psutil.NoSuchProcess):
        target = choices.choice(TARGETS)
        victims = [
            child
            for role in dict.fromkeys(target)
            for child in running_children(process.pid, role)[: target.count(role)]
        ]
        for child in victims:
            child.kill()
        if victims:
            counts[" and ".join(target)] += 1
            print(
                f"kill {counts.total()}: {' and '.join(target)} after checkpoint {max(before, default=0)}", flush=True
            )


def _equal(expected: dict[str, Any], found: dict[str, Any], name: str) -> bool:
    return name in expected and name in found and np.array_equal(expected[name], found[name])


if __name__ == "__main__":
    sys.exit(main())
