"""The process of an arm that makes training steps on batches in memory: `python -m dedup.steps JSON`.

The JSON has the folder of the log, the layout, the model, the deduplication, the batch size, and whether batches are
expanded. The process reads commands from standard input, one per line, and answers each with a line of JSON:

    time N      make N steps: {"seconds", "loss"}, the seconds per step and the loss of the last step
    memory      {"peak_bytes"}, the peak of resident memory minus that before the first step
"""

from __future__ import annotations

import json
import sys
import time
from dataclasses import replace
from itertools import cycle
from pathlib import Path
from typing import Any

import torch
from peers.answers import open_answers

from headrace.logs import ParquetSource, select_files
from headrace.logs.files import list_files
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor
from headrace.threads import use_threads
from headrace.training.batch_size import largest_batch
from headrace.training.components import build_components
from headrace.training.feed import PlannedSources, open_batches, source_columns
from headrace.training.step import TrainingStep

NUM_BATCHES = 4


def expanded(batch: Batch) -> Batch:
    """Return the same batch without deduplication: one plain group with all features."""
    groups = [group.expand() if isinstance(group, InverseKeyedJaggedTensor) else group for group in batch.sparse]
    keys = [key for group in groups for key in group.keys]
    values, lengths = torch.cat([g.values for g in groups]), torch.cat([g.lengths for g in groups])
    return replace(batch, sparse=(KeyedJaggedTensor.from_lengths(keys, values, lengths),))


def ready_batches(settings: dict[str, Any]) -> tuple[list[Batch], TrainingStep]:
    """Read `NUM_BATCHES` batches from the log, and return them with the training step of a new model."""
    from dedup.jobs import job
    from dedup.logs import DedupLogs

    logs, layout = DedupLogs(Path(settings["folder"]), 0), settings["layout"]
    config = job(
        logs.path(layout),
        logs.schema(layout),
        Path("never-written"),
        model=settings["model"],
        dedup=settings["dedup"],
        batch_size=settings["batch_size"],
    )
    torch.manual_seed(0)
    use_threads(None)
    parts = build_components(config)
    source = ParquetSource(
        select_files(list_files(config.data.path)),
        config.schema_of_logs,
        columns=source_columns(config, parts.plan),
    )
    batches: list[Batch] = []
    batch_size = largest_batch(config.training.batch_size)
    with open_batches(config, PlannedSources(config, parts.plan, [lambda: source], batch_size=batch_size)) as delivered:
        for batch in delivered:
            batches.append(expanded(batch) if settings["expanded"] else batch)
            if len(batches) == NUM_BATCHES:
                break
    return batches, TrainingStep(parts.model, parts.optimizer)


def resident(name: str) -> int:
    """Return VmRSS (resident memory) or VmHWM (its peak) of this process, in bytes."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))


def main() -> None:
    """Train as requested until the input ends."""
    settings = json.loads(sys.argv[1])
    answer = open_answers()
    batches, step = ready_batches(settings)
    turn = cycle(batches)
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = resident("VmRSS")

    answer({"ready": True})
    for line in sys.stdin:
        if line.startswith("memory"):
            answer({"peak_bytes": resident("VmHWM") - before})
            continue
        count = int(line.split()[1])
        begin = time.perf_counter()
        for _ in range(count):
            loss = step(
                replace(next(turn), unique_keys={})
            ).loss  # batches are reused, but each step must find their keys
        answer({"seconds": (time.perf_counter() - begin) / count, "loss": loss})


if __name__ == "__main__":
    main()
