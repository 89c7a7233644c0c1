"""Placement of rows with two trainers and one shard, through one shaped link: bytes and time per step.

`headrace launch` runs all processes in a network namespace whose loopback interface has a token bucket, so everything
shares one link: rows, gradients of rows and of the dense part, keys, samples. Arms take turns, and train the first
window of the public Criteo sample, of which the normalized entropy must be the same.

- none: rows are read and updated in the shard in every step, with the scheduler that a job has by default
- lookahead: rows stay in the trainers, which exchange values, gradients and rows
- by_cost: the same, and each sample is trained where the rows that it uses are kept (`placement.samples`)
- auto: the default, which measures how fast rows come, and is one of these
"""

from __future__ import annotations

import json
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import harness
import yaml
from placement.logs import MissingLog, window_log
from schedule.links import can_make_namespaces

TRAINERS, BATCH_ROWS = 2, 1024
CASES: tuple[tuple[int, int | None], ...] = ((16, 100), (16, 300), (16, 1000), (16, None), (64, 300))
"""Dimension of rows, and megabits per second; None for no limit."""
ROUNDS, ROWS, ROWS_QUICK = 2, 137_138, 20_000
ARMS: dict[str, Any] = {
    "none": "none",
    "lookahead": {"policy": "lookahead", "memory": "2GiB"},
    "by_cost": {"policy": "lookahead", "memory": "2GiB", "samples": "by_cost"},
    "auto": {"memory": "2GiB"},
}
ONCE = "auto"
"""The arm that is run once: it is one of the others, and its choice counts."""

ROUNDING = 1e-3
"""Largest difference of the normalized entropy of samples that are trained in another order of sums."""

GOAL_NEVER_BELOW = 0.98
KINDS = ("fetched", "returned", "key", "state", "value", "gradient", "sample")
BUCKET = "tc qdisc add dev lo root tbf rate {rate}mbit burst 64kb latency 200ms"
SHAPE = f"ip link set lo up mtu 9000 && {BUCKET} && exec {{command}}"
"""Packets of loopback are longer than the bucket by default, and would all be dropped."""


def job_of(run: Path, log: Path, placement: Any, dim: int) -> dict[str, Any]:
    """A job of an arm."""
    return {
        "run": str(run),
        "data": {"path": str(log)},
        "placement": placement,
        "training": {
            "batch_size": BATCH_ROWS,
            "threads": 1,
            "precision": "fp32",
            "dense_optimizer": {"kind": "adam"},
            "log_every_steps": 10,
        },
        "pipeline": {"workers": 1, "tuner": "none"},
        "embeddings": {"default": {"kind": "hashed", "num_embeddings": 1_000_000}},
        "model": {"kind": "dlrm", "embedding_dim": dim},
    }


def train(folder: Path, log: Path, placement: Any, dim: int, rate: int | None) -> dict[str, Any]:
    """Train the first window; returns seconds per step, normalized entropy, and bytes per step of each kind."""
    run = folder / "run"
    shutil.rmtree(run, ignore_errors=True)
    (folder / "job.yaml").write_text(yaml.safe_dump(job_of(run, log, placement, dim)))
    command = [sys.executable, "-m", "headrace", "launch", str(folder / "job.yaml"), f"--trainers={TRAINERS}"]
    command += ["--shards=1", "--windows=1"]
    if rate is not None:
        command = ["unshare", "-n", "sh", "-c", SHAPE.format(rate=rate, command=" ".join(command))]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"launch failed: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    moved: Counter[str] = Counter()
    steps, ends = [], []
    for rank in range(TRAINERS):
        path = run / ("" if rank == 0 else f"trainers/{rank}") / "metrics.jsonl"
        records = [json.loads(line) for line in path.read_text().splitlines()]
        ends += [record for record in records if record["kind"] == "window"]
        found = [record for record in records if record["kind"] == "step"]
        steps = steps or found
        for record in found:
            moved.update(record.get("placement", {}))
    last = steps[-1]
    decisions = [json.loads(line) for line in (run / "decisions.jsonl").read_text().splitlines()]
    choice = next(decision["reason"] for decision in decisions if decision["who"] == "placement")
    measured = {"step_s": last["time_s"] / last["step"], "ne": ends[0]["ne"], "steps": last["step"]}
    return measured | {"moved": moved, "choice": choice}


