"""Tuning policies in a cgroup with a memory limit and bursts of large elements: which runs are killed.

Uses the real engine and the kernel's out-of-memory killer. Elements of 1.5 MB are actually allocated; from time to time
several in a row are 6 times as large, like the rows of users with long histories. Stages sleep, so memory is the only
limit. A run fails when its process is killed. Every policy runs *without the ledger*: the engine neither counts bytes
nor observes the limit, like tf.data and most loaders. The policies of headrace and tf.data also run *with the engine's
ledger*, which the engine normally uses.

The InTune paper reports that AUTOTUNE lost 8 % of its runs, and InTune none.
"""

from __future__ import annotations

import functools
import gc
import multiprocessing
import multiprocessing.connection
import os
import sys
import time
import traceback
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import harness
import numpy as np
import pyarrow as pa
import tuning_arms as arms
from tuning_cgroups import Cgroup, controller

from headrace.logs.source import ROW_ID, SourceBatch
from headrace.pipeline import Pipeline, from_source
from headrace.pipeline.engine.state import Pressure
from headrace.pipeline.engine.watchdog import MemoryWatchdog
from headrace.tuning.guard import Guard
from headrace.tuning.live import LiveJob
from headrace.tuning.observation import Observation
from headrace.tuning.space import THREADS, Space

__all__ = ["run"]

LIMIT_BYTES = 320 << 20
MEAN_BYTES, BURST_FACTOR, BURST_EVERY, BURST_LENGTH = 1.5e6, 6.0, 60, 12
STAGES = {"read": 0.02, "decode": 0.05, "features": 0.03}
"""Seconds that each stage sleeps per element."""
CONSUMER_S = 0.02
CPUS = 16
RUN_S, WINDOW_S = 2.5, 0.25
CASE = "memory-limited cgroup, bursty elements"
FAILED = "runs killed"


