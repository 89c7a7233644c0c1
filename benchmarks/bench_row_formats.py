"""Rows of 16 and 8 bits: log loss compared with fp32 rows, bytes, and rates of look-ups, updates and training.

Every arm trains the DLRM of `bench_budget` (dimension 16, row-wise Adagrad, batches of 512 rows) in one pass over the
same logs, with full tables, and predicts each row before it is trained on. All formats have the same seeds, so each
difference is that of two passes with the same initial values, up to their rounding.

Rates are in CPU time of one thread, so that other work on the machine hardly matters.

    python benchmarks/bench_row_formats.py
    python benchmarks/bench_row_formats.py --logs drift --seeds 3
"""

from __future__ import annotations

import os
import sys
import time

import harness

harness.single_threaded()

import numpy as np  # noqa: E402
import torch  # noqa: E402
from bench_budget import BATCH_SIZE, interval  # noqa: E402
from budget.logs import LOGS, BudgetLog, make_budget_log  # noqa: E402
from budget.passes import DIM, OPTIMIZER, one_pass  # noqa: E402
from quality.logs import MissingLog  # noqa: E402

from headrace.embeddings import Keys, TableConfig, TableGroup  # noqa: E402
from headrace.embeddings.storage.row_formats import FORMATS, stored_bytes  # noqa: E402

FULL_ROWS = "fp32"
ROWS = {"drift": 150_000, "criteo": 137_139, "news": 200_000}
ROWS_QUICK = 20_000
SEEDS, SEEDS_QUICK = 5, 2
GOAL = 0.0005
"""As for matrix products in bf16."""
DIMS = (16, 64)
KEYS_PER_STEP, STEPS = 20_000, 20
SPEED, SPEED_QUICK = (1_000_000, 7), (100_000, 1)
"""Rows of a table, and passes over a log."""


def losses(report: harness.Report, log: BudgetLog, seeds: int) -> None:
    """All formats with all seeds."""
    case = f"{log.name}, {log.num_rows:,} rows, {sum(log.num_ids.values()):,} ids"
    found = {
        arm: np.array([one_pass(log, None, 1.0, seed, rows=arm).log_loss for seed in range(seeds)]) for arm in FORMATS
    }
    for arm, each in found.items():
        report.add(case, arm, "log loss", "nats", each.tolist())
        if arm == FULL_ROWS:
            continue
        mean, half = interval(each - found[FULL_ROWS])
        report.add(case, arm, "mean log loss above fp32", "nats", [mean])
        if half is not None:
            report.add(case, arm, "95 % interval, plus or minus", "nats", [half])
        print(f"{case}: {arm}: {mean:+.5f}", file=sys.stderr)
        what = f"{case}: log loss of {arm} rows above fp32, mean of {seeds} seeds"
        report.goal(what, f"<= {GOAL}", f"{mean:+.5f}", met=mean <= GOAL)


def sizes(report: harness.Report) -> None:
    """Bytes of a row."""
    for dim in DIMS:
        for arm in FORMATS:
            case = f"dimension {dim}"
            report.add(case, arm, "bytes of a row", "bytes", [stored_bytes(arm, dim)])
            report.add(case, arm, "with the state of row-wise Adagrad", "bytes", [stored_bytes(arm, dim) + 4])


def group_of(num_rows: int, dim: int, rows: str) -> TableGroup:
    """A table of which all rows were trained once."""
    values = {"name": "id", "kind": "direct", "num_embeddings": num_rows, "embedding_dim": dim}
    table = TableConfig.from_dict(values | {"rows": rows, "optimizer": OPTIMIZER}, where="bench_row_formats")
    group = TableGroup([table], seed=0)
    every = np.arange(num_rows)
    for first in range(0, num_rows, 100_000):
        step(group, every[first : first + 100_000], np.random.default_rng(first))
    return group


def step(group: TableGroup, ids: np.ndarray, random: np.random.Generator) -> tuple[float, float]:
    """Nanoseconds of CPU time per row of a look-up and of an update."""
    keys = Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))
    gradients = random.normal(size=(len(ids), group.embedding_dim)).astype(np.float32)
    times = [time.process_time()]
    group.read(keys)
    times.append(time.process_time())
    group.update(keys, gradients, num_rows=BATCH_SIZE)
    times.append(time.process_time())
    look_up, update = np.diff(times) / len(ids) * 1e9
    return float(look_up), float(update)


def speed(report: harness.Report, log: BudgetLog, num_rows: int, num_passes: int) -> None:
    """Look-ups and updates of random rows of a table larger than caches, and whole passes, formats in turn."""
    for dim in DIMS:
        case = f"{num_rows:,} rows of dimension {dim}, {KEYS_PER_STEP:,} random ones per step, one thread"
        groups = {arm: group_of(num_rows, dim, arm) for arm in FORMATS}
        times: dict[str, list[tuple[float, float]]] = {arm: [] for arm in FORMATS}
        random = np.random.default_rng(1)
        for _ in range(STEPS):
            ids = random.choice(num_rows, KEYS_PER_STEP, replace=False)
            for arm, group in groups.items():
                times[arm].append(step(group, ids, random))
        for arm, each in times.items():
            report.add(case, arm, "look-up, CPU time", "ns/row", [look_up for look_up, _ in each])
            report.add(case, arm, "update, CPU time", "ns/row", [update for _, update in each])
    case = f"{log.name}: whole steps, one thread"
    rates: dict[str, list[float]] = {arm: [] for arm in FORMATS}
    for round_ in range(1 + num_passes):
        for arm in FORMATS if round_ % 2 == 0 else reversed(FORMATS):
            seconds = sum(one_pass(log, None, 1.0, round_, rows=arm).cpu_seconds)
            if round_:  # the first compiles
                rates[arm].append(log.num_rows / seconds)
    for arm, rounds in rates.items():
        report.add(case, arm, "rows per second of CPU time", "rows/s", rounds)


def main() -> None:
    """Run the benchmark."""
    options = harness.options("bench_row_formats", __doc__, logs=",".join(LOGS), seeds=0)
    torch.set_num_threads(1)
    report = harness.Report("bench_row_formats")
    seeds = options.seeds or (SEEDS_QUICK if options.quick else SEEDS)
    report.notes["seeds"] = seeds
    report.notes["dimension"] = DIM
    sizes(report)
    for name in options.logs.split(","):
        try:
            log = make_budget_log(name, ROWS_QUICK if options.quick else ROWS[name], BATCH_SIZE)
        except MissingLog as error:
            print(error, file=sys.stderr)
            continue
        losses(report, log, seeds)
        if name == "drift":
            speed(report, log, *(SPEED_QUICK if options.quick else SPEED))
    report.finish(options)


if __name__ == "__main__":
    os.environ.setdefault("HEADRACE_DATA", "")
    main()
