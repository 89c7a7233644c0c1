"""Retention policies under a budget: log loss and AUC at equal bytes of training, from 2 to 1000 times smaller tables.

Every arm trains a DLRM (dimension 16, row-wise Adagrad, batches of 512 rows) in one pass, and predicts each row before
it is trained on. The budget holds for everything that the tables need during training: rows, optimizer state, records,
indexes and sketches. It is a part of the bytes of full tables without an index, 84 per id of the log; the full tables
shown take their index as well. The same seeds are used for all arms, and intervals are those of paired differences.

Logs: `drift` is generated, with a planted effect per id and popularity that moves in every phase; `criteo` is the
public sample; `news` is the first 600,000 of the 14.9 million rows of the Globo.com log. The first fifth of each log is
only counted, for the arm that knows the past.

Arms, each a policy of `embeddings.retention`:

- importance: the default under a budget
- adaembed: importance of 12 bytes per id of the full tables; where these alone exceed the budget, it has no result
- cafe, cafe without a sifter: CAFE+ and CAFE
- frequency: the ids with the highest counts of the past
- hash; qr, which has no result where a table would be below 2 sqrt(N) rows

    .peers/bin/python benchmarks/bench_budget.py
    .peers/bin/python benchmarks/bench_budget.py --logs drift --sizes 2,20 --seeds 3
    .peers/bin/python benchmarks/bench_budget.py --speed               # rows per second and pauses; a quiet machine
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from contextlib import suppress
from pathlib import Path
from typing import Any

import harness

harness.single_threaded()

import numpy as np  # noqa: E402
import pyarrow.parquet as pq  # noqa: E402
import torch  # noqa: E402
from budget.logs import LOGS, BudgetLog, make_budget_log  # noqa: E402
from budget.passes import FULL, PassResult, one_pass  # noqa: E402
from quality.logs import MissingLog  # noqa: E402

from headrace.errors import ConfigError  # noqa: E402
from headrace.observe.progress import Progress  # noqa: E402

OURS = "importance"
ARMS: dict[str, dict[str, Any]] = {
    OURS: {"kind": "importance"},
    "adaembed": {"kind": "adaembed"},
    "cafe": {"kind": "cafe"},
    "cafe without a sifter": {"kind": "cafe", "sifter_ratio": 0},
    "frequency": {"kind": "frequency"},
    "hash": {"kind": "hash"},
    "qr": {"kind": "qr"},
}
SIZES, SIZES_QUICK = "2,5,20,100,1000", "20"
ROWS = {"drift": 150_000, "criteo": 137_139, "news": 600_000}
ROWS_QUICK = 20_000
BATCH_SIZE = 512
SEEDS, SEEDS_QUICK = 5, 1
SMALLER = 2.5  # 60 % smaller
STUDENT = {1: 12.71, 2: 4.30, 3: 3.18, 4: 2.78, 5: 2.57, 6: 2.45, 7: 2.36, 8: 2.31, 9: 2.26}
"""97.5 % quantiles of Student's t by degrees of freedom."""
SPEED_ROUNDS = 5
FASTEST = "rows per processor second, steps at their fastest"
LONGEST = "longest later step over median, steps at their fastest"
LOOKUP = "look-up at its fastest"
WARM_UP = 8
"""Batches that are trained on to compile kernels."""


def case_of(log: str, size: float) -> str:
    """Name of a case."""
    return f"{log}, {size:g}x smaller"


def settings(arm: str, counts: Path) -> dict[str, Any] | None:
    """The policy of an arm; None for full tables."""
    if arm == FULL:
        return None
    return ARMS[arm] | ({"counts": str(counts)} if arm == "frequency" else {})


