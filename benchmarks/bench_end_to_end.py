"""Whole incremental jobs, from Parquet files to a written checkpoint: headrace, and the peers' best loaders and steps.

A DLRM (26 tables of 1,009 to 1,000,003 rows x 16, bottom 512-256-16, top 512-256-1, batches of 4096) makes one pass
over logs in Criteo's format. Every arm runs in its own process, which runs one job before the first measured one. A job
starts from scratch and ends when parameters and optimizer state are synced to disk. The loss is the mean over all rows,
each predicted before it is trained on. Arms train the same model on the same rows, so their losses must agree. Each
round has different initial values, from a seed; libraries draw from the same distributions, but not the same numbers.
"""

from __future__ import annotations

import importlib.util
import sys
from contextlib import ExitStack

import harness
from peers.data import make_logs
from peers.job_arms import JOBS, SHAPE
from peers.processes import ArmFailed, Process

from headrace.models.products import has_bf16_products
from headrace.observe.progress import track_progress

CASE = "Criteo's shape"
METRIC = "rows per second"
LOSS = "log loss over the pass"
GOAL = 3.0


def main() -> None:
    """Run one job per arm unmeasured, then measure all arms in turn, and write the report."""
    options = harness.options("bench_end_to_end", __doc__, rows=0, rounds=0)
    logs = make_logs(options.rows or (131_072 if options.quick else 1_048_576))
    report = harness.Report("bench_end_to_end", notes={"rows": logs.num_rows})
    use = harness.CpuUse()
    with ExitStack() as stack:
        processes: dict[str, Process] = {}
        for name, arm in track_progress(JOBS.items(), "bench_end_to_end: first jobs", unit="arms"):
            if options.quick and not arm.quick:
                continue
            if arm.takes_bf16 and not has_bf16_products():
                report.notes["left out"] = "arms in bf16, which this processor only emulates"
                continue
            if importlib.util.find_spec(arm.package) is None:
                print(f"skipped: {name}: {arm.package} is not installed", file=sys.stderr)
                continue
            process = stack.enter_context(
                Process("peers.job_arms", name, str(logs.folder), str(logs.num_rows), SHAPE.to_json())
            )
            try:
                process.ask("time 0")
            except ArmFailed as error:
                print(f"skipped: {name}: {error}", file=sys.stderr)
                continue
            processes[name] = process
        answers: dict[str, list[dict[str, float]]] = {name: [] for name in processes}

        def turn(name: str) -> None:
            answers[name].append(processes[name].ask(f"time {len(answers[name])}"))

        turns = {name: lambda name=name: turn(name) for name in processes}
        rounds = options.rounds or (2 if options.quick else 5)
        harness.interleave(turns, rounds=rounds, warm_up=0)
    for name, found in answers.items():
        report.add(CASE, name, METRIC, "rows/s", [each["rows"] / each["seconds"] for each in found])
        report.add(CASE, name, LOSS, "", [each["loss"] for each in found])
        report.add(CASE, name, "checkpoint", "MB", [found[-1]["checkpoint_bytes"] / 1e6])
    ours = next(iter(answers))
    report.compare(CASE, ours, METRIC)
    best = min(report.ratios, key=lambda ratio: ratio.value)
    report.notes["cpus_of_others"] = round(use.elapsed()[1], 2)
    report.notes["goals"] = [
        {
            "what": f"{CASE}: times the best peer ({best.against})",
            "wanted": f"{GOAL:g}x",
            "reached": f"{best.value:.2f}x",
            "met": best.value >= GOAL,
        }
    ]
    report.finish(options)


if __name__ == "__main__":
    main()
