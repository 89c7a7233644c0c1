"""Quality of the default job without tuning, beside its peers at their defaults: NE and AUC of one pass over a log.

Every arm predicts each row before it learns it, on the same rows in the same order, so all numbers are those of unseen
rows. NE is log loss divided by the entropy of the label rate of the same rows: predicting the label rate gives 1. It
is shown for the whole log and for each quarter; the first quarter shows how an arm starts.

Logs: `criteo` is the public sample of 137,139 rows (25.7 % clicks), `rare` the same with positives thinned to 2.6 %;
`-20k` and `-10k` are their first rows. `news` is the first hours of the Globo.com log, as `headrace import clicks`
writes them. The others are generated, and the row "truth" is the score of their true probabilities, which no model can
beat by more than chance: `few-features` (two ids and a price), `new-ids` (every fifth row brings a new item), `drift`
(every effect turns into its opposite, and the label rate moves), `no-lists` (eight ids and five numbers), `only-lists`.

Arms:

- headrace init: the job that `headrace init` writes, trained as it is
- headrace, job of two keys: `run` and `data.path` alone, all else at its default
- online LR: hashed logistic regression with Adagrad, at rate 0.1, and at the best of four rates in hindsight
- LightGBM: `LGBMClassifier()`, fitted again before each tenth of the log on all rows before it; in the first tenth, the
  label rate so far
- torch-rechub: DeepFM and DCN-v2 of its example for Criteo, with its trainer at its defaults (Adam at 0.001), told the
  ids and the range of every number of the whole log beforehand; batches of 256 as in its README, and on logs of up to
  10,000 rows also of 16, its loader's default

The docstrings in `quality/` describe their features. Arms whose result no seed changes run once. Rows per second are
those of training, and only a rough guide: nothing else is timed beside them.

    .peers/bin/python benchmarks/bench_quality.py                                   # the first 30,000 rows of each log
    .peers/bin/python benchmarks/bench_quality.py --rows 0                          # whole logs
    .peers/bin/python benchmarks/bench_quality.py --logs rare-10k,drift --arms init,lr,lightgbm --seeds 1
    .peers/bin/python benchmarks/bench_quality.py --logs rare-10k --arms init --grid 30

`--grid N` also trains N points of a grid (model, dimension, batch size, rates) of the job of `headrace init` with one
seed, and the best of them with all seeds, to show what tuning would gain. The cases named "grid of 30 points" are such
runs with one seed, on the first 30,000 rows. A best of 30 is also the luckiest of 30.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import harness
import pyarrow.parquet as pq
from peers.processes import ArmFailed, Process
from quality.arms import ARMS, DEFAULT_JOB, QualityArm
from quality.logs import LOGS, MissingLog, QualityLog, make_log
from quality.ours import grid_points, init_job
from quality.scores import score, to_logits

from headrace.cli.tables import text_table
from headrace.observe.progress import Progress

TRUTH = "truth"
METRICS = ("NE", *(f"NE, quarter {number}" for number in (1, 2, 3, 4)))
AUCS = ("AUC", "AUC, quarter 4")
RATE = "rows per second"
ROWS, ROWS_QUICK, LOGS_QUICK = 30_000, 10_000, ("rare-10k", "few-features")
PASS_TIMEOUT_S = 1800.0
GOAL_GRID = 0.005

Answer = dict[str, Any]


class Measurement:
    """The processes of the libraries, and the passes that are left."""

    def __init__(self, arms: list[QualityArm], seeds: int, points: list[dict[str, Any]], progress: Progress) -> None:
        self.arms, self.seeds, self.points, self._progress = arms, seeds, points, progress
        self._processes: dict[str, Process] = {}

    def passes_of_a_log(self) -> int:
        """Passes over each log; those of a grid's best point are done with all seeds."""
        grid = len(self.points) + self.seeds if self.points else 0
        return sum(self.seeds if arm.takes_seed else 1 for arm in self.arms) + grid

    def all_seeds(self, log: QualityLog, job: Path, arm: QualityArm, change: Any = None) -> list[Answer]:
        """One pass for each seed; none if the arm fails."""
        answers = []
        for seed in range(self.seeds if arm.takes_seed else 1):
            answer = self.one_pass(log, job, arm, seed, change)
            if answer is None:
                return []
            answers.append(answer)
        return answers

    def one_pass(self, log: QualityLog, job: Path, arm: QualityArm, seed: int, change: Any = None) -> Answer | None:
        """One pass; None, with a message, if the arm fails."""
        if arm.package not in self._processes:
            self._processes[arm.package] = Process("quality.arms")
        question = {"arm": arm.key, "log": str(log.path), "job": str(job), "seed": seed, "change": change}
        try:
            answer = self._processes[arm.package].ask(json.dumps(question), PASS_TIMEOUT_S)
        except ArmFailed as error:
            self._processes.pop(arm.package).close()
            answer = {"error": str(error)}
        self._progress.advance(columns={"log": log.name, "arm": arm.name})
        if "error" in answer:
            print(f"failed: {log.name}: {arm.name}: {answer['error']}", file=sys.stderr)
            return None
        return answer

    def close(self) -> None:
        """End the processes."""
        for process in self._processes.values():
            process.close()