@dataclass(frozen=True)
class Elements:
    """A source of `count` elements with one row each."""

    count: int

    def __len__(self) -> int:
        return self.count

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield the row of an element."""
        yield SourceBatch(pa.record_batch({ROW_ID: pa.array([split], pa.int64())}), num_read=1)

    def describe(self, split: int) -> str:
        """Describe an element by its number."""
        return f"element {split}"


def make_element(seed: int, seconds: float, rows: pa.RecordBatch) -> pa.RecordBatch:
    """Sleep, and return a row whose value has the random size of its element; all of its memory is written to."""
    item = int(rows[ROW_ID][0].as_py())
    time.sleep(seconds)
    random = np.random.default_rng((seed, item))
    bursts = random.random() < 0.9 if (item + 17 * seed) % BURST_EVERY < BURST_LENGTH else False
    size = int(MEAN_BYTES * (BURST_FACTOR if bursts else 1.0) * random.uniform(0.5, 1.5))
    offsets = pa.py_buffer(np.array([0, size], np.int64))
    value = pa.Array.from_buffers(pa.large_binary(), 1, [None, offsets, pa.py_buffer(np.ones(size, np.uint8))])
    return pa.RecordBatch.from_arrays([rows[ROW_ID], value], names=[ROW_ID, "value"])


def bursty_pipeline(seed: int) -> Pipeline:
    """Return a pipeline whose stages each create a new element of the same size, as decoding and transforming do."""
    pipeline = from_source(Elements(1_000_000))
    for name, seconds in STAGES.items():
        pipeline = pipeline.map(functools.partial(make_element, seed, seconds), name=name)
    return pipeline


class LimitedJob(LiveJob):
    """A live job with a fixed number of CPUs and the memory of its cgroup (a forked process shares pages)."""

    def __init__(self, batches: Any, cgroup: Cgroup) -> None:
        super().__init__(batches)
        self._cgroup = cgroup

    @property
    def space(self) -> Space:
        """Tunables, except budgets in bytes and those of the source, which does no work."""
        return Space(tuple(k for k in super().space.knobs if k.unit != "bytes" and k.stage in (None, *STAGES)))

    def observe(self) -> Observation:
        """Observe the job, with the CPUs of the case; sleeping counts as work."""
        seen = super().observe()
        stages = tuple(replace(stage, busy_s=stage.wall_s) for stage in seen.stages if stage.name != "source")
        return replace(
            seen,
            stages=stages,
            cpus=float(CPUS),
            memory_limit_bytes=float(LIMIT_BYTES),
            memory_used_bytes=float(self._cgroup.used_bytes()),
            machine_busy_ratio=0.0,
        )


def run_once(name: str, seed: int, ledger: bool, cgroup: Cgroup) -> int:
    """Run a policy for a short time inside the group, and return the number of batches delivered."""
    cgroup.enter()
    if not ledger:
        MemoryWatchdog.poll = lambda self: Pressure.NONE  # type: ignore[method-assign]
    workers = dict.fromkeys(STAGES, 1)
    with bursty_pipeline(seed).open(workers=workers, memory_bytes=None if ledger else "1TiB") as batches:
        batches.tunables["read_ahead"].set(0)
        batches.tunables["source.workers"].set(1)
        batches.tunables[THREADS].set(batches.tunables[THREADS].max)
        job = LimitedJob(batches, cgroup)
        policy, guard = arms.make(name, None, seed, phase_s=10 * RUN_S), Guard(job.space)  # type: ignore[arg-type]
        job.apply(policy.start(job.space, job.observe()).values)
        began = looked = time.monotonic()
        taken = 0
        while time.monotonic() - began < RUN_S:
            next(batches)
            taken += 1
            time.sleep(CONSUMER_S)
            if time.monotonic() - looked >= WINDOW_S:
                looked = time.monotonic()
                seen = job.observe()
                proposal = policy.decide(seen) if seen.window_s > 0 else None
                if proposal is not None:
                    job.apply((guard.check(seen, proposal) if name == arms.OURS else proposal).values)
    return taken


def run(report: harness.Report, quick: bool) -> None:
    """Measure short runs of every policy, unless no group with a memory limit can be created here."""
    root = controller("memory")
    if root is None:
        report.notes["memory test"] = "skipped: no cgroup with a memory limit can be made here"
        return
    names = [arms.OURS, "one_per_stage", "even", "autotune", "autotune_hill_climb", "plumber", "intune"]
    variants = [(name, False) for name in names] + [(arms.OURS, True), ("autotune", True)]
    if quick:
        variants = [(arms.OURS, False), ("autotune", False), (arms.OURS, True)]
    num_runs = 5 if quick else 50
    gc.freeze()  # children then copy fewer of the parent's pages
    outcomes = run_all([(variant, seed) for seed in range(num_runs) for variant in variants], root)
    for name, ledger in variants:
        arm = f"{name}, with the engine's ledger" if ledger else name
        taken = [outcomes[(name, ledger), seed] for seed in range(num_runs)]
        report.add(CASE, arm, FAILED, "", [sum(each is None for each in taken) / num_runs])
        report.add(CASE, arm, "batches of a run that lived", "", [each for each in taken if each is not None] or [0.0])
    report.notes["runs of each policy in the memory test"] = num_runs
    for arm in (arms.OURS, f"{arms.OURS}, with the engine's ledger"):
        failed = report.median(CASE, arm, FAILED)
        report.goal(f"{CASE}: runs killed, {arm}", "0", f"{failed:.0%}", met=failed == 0)


def run_all(waiting: list[Any], root: Any, *, at_once: int = 6) -> dict[Any, int | None]:
    """Return the number of batches that each run delivered; None if its process was killed."""
    context, outcomes, running = multiprocessing.get_context("fork"), {}, {}
    waiting, shown = list(waiting), time.monotonic()
    while waiting or running:
        while waiting and len(running) < at_once:
            key = waiting.pop(0)
            stack = ExitStack()
            cgroup = stack.enter_context(Cgroup.make(root))
            cgroup.limit_memory(LIMIT_BYTES)
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_child, args=(*key[0], key[1], cgroup, sender))
            child.start()
            sender.close()
            running[receiver] = key, child, stack
        for receiver in multiprocessing.connection.wait(list(running), 60.0):
            key, child, stack = running.pop(receiver)  # type: ignore[call-overload]
            try:
                outcomes[key] = receiver.recv()  # type: ignore[union-attr]
            except EOFError:
                outcomes[key] = None
            child.join()
            receiver.close()
            stack.close()
            if time.monotonic() - shown > arms.SHOW_EVERY_S:
                shown = time.monotonic()
                print(f"{len(outcomes)} runs done, {len(waiting)} wait", file=sys.stderr, flush=True)
            if outcomes[key] is None and child.exitcode != -9:
                raise RuntimeError(f"{key}: ended with {child.exitcode}, expected to live or to be killed")
    return outcomes


def _child(name: str, ledger: bool, seed: int, cgroup: Cgroup, sender: Any) -> None:
    try:
        sender.send(run_once(name, seed, ledger, cgroup))
    except Exception:
        traceback.print_exc()
    finally:
        os._exit(0)