def report_case(report: harness.Report, case: str, samples: dict[str, list[dict[str, Any]]]) -> None:
    """Rows and ratios of a link."""
    entropies = {f"{run['ne']:.9g}" for arm, runs in samples.items() for run in runs if arm != "by_cost"}
    if len(entropies) > 1:
        raise SystemExit(f"{case}: arms have normalized entropies {sorted(entropies)}, expected one")
    ((expected, found),) = {(samples["none"][0]["ne"], run["ne"]) for run in samples["by_cost"]}
    if abs(found / expected - 1) > ROUNDING:
        raise SystemExit(f"{case}: by_cost has a normalized entropy of {found}, expected about {expected}")
    for arm, runs in samples.items():
        report.add(case, arm, "step", "ms", [1e3 * run["step_s"] for run in runs])
    report.compare(case, "lookahead", "step", against=["none"], lower_is_better=True)
    report.compare(case, "by_cost", "step", against=["none", "lookahead"], lower_is_better=True)
    step_s = {arm: statistics.median(run["step_s"] for run in runs) for arm, runs in samples.items()}
    over_auto = min(step_s["none"], step_s["lookahead"]) / step_s["auto"]
    wanted = f"{GOAL_NEVER_BELOW:g}"
    report.goal(f"{case}: best policy over auto", wanted, f"{over_auto:.2f}", met=over_auto >= GOAL_NEVER_BELOW)
    report.notes[case] = {"auto": samples["auto"][0]["choice"]}
    plain = [run["moved"]["num_plain_bytes"] / run["steps"] / 1e6 for run in samples["lookahead"]]
    report.add(case, "none", "moved per step by both", "MB", plain)
    for arm in ("lookahead", "by_cost"):
        for kind in ("", *(f"{kind}_" for kind in KINDS)):
            name = f"{kind.removesuffix('_') or 'moved'} per step by both"
            values = [run["moved"][f"num_{kind}bytes"] / run["steps"] / 1e6 for run in samples[arm]]
            report.add(case, arm, name, "MB", values)
    share = [run["moved"]["num_moved_samples"] / run["moved"]["num_placed_samples"] for run in samples["by_cost"]]
    report.add(case, "by_cost", "samples that moved", "share", share)


def main() -> None:
    """Measure all links, and write the report."""
    options = harness.options("bench_placement_trainers.py", __doc__)
    report = harness.Report("bench_placement_trainers")
    why_not = can_make_namespaces()
    report.notes["link"] = f"no limit: {why_not}" if why_not else "loopback of a network namespace, tc tbf"
    try:
        log = window_log("criteo", ROWS_QUICK if options.quick else ROWS)
    except MissingLog as missing:
        raise SystemExit(f"skipped: {missing}") from missing
    with tempfile.TemporaryDirectory(prefix="headrace-bench-") as name:
        for dim, rate in ((16, None),) if options.quick or why_not else CASES:
            samples: dict[str, list[dict[str, Any]]] = {arm: [] for arm in ARMS}
            link = "unshaped" if rate is None else f"{rate / 1000:g} Gb/s"
            case = f"criteo, dim {dim}, {TRAINERS} trainers, {link}"
            for number in range(1 if options.quick else ROUNDS):
                for arm, placement in ARMS.items():
                    if arm == ONCE and number:
                        continue
                    samples[arm].append(train(Path(name), log, placement, dim, rate))
                    step_ms = 1e3 * samples[arm][-1]["step_s"]
                    print(f"{case}, round {number + 1}: {arm} {step_ms:.0f} ms a step", file=sys.stderr, flush=True)
            report_case(report, case, samples)
    report.finish(options)


if __name__ == "__main__":
    main()
