"""Steps that know no later batch, with a share of their rows in the trainer: how long they wait for the others.

Trainer and shard are processes in two network namespaces, each pinned to a core, as in `bench_schedule.py`. A DLRM with
8 or 26 features of dimension 64 trains batches of 2,048 rows, of whose ids a given share is in the trainer when a step
begins; the others are fetched from the shard in the step. Arms take turns in one trainer process, with the same batches
and rows.

- whole: the step waits for all rows (`placement.split: whole`)
- popular_first: rows of the batch that miss no id are trained meanwhile, as in Hotline
- fewest_missing_first: up to four micro-batches, whose rows are fetched one after the other; ours

The wait is what a step spends waiting for rows, and the time of the step has what micro-batches cost beside it.
The work of a step is the time of `whole` without its wait. No order of work within a step can hide more of a fetch than
the work, so `fetch - work` is a bound of the wait.
"""

from __future__ import annotations

import statistics
import sys
from contextlib import ExitStack
from typing import Any

import harness
from bench_schedule import MS, Child, name_of
from schedule.links import Link

WHOLE, HOTLINE, OURS = "whole", "popular_first", "fewest_missing_first"
ARMS = (WHOLE, HOTLINE, OURS)
FEATURES, SHARES = (8, 26), (0.8, 0.9, 0.95, 0.99)
RATES: tuple[float | None, ...] = (0.1, 0.3, 1.0, None)
ROUNDS, STEPS = 3, 6
GOAL_WAIT, GOAL_SHARES = 0.25, (0.8, 0.9, 0.95)
NO_WAIT_S = 0.5e-3
"""A wait that is not worth hiding."""


def measure(trainer: Child, quick: bool) -> dict[str, list[dict[str, Any]]]:
    """Run all arms in turn."""
    samples: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
    for _ in range(1 if quick else ROUNDS):
        for arm in ARMS:
            samples[arm].append(trainer.ask({"do": "run", "split": arm, "steps": 5 if quick else STEPS}))
    return samples


def report_case(
    report: harness.Report, case: str, share: float, samples: dict[str, list[dict[str, Any]]]
) -> dict[str, Any]:
    """Rows, ratios, bound and goal of one share of hits on one link."""

    def median(arm: str, key: str) -> float:
        return statistics.median(run[key] for run in samples[arm])

    for arm, runs in samples.items():
        report.add(case, arm, "step", "ms", [MS * run["step_s"] for run in runs])
        report.add(case, arm, "wait", "ms", [MS * run["wait_s"] for run in runs])
        report.add(case, arm, "CPU per step", "ms", [MS * run["cpu_s"] for run in runs])
    report.compare(case, OURS, "step", lower_is_better=True)
    work, fetch = median(WHOLE, "step_s") - median(WHOLE, "wait_s"), median(WHOLE, "fetch_s")
    bound = max(0.0, fetch - work)
    waits = {arm: median(arm, "wait_s") for arm in ARMS}
    if bound > NO_WAIT_S:
        report.limits.append(harness.Limit(case, "wait: fetch - work", MS * bound, "ms", bound / waits[OURS]))
    report.notes[case] = {
        "work": f"{MS * work:.1f} ms",
        "fetch": f"{MS * fetch:.1f} ms",
        "fetched": f"{median(WHOLE, 'bytes') / 1e6:.2f} MB, {median(WHOLE, 'missing_share'):.0%} of the unique ids",
        "micro-batches": ", ".join(f"{arm} {median(arm, 'parts'):.1f}" for arm in ARMS[1:]),
    }
    print(
        f"{case}: work {MS * work:.1f}, fetch {MS * fetch:.1f} ms; step and wait "
        + ", ".join(f"{arm} {MS * median(arm, 'step_s'):.1f}, {MS * waits[arm]:.1f}" for arm in ARMS),
        file=sys.stderr,
        flush=True,
    )
    if share not in GOAL_SHARES or max(waits[OURS], waits[HOTLINE]) < NO_WAIT_S:
        return {}
    ratio, least = (wait / max(waits[HOTLINE], 1e-9) for wait in (waits[OURS], bound))
    return {
        "what": f"{case}: wait over that of {HOTLINE}, at most",
        "wanted": f"{GOAL_WAIT:g} (the bound is {least:.2f})" if least > GOAL_WAIT else f"{GOAL_WAIT:g}",
        "reached": f"{ratio:.2f}" if ratio < 100 else f"{MS * waits[OURS]:.1f} ms, and none there",
        "met": ratio <= GOAL_WAIT,
    }


def main() -> None:
    """Measure all shares of hits on all links, and write the report."""
    options = harness.options("bench_micro_batches.py", __doc__)
    report = harness.Report("bench_micro_batches")
    quick = options.quick
    rates = (0.3,) if quick else RATES
    goals = []
    with ExitStack() as stack:
        link = stack.enter_context(Link())
        if not link.is_real:
            raise SystemExit(f"bench_micro_batches needs network namespaces: {link.why_not}")
        report.notes["link"] = "network namespaces and tc tbf"
        for num_features in FEATURES[1:] if quick else FEATURES:
            with ExitStack() as processes:
                shard = Child(link.command(1, [sys.executable, "-m", "schedule.shard", link.shard_host]))
                processes.callback(shard.close)
                address = f"{link.shard_host}:{int(shard.line())}"
                trainer = Child(link.command(0, [sys.executable, "-m", "micro_batches.trainer"]))
                processes.callback(trainer.close)
                trainer.ask({"do": "load", "address": address, "features": num_features})
                for share in (0.9,) if quick else SHARES:
                    link.set_rate(None)
                    trainer.ask({"do": "batches", "hit_share": share})
                    for rate in rates:
                        link.set_rate(rate)
                        case = f"{num_features} features, {share:.0%} of ids here, {name_of(rate)}"
                        goals.append(report_case(report, case, share, measure(trainer, quick)))
                link.set_rate(None)
    report.notes["goals"] = [goal for goal in goals if goal]
    report.finish(options)


if __name__ == "__main__":
    main()
