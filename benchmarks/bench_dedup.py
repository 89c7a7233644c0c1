"""Deduplication from files to checkpoint: storage, reading with features, training steps and whole jobs.

Generated logs have the statistics published in RecD: 16.5 rows per session, spread over an hourly partition. The notes
of the report state how many rows of a session are in a batch of 4096 rows in time order; in RecD's larger logs it is
1.15. `rm1` has 20 long histories, `mixed` has 42 id lists and 504 numbers, and in `control` nothing repeats. The news
log is real. Every log exists in time order (zstd, as an ordinary writer stores it), clustered (sessions adjacent), and
nested (one row per session, each distinct value stored once).

The plain arm reads time order without deduplication, like a pipeline without knowledge of sessions. Otherwise it is
headrace too: it uses the same kernels, and for encoded histories the same encoder, which pads lists of similar length
together (by at most 15 %) and uses torch's fused attention. Steps are also measured on clustered batches that were
expanded, to separate the effect of deduplication from that of the row order. At equal memory, batches of the
deduplicated arm grow until a step takes as much memory as a plain step.

Whole jobs run on smaller logs with the same statistics, because a plain pass over encoded histories reaches only about
200 rows per second on two cores. In smaller logs a batch in time order has more rows per session, which can only help
the plain arm's caches. Logs are kept in the temporary folder between runs.

The losses of whole jobs show that clustered and nested rows train the same model. They are not comparable with time
order: over six steps without learning rate warm-up, batches in time order update many rows that the next batch reads.
`dedup_quality.py` measures the effect of row order on quality over long passes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from dedup.jobs import BATCH_SIZE, features, job
from dedup.logs import LAYOUTS, DedupLogs, generate, generated, news, rows_of_a_session
from peers.processes import Process

from headrace.features import FeaturePlan
from headrace.logs import ParquetSource, select_files
from headrace.logs.files import list_files
from headrace.logs.source import ROW_ID
from headrace.pipeline import from_source
from headrace.training import Trainer

PLAIN = "time order, plain"
MODELS = {"dlrm": "DLRM", "encoder": "DLRM over encoded histories"}
STEP_ROWS = {"dlrm": 4096, "encoder": 1024}
"""Rows per step; a plain step over encoded histories takes gigabytes, and seconds. Quick runs use an eighth."""
JOB_ROWS = {"dlrm": 24_576, "encoder": 6144}
"""Rows of a whole job on a generated log: some seconds per pass, or half a minute for the encoder."""
JOB_ROUNDS = 3
GENERATED = ("rm1", "mixed", "control")
ROWS = "rows per second"
SAMPLES = "samples per second"


@dataclass(frozen=True)
class Goal:
    """Minimum ratio of an arm to the plain arm.

    Attributes:
        case: Name of the case.
        arm: Name of the arm.
        wanted: Minimum ratio.
    """

    case: str
    arm: str
    wanted: float


GOALS = (
    Goal("rm1: storage", "clustered", 3.71),
    Goal("rm1: storage", "nested", 8.0),
    Goal("mixed: storage", "nested", 5.0),
    Goal("rm1: reading and features", "clustered", 1.79),
    Goal("rm1: reading and features", "nested", 4.0),
    Goal("mixed: reading and features", "clustered", 1.79),
    Goal("mixed: reading and features", "nested", 4.0),
    Goal("control: reading and features", "clustered", 0.97),
    Goal("control: reading and features", "nested", 0.97),
    Goal("control: steps of DLRM", "deduplicated", 0.97),
    Goal("rm1: steps of DLRM over encoded histories", "deduplicated", 4.0),
    Goal("rm1: steps of DLRM", "deduplicated", 1.25),
    Goal("mixed: steps of DLRM", "deduplicated", 1.25),
)


def storage(report: harness.Report, name: str, logs: DedupLogs) -> None:
    """Report the bytes per row of each layout."""
    case = f"{name}: storage"
    arms = dict(zip(LAYOUTS, (PLAIN, "clustered", "nested"), strict=True))
    for layout, arm in arms.items():
        report.add(case, arm, "bytes per row", "B", [logs.num_bytes(layout) / logs.num_rows])
    against(report, case, "bytes per row", lower_is_better=True)


def reading(report: harness.Report, name: str, logs: DedupLogs, rounds: int, seconds: float) -> None:
    """Measure passes over all rows, from creating the iterator to the last batch of tensors."""
    case = f"{name}: reading and features"
    arms = {
        PLAIN: ("time", "off"),
        "time order": ("time", "auto"),
        "clustered, plain": ("clustered", "off"),
        "clustered": ("clustered", "auto"),
        "nested": ("nested", "auto"),
    }
    runs = {arm: reader(logs, *settings) for arm, settings in arms.items()}
    for arm, samples in harness.interleave(runs, rounds=rounds, seconds=seconds).items():
        report.add(case, arm, ROWS, "rows/s", [logs.num_rows / sample for sample in samples])
    against(report, case, ROWS)


def reader(logs: DedupLogs, layout: str, dedup: str) -> Callable[[], None]:
    """Return a function that makes a pass and checks the number of rows."""
    schema = logs.schema(layout)
    plan = FeaturePlan.from_config(features(schema, dedup), schema)
    columns = [name for name in plan.columns if name != ROW_ID]

    def run() -> None:
        source = ParquetSource(select_files(list_files(logs.path(layout))), schema, columns=columns)
        with from_source(source).batch(BATCH_SIZE).transform(plan).open(workers=2, tuner="none") as batches:
            rows = sum(len(batch) for batch in batches)
        assert rows == logs.num_rows, f"{layout}: {rows} rows, expected {logs.num_rows}"

    return run


def steps(
    report: harness.Report, name: str, logs: DedupLogs, model: str, rounds: int, seconds: float, *, quick: bool
) -> None:
    """Measure steps on batches in memory, at equal batch size and at equal memory."""
    case = f"{name}: steps of {MODELS[model]}"
    size = STEP_ROWS[model] // (8 if quick else 1)
    base = {"folder": str(logs.folder), "model": model, "batch_size": size, "expanded": False}
    arms = {
        PLAIN: base | {"layout": "time", "dedup": "off"},
        "clustered, plain": base | {"layout": "nested", "dedup": "auto", "expanded": True},
        "deduplicated": base | {"layout": "nested", "dedup": "auto"},
    }
    with ExitStack() as stack:
        children = {arm: stack.enter_context(Process("dedup.steps", json.dumps(s))) for arm, s in arms.items()}
        memory = {}
        for arm, child in children.items():
            child.ask("time 2")
            memory[arm] = child.ask("memory")["peak_bytes"]
            report.add(case, arm, "memory of a step", "MB", [memory[arm] / 1e6])
        larger = size if quick else fitting(arms["deduplicated"], memory[PLAIN])
        if larger > size:
            arm = f"deduplicated, {larger} rows"
            settings = arms["deduplicated"] | {"batch_size": larger}
            children[arm] = stack.enter_context(Process("dedup.steps", json.dumps(settings)))
            children[arm].ask("time 2")
            arms[arm] = settings
        turns = {arm: lambda arm=arm: float(children[arm].ask("time 1")["seconds"]) for arm in children}
        for arm, samples in harness.interleave(turns, rounds=rounds, seconds=seconds, warm_up=0).items():
            report.add(case, arm, SAMPLES, "1/s", [arms[arm]["batch_size"] / sample for sample in samples])
    against(report, case, SAMPLES)


def fitting(settings: dict[str, Any], limit: int) -> int:
    """Return the largest batch size, found by doubling, whose step takes at most `limit` bytes of memory."""
    first = size = settings["batch_size"]
    while size < 8 * first:
        with Process("dedup.steps", json.dumps(settings | {"batch_size": 2 * size})) as child:
            child.ask("time 2")
            if child.ask("memory")["peak_bytes"] > limit:
                break
        size *= 2
    return size


def jobs(report: harness.Report, name: str, logs: DedupLogs, model: str) -> None:
    """Measure whole jobs, from files to a written checkpoint; earlier cases have compiled their kernels."""
    case = f"{name}: whole jobs, {MODELS[model]}"
    arms = {PLAIN: ("time", "off"), "clustered": ("clustered", "auto"), "nested": ("nested", "auto")}
    losses: dict[str, list[float]] = {arm: [] for arm in arms}

    def run(arm: str) -> float:
        layout, dedup = arms[arm]
        target = Path(tempfile.mkdtemp(prefix="headrace-bench-"))
        config = job(
            logs.path(layout),
            logs.schema(layout),
            target / "run",
            model=model,
            dedup=dedup,
            batch_size=STEP_ROWS[model],
        )
        begin = time.perf_counter()
        windows = Trainer(config).run().windows
        seconds = time.perf_counter() - begin
        shutil.rmtree(target)
        rows = sum(window.rows.num_used for window in windows)
        assert rows == logs.num_rows, f"{arm}: {rows} rows, expected {logs.num_rows}"
        losses[arm].append(sum(w.rows.num_used * next(iter(w.scores.values())).log_loss for w in windows) / rows)
        return seconds

    turns = {arm: lambda arm=arm: run(arm) for arm in arms}
    for arm, samples in harness.interleave(turns, rounds=JOB_ROUNDS, warm_up=0).items():
        report.add(case, arm, ROWS, "rows/s", [logs.num_rows / sample for sample in samples])
        report.add(case, arm, "log loss over the pass", "", losses[arm])
    against(report, case, ROWS)


def against(report: harness.Report, case: str, metric: str, *, lower_is_better: bool = False) -> None:
    """Add the ratio of every arm to the plain arm."""
    for arm in dict.fromkeys(row.arm for row in report.rows if row.case == case):
        if arm != PLAIN:
            report.compare(case, arm, metric, against=[PLAIN], lower_is_better=lower_is_better)


def goals(report: harness.Report) -> list[dict[str, object]]:
    """Return the goals of the measured cases and whether they are met."""
    found: list[dict[str, object]] = []
    for goal in GOALS:
        values = [r.value for r in report.ratios if (r.case, r.ours) == (goal.case, goal.arm)]
        for value in values:
            what = f"{goal.case}: {goal.arm} over {PLAIN}"
            met = value >= goal.wanted
            found.append({"what": what, "wanted": f"{goal.wanted:g}x", "reached": f"{value:.2f}x", "met": met})
    return found


def measure(report: harness.Report, name: str, logs: DedupLogs, options: argparse.Namespace) -> None:
    """Measure all cases of one log."""
    rounds, seconds = (3, 4.0) if options.quick else (15, options.seconds)
    report.notes[f"{name}: rows of a session in a batch in time order"] = round(rows_of_a_session(logs, BATCH_SIZE), 2)
    say(f"{name}: storage, reading and features")
    storage(report, name, logs)
    reading(report, name, logs, rounds, seconds)
    for model in ("encoder", "dlrm") if name == "rm1" else ("dlrm",):
        say(f"{name}: steps of {MODELS[model]}")
        steps(report, name, logs, model, rounds, seconds / 2, quick=options.quick)
        if not options.quick and not options.without_jobs and name != "control":
            say(f"{name}: whole jobs, {MODELS[model]}")
            jobs(report, name, logs if name == "news" else generated(name, JOB_ROWS[model]), model)


def say(text: str) -> None:
    """Print a line of progress to standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


