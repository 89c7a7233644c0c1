"""Pipelines in small cgroups: the number of runs killed by the kernel's out-of-memory killer.

The pipeline combines everything that is hard on memory: 8 workers, a map that adds 2 kB per row and takes twice that
meanwhile, a shuffle over 20,000 rows, 100 prefetched batches, and a limit hardly larger than the libraries. A run
counts as killed if the kernel killed any of its processes; a surviving run must deliver all rows. The second arm is the
same engine with ledger and watchdog, but without the headroom check before work is started.
"""

from __future__ import annotations

import multiprocessing
import sys
from functools import partial
from typing import Any

import harness
from tuning_cgroups import Cgroup, controller

LIMIT_BYTES = {"thread": 400 << 20, "process": 500 << 20}
OURS, WITHOUT = "headrace", "headrace, without headroom"
NUM_ITEMS, ROWS_PER_BATCH, ROW_BYTES, SHUFFLE_ROWS, BATCH_SIZE = 40, (1000, 3000, 2000), 2000, 20_000, 2000
TIMEOUT_S = 300.0
MIB = 1 << 20


def run_pipeline(executor: str, arm: str, cgroup: Cgroup, sender: Any) -> None:
    """Run one pass inside the group and send the number of rows delivered; runs in a separate process."""
    cgroup.enter()
    from headrace.pipeline import from_source
    from headrace.pipeline.engine.headroom import Headroom
    from headrace.testing.functions import allocate
    from headrace.testing.pipelines import SyntheticSource

    if arm == WITHOUT:
        Headroom.fits = lambda self, growth_bytes: True  # type: ignore[method-assign]
    source = SyntheticSource([[(num_rows, 0, 0) for num_rows in ROWS_PER_BATCH]] * NUM_ITEMS)
    pipeline = from_source(source).map(partial(allocate, row_bytes=ROW_BYTES)).shuffle(num_rows=SHUFFLE_ROWS)
    with pipeline.batch(BATCH_SIZE).prefetch(100).open(workers=8, executor=executor) as batches:
        sender.send(sum(batch.num_rows for batch in batches))


def run_once(executor: str, arm: str, root: Any) -> tuple[bool, float]:
    """Run once; return whether the kernel killed a process, and the group's peak memory in MiB."""
    context = multiprocessing.get_context("spawn")
    with Cgroup.make(root) as cgroup:
        cgroup.limit_memory(LIMIT_BYTES[executor])
        receiver, sender = context.Pipe(duplex=False)
        child = context.Process(target=run_pipeline, args=(executor, arm, cgroup, sender))
        child.start()
        sender.close()
        try:
            num_rows = receiver.recv() if receiver.poll(TIMEOUT_S) else None
        except EOFError:
            num_rows = None
        finally:
            if child.exitcode is None and not cgroup.num_killed():
                child.join(TIMEOUT_S)
            child.kill()
            child.join()
            receiver.close()
        killed = cgroup.num_killed() > 0
        if not killed and num_rows != NUM_ITEMS * sum(ROWS_PER_BATCH):
            raise RuntimeError(
                f"{executor}, {arm}: {num_rows} rows and exit code {child.exitcode} of a run that was not killed"
            )
        return killed, cgroup.peak_bytes() / MIB


def main() -> None:
    """Count the killed runs with both executors, and write the report."""
    options = harness.options("bench_oom", __doc__, runs=0)
    num_runs = options.runs or (2 if options.quick else 50)
    report = harness.Report("bench_oom")
    root = controller("memory")
    if root is None:
        raise SystemExit("cannot create a cgroup with a memory limit here")
    for executor, limit_bytes in LIMIT_BYTES.items():
        case = f"{executor} executor, {limit_bytes >> 20} MiB"
        runs = {arm: partial(run_once, executor, arm, root) for arm in (OURS, WITHOUT)}
        found: dict[str, list[tuple[bool, float]]] = {arm: [] for arm in runs}
        for number in range(num_runs):
            for arm, run in runs.items():
                found[arm].append(run())
            counts = ", ".join(f"{arm}: {sum(killed for killed, _ in each)} killed" for arm, each in found.items())
            print(f"{case}: {number + 1} of {num_runs} runs, {counts}", file=sys.stderr, flush=True)
        for arm, each in found.items():
            report.add(case, arm, f"runs killed of {num_runs}", "", [float(sum(killed for killed, _ in each))])
            report.add(case, arm, "peak memory of the group, with file cache", "MiB", [peak for _, peak in each])
        num_killed = sum(killed for killed, _ in found[OURS])
        goal = {"what": f"{case}: runs killed of {num_runs}", "wanted": "0", "reached": str(num_killed)}
        report.notes.setdefault("goals", []).append({**goal, "met": num_killed == 0})
    report.finish(options)


if __name__ == "__main__":
    main()
