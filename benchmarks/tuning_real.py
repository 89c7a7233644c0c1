"""Tuning with *real* work and a changing number of real CPUs: headrace, tf.data's AUTOTUNE, and DataLoader.

An element is read through an fsspec filesystem that delays each read by 30 ms, decompressed, processed by a user
function in Python, converted to features and trained on; see `tuning_work.py`. headrace runs without any manual
setting. tf.data uses AUTOTUNE everywhere. DataLoader runs with its default and with several numbers of workers; the
best of these is what manual tuning would find. The number of CPUs changes from 1 to 2 and back, by affinity, and by the
quota of a cgroup if one can be created (a library that only counts CPUs does not notice a quota). Arms run in turn,
each in a separate process; all must deliver the same bytes. A short job has two CPUs all the time, and also runs with
workers set by hand.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from importlib import util
from pathlib import Path
from typing import Any

import harness
import psutil
import tuning_loaders as loaders
import tuning_work as work
from tuning_cgroups import Cgroup, controller

__all__ = ["run"]

OURS, STATIC = "headrace, auto", "headrace, set by hand"
CPUS, SHORT = (1, 2, 1), (2,)
IN_QUOTA = (OURS, "tf.data, AUTOTUNE", "DataLoader, 2 workers", "DataLoader, 4 workers")
SHORT_SHARE = 0.97
PHASE_S, ROUNDS = 6.0, 2
SHORT_S, SHORT_ROUNDS = 12.0, 3


def run(report: harness.Report, quick: bool) -> None:
    """Measure the cases that this machine supports."""
    use = harness.CpuUse()
    available = sorted(os.sched_getaffinity(0))
    if len(available) < max(CPUS):
        report.notes["real work"] = f"skipped: {len(available)} CPU, needs {max(CPUS)}"
        return
    arms = [name for name in loaders.LOADERS if name != STATIC and util.find_spec(loaders.PACKAGES.get(name, "torch"))]
    missing = [name for name in loaders.LOADERS if name not in (*arms, STATIC)]
    if missing:
        report.notes["not installed here"] = ", ".join(missing)
    if quick:
        arms = [name for name in arms if name in (OURS, "tf.data, AUTOTUNE", "DataLoader, 2 workers")]
    phase_s, rounds = (1.5, 1) if quick else (PHASE_S, ROUNDS)
    with work.temporary() as folder:
        work.prepare(Path(folder))
        measure(report, "real work, affinity 1-2-1", arms, folder, CPUS, phase_s, rounds, None)
        root = None if quick else controller("cpu")
        if root is not None:
            few = [name for name in arms if name in IN_QUOTA]
            measure(report, "real work, CPU quota 1-2-1", few, folder, CPUS, phase_s, rounds, root)
        elif not quick:
            report.notes["CPU quota"] = "skipped: no cgroup with a CPU quota can be made here"
        if not quick:
            case = f"real work, job of {SHORT_S:g} s"
            measure(report, case, [OURS, STATIC], folder, SHORT, SHORT_S, SHORT_ROUNDS, None)
    report.notes["cpus used by the real runs"], report.notes["cpus used by others meanwhile"] = use.elapsed()


def measure(
    report: harness.Report,
    case: str,
    arms: list[str],
    folder: str,
    cpus: tuple[int, ...],
    phase_s: float,
    rounds: int,
    root: Path | None,
) -> None:
    """Measure all arms of a case in turn, several times; `root` is where cgroups with a CPU quota are created."""
    rates: dict[str, list[float]] = {arm: [] for arm in arms}
    checks, tuner_cpu = set(), []
    for number in range(rounds):
        for arm in arms:
            with limited_cpus(root, cpus[0]) as (enter, resize):
                answer = train(arm, folder, cpus, phase_s, enter, resize)
            checks.add(answer["check"])
            rates[arm].append(sum(answer["per_tick"]) / (len(cpus) * phase_s))
            if arm == OURS:
                tuner_cpu.append(100 * answer["tuner_cpu"])
            progress = f"{case}, round {number + 1}/{rounds}: {arm} {rates[arm][-1]:.1f} per second"
            print(progress, file=sys.stderr, flush=True)
    if len(checks) > 1:
        raise RuntimeError(f"{case}: arms delivered different bytes: {checks}")
    for arm in arms:
        report.add(case, arm, "batches trained", "1/s", rates[arm])
    report.add(case, OURS, "CPU of the tuner", "% of a core", tuner_cpu)
    report.compare(case, OURS, "batches trained")
    nearest = min((ratio for ratio in report.ratios if ratio.case == case), key=lambda ratio: ratio.value)
    what = f"{case}: times the best peer ({nearest.against})"
    wanted = SHORT_SHARE if nearest.against == STATIC else 1.0
    report.goal(what, f"{wanted:g}x", f"{nearest.value:.2f}x", met=nearest.value >= wanted)
    highest = max(tuner_cpu)
    report.goal(f"{case}: CPU of the tuner", "1 % of a core", f"{highest:.2f} %", met=highest < 1)
    bound = cpu_bound(folder, cpus)
    reached = report.median(case, OURS, "batches trained")
    report.limit(case, "CPU time of stages and trainer, no loader at all", bound, "1/s", reached=reached)


def cpu_bound(folder: str, cpus: tuple[int, ...]) -> float:
    """Return batches per second if the CPUs (their mean over the phases) did only the work itself, without a loader."""
    trainer, compressed = work.Trainer(), [Path(folder, f"{i}.z").read_bytes() for i in range(work.NUM_FILES)]
    best = min(
        timed(lambda c=c: trainer.step(work.features(work.user_function(work.decode(c))))) for c in compressed * 2
    )
    return sum(cpus) / len(cpus) / best


def timed(run: Callable[[], object]) -> float:
    """Run a function and return the CPU seconds that it took in this thread."""
    began = time.thread_time()
    run()
    return time.thread_time() - began


@contextlib.contextmanager
def limited_cpus(root: Path | None, first: int) -> Iterator[tuple[Callable[[int], None], Callable[[int, int], None]]]:
    """Limit processes to a number of CPUs, by affinity (if `root` is None) or by the quota of a new cgroup.

    Yields:
        A function that puts a process under the limit, given its pid, and one that changes the number of CPUs, given
        the pid and the number.
    """
    if root is None:
        yield lambda pid: set_affinity(pid, first), set_affinity
        return
    with Cgroup.make(root) as cgroup:
        cgroup.limit_cpus(first)
        yield (
            lambda pid: (cgroup.folder / "cgroup.procs").write_text(str(pid)) and None,
            lambda _, count: cgroup.limit_cpus(count),
        )


def set_affinity(pid: int, count: int) -> None:
    """Bind a process, its threads and its children to the first `count` CPUs of this process."""
    cpus = sorted(os.sched_getaffinity(0))[:count]
    with contextlib.suppress(psutil.NoSuchProcess):
        for process in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True)):
            for thread in process.threads():
                with contextlib.suppress(OSError):
                    os.sched_setaffinity(thread.id, cpus)


def train(
    arm: str,
    folder: str,
    cpus: tuple[int, ...],
    phase_s: float,
    enter: Callable[[int], None],
    resize: Callable[[int, int], None],
) -> dict[str, Any]:
    """Run an arm's process over all phases and return the JSON that it prints; see `tuning_loaders`."""
    here = Path(__file__).parent
    errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed below)
    child = subprocess.Popen(
        [sys.executable, str(here / "tuning_loaders.py"), arm, folder, str(len(cpus) * phase_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=errors,
        text=True,
        start_new_session=True,  # so that processes it leaves behind can be killed with it
        env={**os.environ, "PYTHONPATH": str(here), "TF_CPP_MIN_LOG_LEVEL": "3"},
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        line = child.stdout.readline()
        while line and line.strip() != "ready":
            line = child.stdout.readline()
        if not line:
            errors.seek(0)
            raise RuntimeError(f"{arm}: ended before it was ready: {errors.read()[-2000:]}")
        for process in (psutil.Process(child.pid), *psutil.Process(child.pid).children(recursive=True)):
            enter(process.pid)
        child.stdin.write("go\n")
        child.stdin.flush()
        for count in cpus:
            resize(child.pid, count)
            time.sleep(phase_s)
        answer: dict[str, Any] = json.loads(child.stdout.readline())
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
        child.stdin.close()
        child.stdout.close()
        errors.close()
    return answer
