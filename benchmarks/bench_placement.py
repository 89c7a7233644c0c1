"""Placement of rows with one trainer and one shard on a shaped link: bytes and time per step, beside scheduling alone.

Trainer and shard are processes in two network namespaces, each pinned to a core, as in `bench_schedule.py`. Every arm
trains the two windows of a log with a trainer of its own each, as scheduled jobs do, so the second window begins with
nothing in the trainer, and with a shard that has the rows of the first one. Arms take turns. Times include the return
of all changed rows at the end of the window, and losses must be the same for all arms (of Redis, up to rounding).

- rows in this process: no shard; what `lookahead` could reach at best
- serial, recs, recs_early: rows are read and updated in the shard in every step, `placement: none`
- lookahead: rows stay in the trainer, `placement: lookahead`; also with a tenth of the memory that its rows need
- auto: the default, which measures how fast rows come before the first step, and then is lookahead or recs_early; where
  it is compared with the best policy, its runs and those of the policy it chose count as one
- rows in Redis: the same model in the same loop; a value holds a row and its optimizer state, and torch trains it
- TensorFlow with `ParameterServerStrategy`, and torchrec with `DistributedModelParallel` on gloo, where each end of the
  link trains half of every batch: the same rows and layers, but no metrics and no return of rows, SGD for dense layers,
  and no feature work with torchrec

Logs: `criteo` is the public sample of 137,139 rows, `news` the first hours of the Globo.com log with histories, and
`zipf-A` has 16 columns of a million ids, drawn from a Zipf distribution with exponent A, a tenth of which are replaced
in the second window.

The bound of a step is max(F + M, what is left of P + U): the phases F, P, M, U are those of `serial` (features, pull,
dense work, push), and of P + U so much is left as of the bytes. Work on rows in the trainer is not in it.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import harness
from bench_schedule import MS, Child, name_of
from placement.logs import LOGS, MissingLog, window_log
from placement.phases import PHASES
from schedule.links import Link
from schedule.peers import PYTHON, start_peers
from schedule.workloads import log_name

NONE = "none"
OURS, TIGHT, AUTO, LOCAL = "lookahead", "lookahead, a tenth of the memory", "auto", "rows in this process"
SERIAL, EARLY, REDIS = "serial", "recs_early", "rows in Redis"
WINDOWS = ("first window", "next window")
WARM_UP = ("recs", OURS)
"""Arms that run once, uncounted, in every trainer process: they load all kernels."""
ROWS, ROWS_QUICK = 137_138, 20_000
BYTES_BESIDE_ROW = 100
"""Bytes that `ResidentStore` counts for a row beside its weights."""

GOAL_BYTES, GOAL_STEP, GOAL_NEVER_BELOW, GOAL_BOUND, GOAL_PLANNER = 3.0, 1.5, 0.98, 0.9, 0.05
BAGPIPE = 5.6
"""What Bagpipe (SOSP'23) reports at most over training without a cache."""
MOSTLY_COMMUNICATION = 0.65
REDIS_PORT, REDIS_LOSS = 6390, 1e-4
"""Relative difference that the loss of Redis may have: torch adds the squares of a gradient in another order."""

ARMS: dict[str, dict[str, Any]] = {
    LOCAL: {},
    SERIAL: {"scheduler": "serial", "placement": NONE},
    "recs": {"scheduler": "recs", "placement": NONE},
    EARLY: {"scheduler": EARLY, "placement": NONE},
    OURS: {"placement": {"policy": "lookahead", "memory": "2GiB"}},
    TIGHT: {"placement": {"policy": "lookahead"}},
    AUTO: {"placement": {"memory": "2GiB"}},
    REDIS: {"scheduler": {"policy": "serial", "max_groups": 1}},
}
"""The part of the job that differs by arm."""
MAIN = (LOCAL, SERIAL, "recs", EARLY, OURS, AUTO)

Sample = dict[str, Any]


@dataclass(frozen=True)
class Cell:
    """What is measured of a log on some links.

    Attributes:
        log: Name of the log.
        dim: Dimension of rows.
        rates: Gb/s of each link and its rounds; a rate of None is no limit.
        arms: Arms, in the order of a round.
        has_peers: Whether TensorFlow and torchrec take turns, too.
    """

    log: str
    dim: int
    rates: dict[float | None, int]
    arms: tuple[str, ...] = MAIN
    has_peers: bool = False


CELLS = (
    Cell("criteo", 64, {None: 2, 0.1: 1}, tuple(arm for arm in MAIN if arm != "recs")),
    Cell("criteo", 16, {0.1: 2, 1.0: 2, None: 3}, (*MAIN[:-1], TIGHT, AUTO, REDIS), has_peers=True),
    Cell("zipf-1.05", 16, {0.3: 2, None: 3}),
    Cell("news", 16, {0.3: 2, None: 2}),
)
QUICK = (Cell("zipf-1.05", 16, {1.0: 1}, tuple(arm for arm in MAIN if arm != "recs")),)


def job_of(log: str, dim: int) -> dict[str, Any]:
    """The part of the job that all arms share."""
    return {
        "training": {
            "batch_size": batch_size(log),
            "threads": 1,
            "precision": "fp32",
            "dense_optimizer": {"kind": "adam"},
        },
        "pipeline": {"workers": 1},
        "embeddings": {"default": {"kind": "hashed", "num_embeddings": 1_000_000}},
        "model": {"kind": "dlrm", "embedding_dim": dim},
    }


def batch_size(log: str) -> int:
    """Rows of a batch."""
    return 1024 if log == "news" else 2048


class Measurement:
    """The processes of one log and dimension."""

    def __init__(self, report: harness.Report, link: Link, stack: ExitStack, cell: Cell, num_rows: int) -> None:
        self._log = window_log(cell.log, num_rows)
        self._shared = job_of(cell.log, cell.dim)
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-bench-"))
        self._run = Path(folder) / "run"
        shard_command = [sys.executable, "-m", "placement.shard", link.shard_host, str(self._run / "checkpoints")]
        shard = Child(link.command(1, shard_command))
        stack.callback(shard.close)
        self._address = f"{link.shard_host}:{int(shard.line())}"
        self._redis = start_redis(report, link, stack) if REDIS in cell.arms else ""
        self._trainer = Child(link.command(0, [sys.executable, "-m", "placement.trainer"]))
        stack.callback(self._trainer.close)
        self._tight = ""
        self.arms = tuple(arm for arm in cell.arms if arm != REDIS or self._redis)
        self.peers: dict[str, Callable[[int], float]] = {}
        if cell.has_peers and PYTHON.exists():
            workload = log_name(self._log, batch_size(cell.log), cell.dim)
            self.peers = start_peers(report, link, Child, stack, workload)
        elif cell.has_peers:
            report.notes["peers"] = "not installed: make peers"

    def run(self, arm: str) -> list[Sample]:
        """Train both windows with one arm; `lookahead` comes before the arm with a tenth of its memory."""
        job = ARMS[arm]
        if arm == TIGHT:
            job = {"placement": {**job["placement"], "memory": self._tight}}
        command = {"run": str(self._run), "log": str(self._log), "job": {**self._shared, **job}}
        command["address"] = "" if arm in (LOCAL, REDIS) else self._address
        command["redis"] = self._redis if arm == REDIS else ""
        windows: list[Sample] = self._trainer.ask(command)["windows"]
        if arm == OURS:
            row_bytes = 4 * self._shared["model"]["embedding_dim"] + BYTES_BESIDE_ROW
            self._tight = f"{max(each['kept_rows'] for each in windows) * row_bytes // 10}"
        return windows


def start_redis(report: harness.Report, link: Link, stack: ExitStack) -> str:
    """Start a Redis server without persistence at the shard's end; returns its address, or nothing without one."""
    if shutil.which("redis-server") is None:
        report.notes["redis"] = "not installed: apt-get install redis-server"
        return ""
    version = subprocess.run(["redis-server", "--version"], capture_output=True, text=True, check=True).stdout
    report.notes["redis"] = version.split()[2]  # v=7.0.15
    options = ["--bind", link.shard_host, "--port", str(REDIS_PORT), "--save", "", "--appendonly", "no"]
    process = subprocess.Popen(
        link.command(1, ["redis-server", *options, "--protected-mode", "no", "--loglevel", "warning"]),
        stdout=subprocess.DEVNULL,
    )
    stack.callback(process.wait)
    stack.callback(process.terminate)
    return f"{link.shard_host}:{REDIS_PORT}"


class CaseReport:
    """Rows, ratios, bounds and goals of one window of a log on one link."""

    def __init__(self, report: harness.Report, case: str, samples: dict[str, list[Sample]]) -> None:
        self._report, self._case, self._samples = report, case, samples
        self._step_s = {arm: statistics.median(run["step_s"] for run in runs) for arm, runs in samples.items()}
        phases = [run["phases"] for run in samples[SERIAL]]
        self._phases = {name: statistics.median(run[name] for run in phases) for name in PHASES}
        self._communication_s = self._phases["P"] + self._phases["U"]
        self._share = self._communication_s / sum(self._phases.values())
        self._bytes = {arm: runs[0]["bytes"] for arm, runs in samples.items() if "bytes" in runs[0]}

    def write(self) -> None:
        """Add everything to the report."""
        check_losses(self._case, self._samples)
        self._rows()
        bound_s = self._bounds()
        self._goals(bound_s)
        self._notes()
        shown = ", ".join(f"{arm} {MS * seconds:.1f} ms" for arm, seconds in self._step_s.items())
        saved = self._bytes[SERIAL] / self._bytes[OURS]
        print(f"{self._case}: {shown}; {saved:.2f}x fewer bytes", file=sys.stderr, flush=True)

    def _rows(self) -> None:
        report, case = self._report, self._case
        for arm, runs in self._samples.items():
            report.add(case, arm, "step", "ms", [MS * run["step_s"] for run in runs])
            if "cpu_s" not in runs[0]:
                continue
            report.add(case, arm, "CPU per step", "ms", [MS * run["cpu_s"] for run in runs])
            if runs[0]["kept_rows"]:
                report.add(case, arm, "planner's CPU per step", "ms", [MS * run["planner_s"] for run in runs])
            if arm != LOCAL:
                report.add(case, arm, "moved per step", "MB", [run["bytes"] / 1e6 for run in runs])
        others = [arm for arm in self._samples if arm not in (LOCAL, OURS, TIGHT, AUTO)]
        report.compare(case, AUTO, "step", against=others, lower_is_better=True)

    def _bounds(self) -> float:
        """Add the bounds; returns that of the phases."""
        left = self._bytes[OURS] / self._bytes[SERIAL]
        bound_s = max(self._phases["F"] + self._phases["M"], left * self._communication_s)
        reached_s, local_s = self._step_s[OURS], self._step_s[LOCAL]
        for what, seconds in (
            (f"max(F + M, {left:.0%} of P + U); lookahead", bound_s),
            ("rows in this process; lookahead", local_s),
        ):
            self._report.limits.append(harness.Limit(self._case, what, MS * seconds, "ms", seconds / reached_s))
        return bound_s

    def _goals(self, bound_s: float) -> None:
        step_s, case = self._step_s, self._case
        policies = [arm for arm in (SERIAL, "recs", EARLY) if arm in step_s]
        best = min(policies, key=step_s.__getitem__)
        saved = self._bytes[SERIAL] / self._bytes[OURS]
        planner = statistics.median(run["planner_s"] / run["cpu_s"] for run in self._samples[OURS])
        goals = [
            goal(f"{case}: bytes of none over lookahead", GOAL_BYTES, saved),
            goal(f"{case}: best other policy ({best}) over lookahead", GOAL_NEVER_BELOW, step_s[best] / step_s[OURS]),
            goal(f"{case}: best policy over auto ({self._choice()})", GOAL_NEVER_BELOW, self._best_over_auto()),
            goal(f"{case}: lookahead at its bound", GOAL_BOUND, bound_s / step_s[OURS]),
            goal(f"{case}: planner's share of the step's CPU", GOAL_PLANNER, planner, at_most=True),
        ]
        if self._share >= MOSTLY_COMMUNICATION:
            over_early, most = step_s[EARLY] / step_s[OURS], step_s[EARLY] / bound_s
            goals.append(goal(f"{case}: recs_early over lookahead", GOAL_STEP, over_early, most))
        if 1 / (1 - self._share) >= BAGPIPE:
            over_none, most = step_s[SERIAL] / step_s[OURS], 1 / (1 - self._share)
            goals.append(goal(f"{case}: serial over lookahead, as Bagpipe over no cache", BAGPIPE, over_none, most))
        self._report.notes.setdefault("goals", []).extend(goals)

    def _best_over_auto(self) -> float:
        """The step of the best policy over that of `auto`; the runs of `auto` count as runs of the policy it chose."""
        runs = {arm: list(self._samples[arm]) for arm in (SERIAL, "recs", EARLY, OURS) if arm in self._samples}
        chosen = self._choice()
        if chosen in runs:
            runs[chosen] += self._samples[AUTO]
        step_s = {arm: statistics.median(run["step_s"] for run in found) for arm, found in runs.items()}
        return min(step_s.values()) / step_s.get(chosen, self._step_s[AUTO])

    def _choice(self) -> str:
        """What `auto` is; it may differ by run if the link is at its threshold."""
        return " or ".join(sorted({OURS if run["kept_rows"] else EARLY for run in self._samples[AUTO]}))

    def _notes(self) -> None:
        runs = self._samples[OURS]
        over_none = self._step_s[SERIAL] / self._step_s[OURS]
        self._report.notes[self._case] = {
            **{name: f"{MS * seconds:.1f} ms" for name, seconds in self._phases.items()},
            "communication": f"{self._share:.0%} of serial",
            "serial over lookahead": f"{over_none:.2f}x, without communication {1 / (1 - self._share):.2f}x",
            "return of rows": f"{runs[0]['returns_s'] / self._step_s[OURS]:.0%} of the step",
            "kept rows": f"{runs[0]['kept_rows']:,}",
            "auto": self._choice(),
        }


def check_losses(case: str, samples: dict[str, list[Sample]]) -> None:
    """End the program if arms have different losses."""
    losses = {arm: {run["loss"] for run in runs if "loss" in run} for arm, runs in samples.items()}
    exact = {f"{loss:.12g}" for arm in losses if arm != REDIS for loss in losses[arm]}
    expected = max(losses[SERIAL])
    if len(exact) > 1 or any(abs(loss / expected - 1) > REDIS_LOSS for loss in losses.get(REDIS, ())):
        raise SystemExit(f"{case}: arms have losses {losses}, expected one")


def goal(what: str, wanted: float, reached: float, limit: float | None = None, *, at_most: bool = False) -> Sample:
    """A row of the table of goals; it shows the bound if that makes the goal impossible."""
    target = f"{wanted:g}" if limit is None or limit >= wanted else f"{wanted:g} (the bound is {limit:.2f})"
    met = reached <= wanted if at_most else reached >= wanted
    if at_most:
        return {"what": what, "wanted": f"at most {wanted:.0%}", "reached": f"{reached:.1%}", "met": met}
    return {"what": what, "wanted": target, "reached": f"{reached:.2f}", "met": met}


def measure(report: harness.Report, link: Link, cell: Cell, num_rows: int) -> None:
    """Measure a cell on all its links."""
    link.set_rate(None)
    with ExitStack() as stack:
        try:
            measurement = Measurement(report, link, stack, cell, num_rows)
        except MissingLog as missing:
            print(f"skipped: {missing}", file=sys.stderr)
            return
        for arm in (*WARM_UP, *((REDIS,) if REDIS in measurement.arms else ())):
            measurement.run(arm)
        for rate, rounds in cell.rates.items() if link.is_real else ((None, 1),):
            link.set_rate(rate)
            samples: list[dict[str, list[Sample]]] = [{} for _ in WINDOWS]
            for _ in range(rounds):
                for arm in measurement.arms:
                    for of_window, sample in zip(samples, measurement.run(arm), strict=True):
                        of_window.setdefault(arm, []).append(sample)
                steps = samples[0][SERIAL][0]["steps"]
                for name, ask in measurement.peers.items():
                    samples[0].setdefault(name, []).append({"step_s": ask(steps)})
            for window, of_window in zip(WINDOWS, samples, strict=True):
                case = f"{cell.log}, dim {cell.dim}, {name_of(rate)}, {window}"
                CaseReport(report, case, of_window).write()
        link.set_rate(None)


def main() -> None:
    """Measure all logs on all links, and write the report."""
    options = harness.options("bench_placement.py", __doc__, logs=",".join(LOGS))
    report = harness.Report("bench_placement")
    begun = time.perf_counter()
    with Link() as link:
        report.notes["link"] = "network namespaces and tc tbf" if link.is_real else f"no limit: {link.why_not}"
        for cell in QUICK if options.quick else CELLS:
            if cell.log in options.logs.split(","):
                measure(report, link, cell, ROWS_QUICK if options.quick else ROWS)
                report.notes["seconds"] = round(time.perf_counter() - begun, 1)
                if options.json is not None:
                    report.write(options.json)  # what there is so far, as all takes 25 minutes
    report.finish(options)


if __name__ == "__main__":
    main()
