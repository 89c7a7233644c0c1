"""Memory of loaders at equal work: the peak of all their processes during one pass, and of headrace's ledger.

The work and the loaders are those of `bench_ingest.py`, each in its own process. Memory is the sum of PSS over the
process and its descendants, which counts shared memory once. It is sampled 50 times per second, minus the memory before
the first batch (libraries, and Ray's servers). The exact peak of the main process's resident memory is shown too.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Sequence

import harness
import psutil
from peers.arms import LOADERS, OURS, Arm, missing
from peers.data import Logs, make_logs
from peers.processes import ArmFailed, loader_process
from peers.work import BATCH_SIZE, DENSE, IDS

PASS = "memory taken by a pass"
TOTAL = "memory of all processes"
RESIDENT = "peak resident memory of the main process"
LEDGER = "peak of the ledger"
EVERY_S = 0.02
MIB = 1 << 20
CASES = dict.fromkeys((PASS, LEDGER), "taken by a pass") | dict.fromkeys((TOTAL, RESIDENT), "with the libraries")


class PeakMemory:
    """Context manager that samples the memory of a process and its children in a thread."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self.first = self.peak = self._total()

    def __enter__(self) -> PeakMemory:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._done.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._done.wait(EVERY_S):
            self.peak = max(self.peak, self._total())

    def _total(self) -> int:
        total = 0
        for process in (self._root, *self._root.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:  # it ended meanwhile
                continue
        return total


def measure(arm: Arm, logs: Logs) -> dict[str, float]:
    """Run one pass in a new process; return the MiB of each metric."""
    with loader_process(arm, logs, "modulo") as process:
        process.wait_ready()
        with PeakMemory(process.pid) as memory:
            process.ask("time")
        own = process.ask("memory")
    found = {
        PASS: (memory.peak - memory.first) / MIB,
        TOTAL: memory.peak / MIB,
        RESIDENT: own["peak_rss_bytes"] / MIB,
    }
    if own["ledger_peak_bytes"]:
        found[LEDGER] = own["ledger_peak_bytes"] / MIB
    return found


def run(report: harness.Report, arms: Sequence[Arm], logs: Logs, rounds: int) -> None:
    """Run all arms in turn, in new processes."""
    found: dict[str, list[dict[str, float]]] = {arm.name: [] for arm in arms if not missing(arm)}
    for arm in arms:
        if missing(arm):
            print(f"skipped: {arm.name}: {arm.package} is not installed", file=sys.stderr)
    for _ in range(rounds):
        for arm in arms:
            if arm.name in found:
                try:
                    found[arm.name].append(measure(arm, logs))
                except ArmFailed as error:
                    print(f"skipped: {arm.name}: {error}", file=sys.stderr)
                    del found[arm.name]
    for name, samples in found.items():
        for metric in samples[0]:
            report.add(CASES[metric], name, metric, "MiB", [sample[metric] for sample in samples])
    report.compare(CASES[PASS], OURS[0].name, PASS, lower_is_better=True)
    report.compare(CASES[TOTAL], OURS[0].name, TOTAL, lower_is_better=True)


def main() -> None:
    """Measure all arms, and write the report."""
    options = harness.options("bench_memory", __doc__, rows=0, folder=None)
    logs = make_logs(options.rows or (262_144 if options.quick else 1_048_576), options.folder)
    # TFRecords have fewer rows than the logs, so the work would not be equal.
    arms = [arm for arm in (*OURS, *LOADERS) if arm.all_rows and (arm.quick or not options.quick)]
    report = harness.Report("bench_memory")
    run(report, arms, logs, 1 if options.quick else 2)
    batch = BATCH_SIZE * (8 * len(IDS) + 4 * len(DENSE) + 4)
    report.notes = {"rows": logs.num_rows, "mib_of_a_batch": round(batch / MIB, 2)}
    report.notes["mib_of_all_rows_decoded"] = round(logs.num_rows * batch / BATCH_SIZE / MIB)
    report.finish(options)


if __name__ == "__main__":
    main()