def wanted_logs(options: argparse.Namespace) -> dict[str, int]:
    """Return the generated logs to measure, with their number of rows."""
    rows = options.rows or (6_000 if options.quick else 100_000)
    names = ("rm1",) if options.quick else GENERATED
    return {name: rows for name in names if options.log is None or name in options.log.split(",")}


def main() -> None:
    """Generate the logs, measure all cases, and write the report."""
    options = harness.options("bench_dedup", __doc__, rows=0, seconds=30.0, log=None, without_jobs=False)
    logs = wanted_logs(options)
    sizes = [*logs.items()]
    if not options.quick and not options.without_jobs:
        sizes += [(name, JOB_ROWS["dlrm"]) for name in logs if name != "control"]
        sizes += [("rm1", JOB_ROWS["encoder"])] if "rm1" in logs else []
    say("logs: created unless kept from an earlier run")
    generate(sizes)
    report = harness.Report("bench_dedup", notes={"rows": max(logs.values(), default=0), "rows of jobs": JOB_ROWS})
    use = harness.CpuUse()
    for name, rows in logs.items():
        measure(report, name, generated(name, rows), options)
    if not options.quick and (options.log is None or "news" in options.log.split(",")):
        data = Path(os.environ.get("HEADRACE_DATA", "-"))
        if (data / "globo").is_dir():
            measure(report, "news", news(data), options)
        else:
            say("skipped: the news log: not found in HEADRACE_DATA")
    report.notes["cpus_of_others"] = round(use.elapsed()[1], 2)
    report.notes["goals"] = goals(report)
    report.finish(options)


if __name__ == "__main__":
    main()