def measure(report: harness.Report, measurement: Measurement, log: QualityLog, job: Path) -> None:
    """All arms of one log, and the grid."""
    truth, num_rows = log.truth, log.num_rows
    for arm in measurement.arms:
        if arm.max_rows is not None and num_rows > arm.max_rows:
            continue
        answers = measurement.all_seeds(log, job, arm)
        add(report, log.name, arm.name, answers, with_rate=arm.package == "headrace")
        if answers and answers[0]["note"]:
            report.notes[f"{log.name}: {arm.name}"] = answers[0]["note"]
    if truth is not None:
        (label,) = pq.read_table(log.path, columns=["click"]).columns
        add(report, log.name, TRUTH, [score(to_logits(truth), label.to_numpy().astype("float32"))], with_rate=False)
    if measurement.points:
        grid(report, measurement, log, job)
    if any((row.case, row.arm) == (log.name, DEFAULT_JOB) for row in report.rows):
        compare(report, log.name)


def grid(report: harness.Report, measurement: Measurement, log: QualityLog, job: Path) -> None:
    """The points of the grid with one seed, and the best with all."""
    init = ARMS["init"]
    found = []
    for point in measurement.points:
        answer = measurement.one_pass(log, job, init, 0, point)
        if answer is not None:
            found.append((answer["ne"][0], point))
    if not found:
        return
    found.sort(key=lambda pair: pair[0])
    for ne, point in found[:3]:
        print(f"{log.name}: grid: NE {ne:.4f} with {shown(point)}", file=sys.stderr)
    best = f"{DEFAULT_JOB}, best of {len(found)}"
    add(report, log.name, best, measurement.all_seeds(log, job, init, found[0][1]), with_rate=True)
    report.notes[f"{log.name}: best of the grid"] = shown(found[0][1])


def add(report: harness.Report, log: str, arm: str, answers: list[Answer], *, with_rate: bool) -> None:
    """Add the scores of an arm's passes."""
    if not answers:
        return
    for place, metric in enumerate(METRICS):
        report.add(log, arm, metric, "", [answer["ne"][place] for answer in answers])
    for place, metric in zip((0, 4), AUCS, strict=True):
        report.add(log, arm, metric, "", [answer["auc"][place] for answer in answers])
    if with_rate:
        report.add(log, arm, RATE, "rows/s", [answer["rows"] / answer["seconds"] for answer in answers])


def compare(report: harness.Report, log: str) -> None:
    """Ratios of NE to the other arms, and the goals."""
    arms = list(dict.fromkeys(row.arm for row in report.rows if row.case == log))
    goals = report.notes.setdefault("goals", [])
    others = [arm for arm in arms if arm not in (DEFAULT_JOB, TRUTH)]
    if others:
        report.compare(log, DEFAULT_JOB, "NE", against=others, lower_is_better=True)
    default = report.median(log, DEFAULT_JOB, "NE")
    peers = {arm.name for arm in ARMS.values() if arm.is_default and arm.package != "headrace"}
    found = {arm: report.median(log, arm, "NE") for arm in others if arm in peers}
    if found:
        best = min(found, key=lambda arm: found[arm])
        goals.append(goal(f"{log}: NE of the best peer ({best}) over ours", ">= 1", found[best] / default, at_least=1))
    worst = max(report.median(log, DEFAULT_JOB, metric) for metric in METRICS[1:])
    goals.append(goal(f"{log}: largest NE of a quarter", "<= 1", worst, at_most=1))
    for arm in others:
        if arm.startswith(f"{DEFAULT_JOB}, best of"):
            behind = default / report.median(log, arm, "NE") - 1
            what = f"{log}: NE above the {arm.rpartition(', ')[2]} of the grid"
            goals.append(goal(what, f"<= {GOAL_GRID}", behind, at_most=GOAL_GRID))


