"""Placement of rows with one trainer and one shard on a shaped link: bytes and time per step, beside scheduling alone.

Trainer and shard are processes in two network namespaces, each pinned to a core, as in `bench_schedule.py`. Every arm
trains the two windows of a log with a trainer of its own each, as scheduled jobs do, so the second window begins with
nothing in the trainer, and with a shard that has the rows of the first one. Arms take turns. Times include the return
of all changed rows at the end of the window, and losses must be the same for all arms.

- rows in this process: no shard; what `lookahead` could reach at best
- serial, recs, recs_early: rows are read and updated in the shard in every step, `placement: none`
- lookahead: rows stay in the trainer, `placement: lookahead`; also with a tenth of the memory that its rows need
- auto: the default, which measures how fast rows come, and is lookahead or recs

Logs: `criteo` is the public sample of 137,139 rows, `news` the first hours of the Globo.com log with histories, and
`zipf-A` has 16 columns of a million ids, drawn from a Zipf distribution with exponent A, a tenth of which are replaced
in the second window.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
from bench_schedule import MS, Child, name_of
from placement.logs import LOGS, MissingLog, window_log
from schedule.links import Link

NONE = "none"
OURS, TIGHT, AUTO, LOCAL = "lookahead", "lookahead, a tenth of the memory", "auto", "rows in this process"
WINDOWS = ("first window", "next window")
RATES: tuple[float | None, ...] = (0.1, 1.0, None)
MAIN_LOG, OTHER_RATES = "criteo", (0.3,)
"""The log that is measured at all rates, and the rates of the others."""
ROUNDS, OTHER_ROUNDS, ROUNDS_QUICK = 3, 2, 1
WARM_UP = ("recs", "lookahead")
"""Arms that run once, uncounted, in every trainer process: they load all kernels."""
ROWS, ROWS_QUICK = 137_138, 20_000
BYTES_BESIDE_ROW = 100
"""Bytes that `ResidentStore` counts for a row beside its weights."""

GOAL_BYTES, GOAL_STEP, GOAL_NEVER_BELOW, GOAL_BOUND = 3.0, 1.5, 0.98, 0.9
MOSTLY_COMMUNICATION = 0.65


def arms(quick: bool) -> dict[str, dict[str, Any]]:
    """The part of the job that differs by arm."""
    found: dict[str, dict[str, Any]] = {
        LOCAL: {},
        "serial": {"scheduler": "serial", "placement": NONE},
        "recs": {"scheduler": "recs", "placement": NONE},
        "recs_early": {"scheduler": "recs_early", "placement": NONE},
        OURS: {"placement": {"policy": "lookahead", "memory": "2GiB"}},
        TIGHT: {"placement": {"policy": "lookahead"}},
        AUTO: {"placement": {"memory": "2GiB"}},
    }
    return {name: job for name, job in found.items() if not quick or name != "serial"}


def job_of(log: str, dim: int) -> dict[str, Any]:
    """The part of the job that all arms share."""
    return {
        "training": {
            "batch_size": 1024 if log == "news" else 2048,
            "threads": 1,
            "precision": "fp32",
            "dense_optimizer": {"kind": "adam"},
        },
        "pipeline": {"workers": 1},
        "embeddings": {"default": {"kind": "hashed", "num_embeddings": 1_000_000}},
        "model": {"kind": "dlrm", "embedding_dim": dim},
    }


class Measurement:
    """The processes of one log and dimension."""

    def __init__(self, link: Link, stack: ExitStack, log: str, dim: int, num_rows: int) -> None:
        self._log = window_log(log, num_rows)
        self._shared = job_of(log, dim)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-"))
        self._run = Path(folder) / "run"
        shard_command = [sys.executable, "-m", "placement.shard", link.shard_host, str(self._run / "checkpoints")]
        shard = Child(link.command(1, shard_command))
        stack.callback(shard.close)
        self._address = f"{link.shard_host}:{int(shard.line())}"
        self._trainer = Child(link.command(0, [sys.executable, "-m", "placement.trainer"]))
        stack.callback(self._trainer.close)
        self._tight = ""

    def run(self, arm: str, job: dict[str, Any]) -> list[dict[str, Any]]:
        """Train both windows with one arm; `lookahead` comes before the arm with a tenth of its memory."""
        if arm == TIGHT:
            job = {"placement": {**job["placement"], "memory": self._tight}}
        address = "" if arm == LOCAL else self._address
        command = {"run": str(self._run), "log": str(self._log), "address": address, "job": {**self._shared, **job}}
        windows: list[dict[str, Any]] = self._trainer.ask(command)["windows"]
        if arm == OURS:
            row_bytes = 4 * self._shared["model"]["embedding_dim"] + BYTES_BESIDE_ROW
            self._tight = f"{max(each['kept_rows'] for each in windows) * row_bytes // 10}"
        return windows


def report_case(
    report: harness.Report, case: str, samples: dict[str, list[dict[str, Any]]], rate: float | None
) -> None:
    """Rows, ratios, bounds and goals of one window of a log on one link."""
    losses = {f"{sample['loss']:.12g}" for runs in samples.values() for sample in runs}
    if len(losses) > 1:
        raise SystemExit(f"{case}: arms have losses {sorted(losses)}, expected one")
    for arm, runs in samples.items():
        report.add(case, arm, "step", "ms", [MS * run["step_s"] for run in runs])
        report.add(case, arm, "CPU per step", "ms", [MS * run["cpu_s"] for run in runs])
        if arm != LOCAL:
            report.add(case, arm, "moved per step", "MB", [run["bytes"] / 1e6 for run in runs])
    step_s = {arm: statistics.median(run["step_s"] for run in runs) for arm, runs in samples.items()}
    moved = {arm: runs[0]["bytes"] for arm, runs in samples.items()}
    others = [arm for arm in samples if arm not in (LOCAL, OURS, TIGHT, AUTO)]
    report.compare(case, AUTO, "step", against=others, lower_is_better=True)
    wire_s = 0.0 if rate is None else samples[OURS][0]["most_bytes"] * 8 / (rate * 1e9)
    bound = max(step_s[LOCAL], wire_s)
    report.limits.append(
        harness.Limit(
            case,
            "rows in this process, or the bytes of lookahead in the busier direction",
            MS * bound,
            "ms",
            bound / step_s[OURS],
        )
    )
    share = 1 - step_s[LOCAL] / step_s[others[0]]
    best = min(others, key=step_s.__getitem__)
    goals = [
        goal(f"{case}: bytes of none over lookahead", GOAL_BYTES, moved[others[0]] / moved[OURS]),
        goal(f"{case}: best other policy ({best}) over lookahead", GOAL_NEVER_BELOW, step_s[best] / step_s[OURS]),
        goal(f"{case}: best policy over auto", GOAL_NEVER_BELOW, min(step_s[best], step_s[OURS]) / step_s[AUTO]),
    ]
    if share >= MOSTLY_COMMUNICATION:
        over_early = step_s["recs_early"] / step_s[OURS]
        limit = step_s["recs_early"] / bound
        goals.append(goal(f"{case}: recs_early over lookahead", GOAL_STEP, over_early, limit))
        goals.append(goal(f"{case}: share of the bound", GOAL_BOUND, bound / step_s[OURS]))
    report.notes.setdefault("goals", []).extend(goals)
    report.notes[case] = {
        "communication": f"{share:.0%} of the step of {others[0]}",
        "return of rows": f"{samples[OURS][0]['returns_s'] / step_s[OURS]:.0%} of the step",
        "kept rows": f"{samples[OURS][0]['kept_rows']:,}",
    }
    shown = ", ".join(f"{arm} {MS * seconds:.1f} ms" for arm, seconds in step_s.items())
    print(f"{case}: {shown}; {moved[others[0]] / moved[OURS]:.2f}x fewer bytes", file=sys.stderr, flush=True)


def goal(what: str, wanted: float, reached: float, limit: float | None = None) -> dict[str, Any]:
    """A row of the table of goals; it shows the bound if that makes the goal impossible."""
    target = f"{wanted:g}" if limit is None or limit >= wanted else f"{wanted:g} (the bound is {limit:.2f})"
    return {"what": what, "wanted": target, "reached": f"{reached:.2f}", "met": reached >= wanted}


def main() -> None:
    """Measure all logs on all links, and write the report."""
    options = harness.options("bench_placement.py", __doc__, logs=",".join(LOGS))
    report = harness.Report("bench_placement")
    quick = options.quick
    cases = [("zipf-1.05", 16)] if quick else [*((log, 16) for log in LOGS), ("zipf-1.05", 64)]
    cases = [case for case in cases if case[0] in options.logs.split(",")]
    begun = time.perf_counter()
    with Link() as link:
        report.notes["link"] = "network namespaces and tc tbf" if link.is_real else f"no limit: {link.why_not}"
        for log, dim in cases:
            link.set_rate(None)
            with ExitStack() as stack:
                try:
                    measurement = Measurement(link, stack, log, dim, ROWS_QUICK if quick else ROWS)
                except MissingLog as missing:
                    print(f"skipped: {missing}", file=sys.stderr)
                    continue
                for arm in WARM_UP:
                    measurement.run(arm, arms(quick)[arm])
                is_main = log == MAIN_LOG
                rounds = ROUNDS_QUICK if quick else ROUNDS if is_main else OTHER_ROUNDS
                for rate in (1.0,) if quick else (RATES if is_main else OTHER_RATES) if link.is_real else (None,):
                    link.set_rate(rate)
                    samples: dict[str, list[list[dict[str, Any]]]] = {}
                    for _ in range(rounds):
                        for arm, job in arms(quick).items():
                            samples.setdefault(arm, []).append(measurement.run(arm, job))
                    for number, window in enumerate(WINDOWS):
                        case = f"{log}, dim {dim}, {name_of(rate)}, {window}"
                        of_window = {arm: [run[number] for run in runs] for arm, runs in samples.items()}
                        report_case(report, case, of_window, rate)
                link.set_rate(None)
    report.notes["seconds"] = round(time.perf_counter() - begun, 1)
    report.finish(options)


if __name__ == "__main__":
    main()