def losses(
    report: harness.Report, log: BudgetLog, sizes: list[float], seeds: int, counts: Path, progress: Progress
) -> None:
    """All arms at all sizes with all seeds."""
    for arm in [FULL, *ARMS]:
        with suppress(ConfigError):
            one_pass(log.first(WARM_UP), settings(arm, counts), 2.0, 0)  # compiles
    full = [one_pass(log, None, 1.0, seed) for seed in range(seeds)]
    for size in sizes:
        case = case_of(log.name, size)
        results = {FULL: full}
        for arm in ARMS:
            passes = []
            for seed in range(seeds):
                progress.advance(columns={"log": log.name, "size": f"{size:g}x", "arm": arm})
                try:
                    passes.append(one_pass(log, settings(arm, counts), size, seed))
                except ConfigError as error:
                    report.notes[f"{case}: {arm}"] = str(error)
                    break
            if passes:
                results[arm] = passes
        for arm, passes in results.items():
            add(report, case, arm, passes)
        paired(report, case, results)


def add(report: harness.Report, case: str, arm: str, passes: list[PassResult]) -> None:
    """Add the scores of an arm."""
    report.add(case, arm, "log loss", "nats", [each.log_loss for each in passes])
    report.add(case, arm, "AUC", "", [each.auc for each in passes])
    report.add(case, arm, "bytes of training", "bytes", [each.num_bytes for each in passes])
    over = [each for each in passes if arm != FULL and each.num_bytes > each.budget_bytes]
    assert not over, f"{case}: {arm}: {over[0].num_bytes} bytes of {over[0].budget_bytes}"


def paired(report: harness.Report, case: str, results: dict[str, list[PassResult]]) -> None:
    """How far other arms are above ours in log loss, seed by seed, with 95 % intervals of the means."""
    if OURS not in results:
        return
    ours = np.array([each.log_loss for each in results[OURS]])
    for arm, passes in results.items():
        if arm == OURS:
            continue
        differences = np.array([each.log_loss for each in passes]) - ours
        mean, half = interval(differences)
        report.add(case, arm, "mean log loss above importance", "nats", [mean])
        if half is not None:
            report.add(case, arm, "95 % interval, plus or minus", "nats", [half])
    report.compare(case, OURS, "log loss", lower_is_better=True)


def interval(differences: np.ndarray) -> tuple[float, float | None]:
    """Mean, and half the width of its 95 % interval (Student's t); None with one sample."""
    count = len(differences)
    if count < 2:
        return float(differences.mean()), None
    return float(differences.mean()), float(STUDENT.get(count - 1, 2.0) * differences.std(ddof=1) / np.sqrt(count))


def speed(report: harness.Report, log: BudgetLog, sizes: list[float], counts: Path) -> None:
    """Rows per second, the longest step, and look-up, with passes of arms in turn."""
    for size in sizes:
        case, passes = case_of(log.name, size), dict[str, list[PassResult]]()
        arms = (FULL, OURS, "hash")
        for arm in arms:
            one_pass(log, settings(arm, counts), size, 0)  # compiles and warms up
        for round_ in range(SPEED_ROUNDS):
            for arm in arms if round_ % 2 == 0 else reversed(arms):
                passes.setdefault(arm, []).append(one_pass(log, settings(arm, counts), size, round_))
        for arm, each in passes.items():
            add_speed(report, log, case, arm, each)
        for metric in ("rows per second", FASTEST):
            report.compare(case, OURS, metric, against=[FULL, "hash"])
        speed_goals(report, case)


def add_speed(report: harness.Report, log: BudgetLog, case: str, arm: str, passes: list[PassResult]) -> None:
    """Add the speed of an arm: of each pass, and with the processor time of each step in the pass where it was least.

    The same step does about the same in every pass, so the second leaves out what other processes cost.
    """
    report.add(case, arm, "rows per second", "rows/s", [log.num_rows / sum(each.seconds) for each in passes])
    longest = [max(each.seconds) / np.median(each.seconds) for each in passes]
    report.add(case, arm, "longest step over median", "", longest)
    report.add(case, arm, "look-up", "ms", [1e3 * float(np.median(each.lookup_seconds)) for each in passes])
    fastest = np.min([each.cpu_seconds for each in passes], axis=0)
    report.add(case, arm, FASTEST, "rows/s", [log.num_rows / fastest.sum()])
    first, longest = (float(each / np.median(fastest)) for each in (fastest[0], fastest[1:].max()))
    report.add(case, arm, "first step over median, steps at their fastest", "", [first])
    report.add(case, arm, LONGEST, "", [longest])
    lookups = np.min([each.lookup_seconds for each in passes], axis=0)
    report.add(case, arm, LOOKUP, "ms", [1e3 * float(np.median(lookups))])