def goal(what: str, wanted: str, reached: float, *, at_least: float = -1e9, at_most: float = 1e9) -> dict[str, Any]:
    """A goal, as the README shows it."""
    return {"what": what, "wanted": wanted, "reached": f"{reached:.4f}", "met": at_least <= reached <= at_most}


def shown(point: dict[str, Any]) -> str:
    """A point of the grid as text."""
    return ", ".join(f"{key} {value}" for key, value in point.items())


def table(report: harness.Report) -> str:
    """A line for each arm of each log: medians over seeds, and the spread of NE."""
    lines = []
    for log, arm in dict.fromkeys((row.case, row.arm) for row in report.rows):
        rows = {row.metric: row for row in report.rows if (row.case, row.arm) == (log, arm)}
        spread = f"{rows['NE'].p10:.4f} to {rows['NE'].p90:.4f}" if rows["NE"].n > 1 else ""
        numbers = [f"{rows[metric].median:.3f}" for metric in (*METRICS[1:], *AUCS)]
        rate = f"{rows[RATE].median:,.0f}" if RATE in rows else ""
        lines.append([f"{log}: {arm}", f"{rows['NE'].median:.4f}", spread, *numbers, rate])
    header = ["log: arm", "NE", "of seeds", "Q1", "Q2", "Q3", "Q4", "AUC", "AUC Q4", "rows/s"]
    return text_table(header, lines)


def chosen(what: str, known: dict[str, Any], asked: str) -> list[str]:
    """The names that were asked for, all by default."""
    names = [name for name in asked.split(",") if name] or list(known)
    for name in names:
        if name not in known:
            raise SystemExit(f"--{what}: given {name}, expected some of: {', '.join(known)}")
    return names


def installed_arms(asked: str) -> Iterator[QualityArm]:
    """The arms that were asked for and whose library is installed."""
    for key in chosen("arms", ARMS, asked):
        if importlib.util.find_spec(ARMS[key].package) is None:
            print(f"skipped: {ARMS[key].name}: {ARMS[key].package} is not installed (make peers)", file=sys.stderr)
        else:
            yield ARMS[key]


def made_logs(options: argparse.Namespace) -> Iterator[QualityLog]:
    """The logs that were asked for and that there are."""
    default = ",".join(LOGS_QUICK) if options.quick else ""
    for name in chosen("logs", LOGS, options.logs or default):
        try:
            yield make_log(name, min(options.rows or ROWS_QUICK, ROWS_QUICK) if options.quick else options.rows)
        except MissingLog as error:
            print(f"skipped: {name}: {error}", file=sys.stderr)


def main() -> None:
    options = harness.options("bench_quality", __doc__, rows=ROWS, seeds=3, logs="", arms="", grid=0)
    arms, logs = list(installed_arms(options.arms)), list(made_logs(options))
    report = harness.Report("bench_quality")
    seeds = 1 if options.quick else options.seeds
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="headrace-quality-")))
        progress = stack.enter_context(Progress("bench_quality", unit="passes"))
        measurement = Measurement(arms, seeds, grid_points(options.grid), progress)
        stack.callback(measurement.close)
        progress.total = len(logs) * measurement.passes_of_a_log()
        for log in logs:
            report.notes[f"{log.name}: rows"] = log.num_rows
            measure(report, measurement, log, init_job(log.path, folder / log.name))
            if options.json is not None:
                report.write(options.json)  # a run that is stopped leaves the logs that are done
    print(table(report))
    for each in report.notes.get("goals", ()):
        print(f"{'met' if each['met'] else 'NOT MET'}: {each['what']}: {each['reached']}, wanted {each['wanted']}")


if __name__ == "__main__":
    main()
