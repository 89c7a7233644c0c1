"""Tables of eight times the memory: steps per second of tiered storage and of other ways to keep rows on a disk.

A step reads the rows of a batch, runs row-wise Adagrad, and writes them (dimension 32, 132 bytes a row with its state).
Every arm is a process in a cgroup of its own. Its limit is the process before it has a table, 48 MiB for the arrays
of a step, 20 bytes per row for metadata and places, and an eighth of the table. So the operating system's cache
counts as memory and hides no disk, except with --quick and on the news log, whose tables fit into the 48 MiB. Tiered
storage reads its file with O_DIRECT. All rows are trained once, without a limit, before the first trace. Keys are
known 16 batches ahead, as in training. `memory` has no limit. The probe reads random pages of 4 KiB from a file as
large as the table, in turn with the arms, with the reader of tiered storage.

RocksDB and LMDB need rocksdict and lmdb; `make peers` installs them.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import harness
from tuning_cgroups import Cgroup, controller

MIB = 1 << 20
TIERED, MEMORY, PROBE = "tiered", "memory", "probe"
RATE, READ, NEEDED = "steps per second", "rows read per step", "rows read over the least"
FILL_ROWS = 20_000
WORK_BYTES = 48 * MIB
"""For the arrays of a step and of Python, on top of the process before it has a table."""


def serve(arm: str, folder: str, traces: dict[str, Any], cgroup: Cgroup | None, channel: Any) -> None:
    """Keep a table in this process; steps are made on request."""
    import numpy as np
    from storage.arms import ARMS, RECORD_BYTES

    from headrace.threads import use_threads

    if cgroup is not None:
        cgroup.enter()
    use_threads(None)
    num_rows = next(iter(traces.values())).num_rows
    memory_bytes = num_rows * RECORD_BYTES // 8
    table = ARMS[arm](Path(folder), num_rows, memory_bytes * 9 // 10)
    table.fill(0, 1_000)  # loads kernels
    table.step([np.arange(1_000)], 0)
    table.restart()
    used_bytes = 0 if cgroup is None else cgroup.used_bytes()
    start = time.perf_counter()
    for first in range(0, num_rows, FILL_ROWS):
        table.fill(first, min(first + FILL_ROWS, num_rows))
    filled_s = time.perf_counter() - start
    if cgroup is not None:
        os.sync()  # only then can the kernel take back the cache
        limit_memory(cgroup, used_bytes + WORK_BYTES + 20 * num_rows + memory_bytes)
    channel.send(filled_s)
    number = 0
    while True:
        command, name, seconds = channel.recv()
        if command == "end":
            os._exit(0)
        steps = traces[name].steps
        if command == "begin":
            table.restart()
            number = 0
        before, num_made, start = table.counters(), 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            if number == len(steps):
                table.restart()
                number = 0
            table.step(steps, number)
            number, num_made = number + 1, num_made + 1
        elapsed, after = time.perf_counter() - start, table.counters()
        channel.send((num_made, elapsed, {key: after[key] - before[key] for key in after}))


def limit_memory(cgroup: Cgroup, num_bytes: int) -> None:
    """Limit the memory of a group that uses more, which the kernel refuses until it has taken some back."""
    for _ in range(100):
        try:
            cgroup.limit_memory(num_bytes)
            return
        except OSError:
            time.sleep(0.1)
    raise TimeoutError("the kernel does not take back the memory of the cgroup")


class Probe:
    """Random reads of 4 KiB from a file, with as many in flight as tiered storage has."""

    def __init__(self, folder: Path, num_bytes: int) -> None:
        import numpy as np

        from headrace.embeddings.storage.page_file import PAGE_BYTES, empty_pages
        from headrace.embeddings.storage.page_readers import PageReader
        from headrace.embeddings.storage.unnamed_files import UnnamedFile

        self._file = UnnamedFile(folder, direct=True)
        self._num_pages = num_bytes // PAGE_BYTES
        block = empty_pages(1024, PAGE_BYTES)
        block[:] = np.random.default_rng(0).integers(0, 255, block.shape, dtype=np.uint8)
        for first in range(0, self._num_pages, len(block)):
            os.pwrite(self._file.descriptor, block.reshape(-1).data, first * PAGE_BYTES)
        os.fsync(self._file.descriptor)
        self._reader = PageReader(self._file.descriptor, PAGE_BYTES, is_direct=self._file.is_direct)
        self._buffer, self._rng = empty_pages(4096, PAGE_BYTES), np.random.default_rng(1)
        self._unique = np.unique

    def run(self, seconds: float) -> float:
        """Reads per second."""
        num_read, start = 0, time.perf_counter()
        while time.perf_counter() - start < seconds:
            pages = self._unique(self._rng.integers(0, self._num_pages, 4096))
            for part in self._reader.read(pages, self._buffer):
                part.result()
            num_read += len(pages)
        return num_read / (time.perf_counter() - start)


@contextlib.contextmanager
def tables(arms: list[str], traces: dict[str, Any], folder: Path, root: Path) -> Iterator[dict[str, Any]]:
    """The processes of the arms, filled one after the other: a channel, a process and a cgroup each."""
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        running: dict[str, Any] = {}
        for arm in arms:
            place = folder / arm
            place.mkdir()
            cgroup = None if arm == MEMORY else stack.enter_context(Cgroup.make(root))
            ours, theirs = context.Pipe()
            process = context.Process(target=serve, args=(arm, str(place), traces, cgroup, theirs))
            process.start()
            theirs.close()
            running[arm] = (ours, process, cgroup)
            try:
                print(f"{arm}: filled in {ours.recv():.1f} s", file=sys.stderr, flush=True)
            except EOFError:
                process.join()
                print(f"{arm}: ended with {process.exitcode} while it was filled", file=sys.stderr, flush=True)
                del running[arm]
        try:
            yield running
        finally:
            for ours, process, _ in running.values():
                with contextlib.suppress(OSError):
                    ours.send(("end", "", 0.0))
                process.join()


def installed(arm: str) -> bool:
    """Whether the library of an arm can be imported."""
    import importlib.util

    library = {"RocksDB": "rocksdict", "LMDB": "lmdb"}.get(arm)
    return library is None or importlib.util.find_spec(library) is not None


def measure(
    report: harness.Report, traces: dict[str, Any], arms: list[str], *, warm_s: float, sample_s: float, rounds: int
) -> None:
    """Run the traces of one table on all arms, in turn."""
    from storage.arms import RECORD_BYTES

    root = controller("memory")
    if root is None:
        raise SystemExit("cannot create a cgroup with a memory limit here")
    num_rows = next(iter(traces.values())).num_rows
    folder = Path(tempfile.mkdtemp(prefix="headrace-bench-storage-"))
    try:
        probe = Probe(folder, num_rows * RECORD_BYTES)
        with tables(arms, traces, folder, root) as running:
            for name in traces:
                case = f"{name}, {num_rows:,} rows"
                samples: dict[str, list[float]] = {arm: [] for arm in [*running, PROBE]}
                read, least, late = [], [], 0
                for number in range(rounds + 1):
                    for arm, (channel, _, _) in running.items():
                        try:
                            channel.send(("go" if number else "begin", name, sample_s if number else warm_s))
                            steps, elapsed, counts = channel.recv()
                        except (EOFError, OSError):
                            continue  # killed: counted below
                        if not number or not steps:
                            continue
                        samples[arm].append(steps / elapsed)
                        if arm == TIERED:
                            read.append(counts["num_read_rows"] / steps)
                            least.append(counts["num_read_rows"] / max(1, counts["needed"]))
                            late += counts["num_late_rows"]
                    if number:
                        samples[PROBE].append(probe.run(min(1.0, sample_s)))
                _add(report, case, samples, read, least)
            for arm, (_, _, cgroup) in running.items():
                if cgroup is not None:
                    case = f"{num_rows:,} rows"
                    report.add(case, arm, "processes killed", "", [cgroup.num_killed()])
                    if arm == TIERED:
                        killed = cgroup.num_killed()
                        report.goal(f"{case}: processes killed", "0", f"{killed:.2f}", met=not killed)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _add(
    report: harness.Report, case: str, samples: dict[str, list[float]], read: list[float], least: list[float]
) -> None:
    probed = samples.pop(PROBE)
    for arm, rates in samples.items():
        if rates:
            report.add(case, arm, RATE, "1/s", rates)
    report.add(case, PROBE, "random reads of 4 KiB", "1/s", probed)
    if not samples.get(TIERED):
        report.notes[case] = f"{TIERED} made no step: its process has ended"
        return
    report.add(case, TIERED, READ, "rows", read)
    report.add(case, TIERED, NEEDED, "", least)
    report.compare(case, TIERED, RATE)
    reached = report.median(case, TIERED, RATE)
    reads = report.median(case, PROBE, "random reads of 4 KiB") / max(1e-9, report.median(case, TIERED, READ))
    memory = report.median(case, MEMORY, RATE)
    limit = min(memory, reads)
    report.limit(case, "the slower of memory and the disk", limit, "1/s", reached=reached)
    rows_read = report.median(case, TIERED, NEEDED)
    report.goal(f"{case}: rows read over the least", "at most 1.05", f"{rows_read:.2f}", met=rows_read <= 1.05)
    report.goal(f"{case}: share of the limit", "0.8", f"{reached / limit:.2f}", met=reached >= 0.8 * limit)
    for arm in [arm for arm, rates in samples.items() if rates and arm not in (TIERED, MEMORY)]:
        wanted, ratio = 3 if arm == "mapped" else 5, reached / report.median(case, arm, RATE)
        report.goal(f"{case}: over {arm}", f"{wanted}x", f"{ratio:.2f}", met=ratio >= wanted)


def main() -> None:
    """Measure all traces, and write the report."""
    options = harness.options("bench_storage", __doc__, rows=0, only="")
    from storage.arms import ARMS
    from storage.traces import news_trace, zipf_trace

    report = harness.Report("bench_storage")
    num_rows = options.rows or (400_000 if options.quick else 8_000_000)
    shape = {
        "num_steps": 600 if options.quick else 1_000,
        "num_ids": 2_000 if options.quick else 16_000,
        "num_windows": 4,
    }
    exponents = (1.05,) if options.quick or options.only else (0.9, 1.05, 1.2)
    traces = {f"Zipf {each}": zipf_trace(each, num_rows, **shape) for each in exponents}
    arms = [arm for arm in ARMS if installed(arm) and (not options.only or arm in options.only.split(","))]
    times = (
        {"warm_s": 2.0, "sample_s": 1.0, "rounds": 3}
        if options.quick
        else {"warm_s": 6.0, "sample_s": 1.5, "rounds": 3}
    )
    measure(report, traces, arms, **times)
    if not options.quick and not options.only:
        from placement.logs import MissingLog

        try:
            news = news_trace(400_000, 1024)
        except MissingLog as error:
            print(f"news: {error}", file=sys.stderr)
        else:
            measure(report, {"news": news}, arms, warm_s=2.0, sample_s=1.0, rounds=3)
    report.finish(options)


if __name__ == "__main__":
    main()
