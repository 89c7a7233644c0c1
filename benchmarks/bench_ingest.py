"""Loaders from Parquet in Criteo's format to batches of tensors: headrace and six peers in turn, in rows per second.

Batches have 4096 rows. 26 id columns are mapped to the ranges of their tables, and 13 dense columns are filled and
transformed with log1p; see `peers/work.py`. Every arm runs in its own process, which is idle while it is not its turn.
Before timing, each arm makes one pass in which all its batches are compared with headrace's. A sample is one pass over
all files, from creating the iterator to the last batch, in a process that has made a pass before. Ray is restarted for
each sample, because its servers are never completely idle, and makes a pass before each timed one.

Each peer is measured with its usual settings and with the best ones found. The machine limit is the rate of threads
that only decode the same columns with pyarrow.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack

import harness
import psutil
from peers.arms import BY_ROW, DECODE, LOADERS, OURS, PREPARED, Arm, missing
from peers.data import Logs, make_logs
from peers.processes import ArmFailed, Process, loader_process
from peers.work import IdOp

METRIC = "rows per second"
CPU_METRIC = "CPU time of all its processes"
FRESH_ROUNDS = 3
GOAL = 1.8
DECODE_GOAL = 0.85
DENSE_TOLERANCE = 1e-5
"""Tolerance between sums of dense numbers, because the libraries' float32 log1p differ in the last place."""


class BatchMismatch(Exception):
    """An arm's batches differ from headrace's."""


class Runner:
    """Runs the arms of one case.

    Args:
        logs: The logs to read.
        op: The operation on ids.
        arms: The arms, starting with headrace, whose batches are the reference.
    """

    def __init__(self, logs: Logs, op: IdOp, arms: Sequence[Arm]) -> None:
        self._logs, self._op = logs, op
        self._expected: dict[tuple[int, ...], float] = {}
        self._stack = ExitStack()
        self._processes: dict[str, Process] = {}
        self._samples: dict[str, list[tuple[float, float]]] = {}
        for arm in arms:
            if missing(arm):
                _skip(arm, f"{arm.package} is not installed")
            elif arm.fresh:
                self._samples[arm.name] = []
            else:
                self._processes[arm.name] = self._stack.enter_context(loader_process(arm, logs, op))
        for arm in arms:
            if arm.name in self._processes:
                try:
                    self._check(arm, self._processes[arm.name])
                    self._samples[arm.name] = []
                except ArmFailed as error:
                    self._processes.pop(arm.name).close()
                    _skip(arm, str(error))
        self._arms = [arm for arm in arms if arm.name in self._samples]

    def run(self, rounds: int, seconds: float) -> dict[str, list[tuple[float, float]]]:
        """Time all arms in turn; returns pairs of rows per second and CPU microseconds per row."""
        harness.interleave(
            {arm.name: self._turn(arm, rounds) for arm in self._arms}, rounds=rounds, seconds=seconds, warm_up=0
        )
        self._stack.close()
        return {arm.name: self._samples[arm.name] for arm in self._arms if self._samples[arm.name]}

    def _turn(self, arm: Arm, rounds: int) -> Callable[[], None]:
        def turn() -> None:
            if not arm.fresh:
                self._samples[arm.name].append(_timed(self._processes[arm.name]))
            elif len(self._samples[arm.name]) < min(rounds, FRESH_ROUNDS):
                try:
                    with loader_process(arm, self._logs, self._op) as process:
                        self._check(arm, process)
                        self._samples[arm.name].append(_timed(process))
                except ArmFailed as error:
                    _skip(arm, str(error))

        return turn

    def _check(self, arm: Arm, process: Process) -> None:
        """Compare all batches of an arm with those of the first one, in any order."""
        if arm.name in {each.name for each in DECODE}:
            process.ask("time")
            return
        found = {tuple(key): dense for key, dense in process.ask("digest")["digests"]}
        if not self._expected:
            self._expected = found
        if not found or (arm.all_rows and len(found) != len(self._expected)):
            raise BatchMismatch(f"{arm.name}: {len(found)} different batches, expected {len(self._expected)}")
        for key, dense in found.items():
            if key not in self._expected:
                raise BatchMismatch(f"{arm.name}: ids or labels of a batch differ from ours")
            if abs(dense - self._expected[key]) > DENSE_TOLERANCE * abs(dense):
                raise BatchMismatch(f"{arm.name}: dense numbers of a batch differ: {dense}, ours {self._expected[key]}")