def speed_goals(report: harness.Report, case: str) -> None:
    """What was to be reached in speed, and what was."""
    rate, lookup = (report.median(case, OURS, each) / report.median(case, FULL, each) for each in (FASTEST, LOOKUP))
    longest = report.median(case, OURS, LONGEST)
    report.goal(f"{case}: {FASTEST}, over those of full tables", ">= 1", f"{rate:.3g}", met=rate >= 1)
    report.goal(f"{case}: {LOOKUP}, over that of full tables", "<= 1.1", f"{lookup:.3g}", met=lookup <= 1.1)
    report.goal(f"{case}: {LONGEST} (a pause of one step)", "<= 2", f"{longest:.3g}", met=longest <= 2)


def goals(report: harness.Report, logs: list[str], sizes: list[float]) -> None:
    """What was to be reached, and what was."""
    rivals = [arm for arm in ARMS if arm != OURS]
    for log in logs:
        best = 0
        for size in sizes:
            case = case_of(log, size)
            arms = {row.arm: row.median for row in report.rows if (row.case, row.metric) == (case, "log loss")}
            best += OURS in arms and all(arms[OURS] <= arms[arm] for arm in rivals if arm in arms)
        report.goal(f"{log}: sizes with the lowest log loss", f">= 4 of {len(sizes)}", f"{best}", met=best >= 4)
        small = [size for size in sizes if size >= SMALLER]
        if small:
            case = case_of(log, min(small))
            of_full = {row.metric: row.median for row in report.rows if (row.case, row.arm) == (case, FULL)}
            above, noise = -of_full["mean log loss above importance"], of_full.get("95 % interval, plus or minus", 0.0)
            wanted = f"<= noise {noise:.5f}"
            report.goal(f"{case}: log loss above full tables", wanted, f"{above:.5g}", met=above <= noise)


def main(options: argparse.Namespace) -> None:
    """Run the benchmark."""
    torch.set_num_threads(1)
    names = options.logs.split(",")
    sizes = [float(size) for size in (options.sizes or (SIZES_QUICK if options.quick else SIZES)).split(",")]
    seeds = options.seeds or (SEEDS_QUICK if options.quick else SEEDS)
    report = harness.Report("bench_budget")
    report.notes["seeds"] = seeds
    measured = []
    total = len(names) * len(sizes) * len(ARMS) * seeds
    with (
        tempfile.TemporaryDirectory(prefix="headrace-bench-budget-") as folder,
        Progress("budgets", total=total, unit="passes") as progress,
    ):
        for name in names:
            try:
                log = make_budget_log(name, ROWS_QUICK if options.quick else ROWS[name], BATCH_SIZE)
            except MissingLog as error:
                print(error, file=sys.stderr)
                continue
            measured.append(name)
            counts = Path(folder) / f"{name}.parquet"
            pq.write_table(log.past, counts)
            report.notes[f"{name}: rows trained on"] = log.num_rows
            report.notes[f"{name}: distinct ids"] = sum(log.num_ids.values())
            if options.speed:
                speed(report, log, sizes, counts)
            else:
                losses(report, log, sizes, seeds, counts, progress)
    if not options.speed:
        goals(report, measured, sizes)
    report.finish(options)


if __name__ == "__main__":
    os.environ.setdefault("HEADRACE_DATA", "")
    main(harness.options("bench_budget", __doc__, logs=",".join(LOGS), sizes=None, seeds=0, speed=False))