def measure(report: harness.Report, case: str, runner: Runner, rounds: int, seconds: float) -> None:
    """Measure one case: samples of all arms, headrace's ratios, and its share of the decode limit."""
    samples = runner.run(rounds, seconds)
    limits = {arm.name for arm in DECODE}
    for name, pairs in samples.items():
        if name not in limits:
            report.add(case, name, METRIC, "rows/s", [rate for rate, _ in pairs])
            report.add(case, name, CPU_METRIC, "us/row", [cpu for _, cpu in pairs])
    ours = next(iter(samples))
    report.compare(case, ours, METRIC)
    for name in [arm.name for arm in DECODE if arm.name in samples]:
        value = statistics.median(rate for rate, _ in samples[name])
        report.limit(case, name, value, "rows/s", reached=report.median(case, ours, METRIC))


def goals(report: harness.Report, case: str) -> list[dict[str, object]]:
    """Return the goals of a case and whether they are met."""
    peers = [r for r in report.ratios if r.case == case and not r.against.startswith("headrace")]
    best = min(peers, key=lambda ratio: ratio.value, default=None)
    limit = next(limit for limit in report.limits if limit.case == case and limit.what == DECODE[0].name)
    found: list[dict[str, object]] = [
        {
            "what": f"{case}: share of what two threads reach that only decode",
            "wanted": f"{DECODE_GOAL:.0%}",
            "reached": f"{limit.share:.0%}",
            "met": limit.share >= DECODE_GOAL,
        }
    ]
    if best is not None:
        what = f"{case}: times the best peer ({best.against})"
        found.append({"what": what, "wanted": f"{GOAL}x", "reached": f"{best.value:.2f}x", "met": best.value >= GOAL})
    return found


def main() -> None:
    """Measure all cases, and write the report."""
    options = harness.options("bench_ingest", __doc__, rows=0, rounds=0, folder=None)
    quick = options.quick
    logs = make_logs(options.rows or (262_144 if quick else 1_048_576), options.folder)
    rounds, seconds = options.rounds or (5 if quick else 9), 10.0 if quick else 90.0
    report = harness.Report("bench_ingest")
    notes = {"rows": logs.num_rows, "parquet_bytes_per_row": round(logs.num_bytes / logs.num_rows, 1)}
    take = [arm for arm in (*OURS, *DECODE, *LOADERS) if arm.quick or not quick]
    measure(report, "modulo", Runner(logs, "modulo", take), rounds, seconds)
    hashing = [arm for arm in take if arm.hashes and ((arm.quick and not quick) or arm in (*OURS, LOADERS[0], *DECODE))]
    measure(report, "SigridHash", Runner(logs, "hash", hashing), rounds, seconds)
    if not quick:
        measure(report, "modulo, simplest use", Runner(logs, "modulo", (OURS[0], *BY_ROW)), 3, seconds)
        measure(report, "modulo, from Arrow files", Runner(logs, "modulo", PREPARED), rounds, seconds)
    report.notes = {**notes, "goals": [*goals(report, "modulo"), *goals(report, "SigridHash")]}
    report.finish(options)


def _timed(process: Process) -> tuple[float, float]:
    """Time one pass: rows per second, and CPU microseconds per row of the process and its descendants."""
    before = _cpu_seconds(process.pid)
    answer = process.ask("time")
    used = _cpu_seconds(process.pid) - before
    return answer["rows"] / answer["seconds"], used / answer["rows"] * 1e6


def _cpu_seconds(pid: int) -> float:
    """Return the CPU seconds used so far by a process and its living descendants."""
    root = psutil.Process(pid)
    total = 0.0
    for process in (root, *root.children(recursive=True)):
        try:
            times = process.cpu_times()
        except psutil.NoSuchProcess:
            continue
        total += times.user + times.system
    return total


def _skip(arm: Arm, reason: str) -> None:
    print(f"skipped: {arm.name}: {reason}", file=sys.stderr)


if __name__ == "__main__":
    main()
