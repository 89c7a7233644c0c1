"""Emulation: the real engine on virtual CPUs, so that a machine with 2 cores can emulate one with 128.

A stage *sleeps* for its service time while holding one of C tokens. Threads, queues, order and counters are those of
the engine; only the work and the CPUs are virtual. With services of 5 ms or more, a hundred sleeping threads cost
little.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from headrace.logs.source import ROW_ID, SourceBatch
from headrace.pipeline import BatchIterator, Pipeline, from_source
from headrace.simulation import Distribution, PipelineSpec, StageSpec
from headrace.tuning.live import LiveJob
from headrace.tuning.observation import Observation
from headrace.tuning.space import Space, workers_of

__all__ = ["EmulatedCpus", "EmulatedJob", "emulated_pipeline", "open_emulated"]


class EmulatedCpus:
    """Virtual CPUs: a changeable number of tokens, granted in order of request, and the seconds they were held."""

    def __init__(self, count: int) -> None:
        """Create `count` CPUs."""
        self._lock = threading.Lock()
        self._count, self._held = count, 0
        self._line: deque[threading.Event] = deque()
        self._busy_s: dict[str, float] = {}

    @property
    def count(self) -> int:
        """Current number of CPUs."""
        return self._count

    def resize(self, count: int) -> None:
        """Change the number of CPUs; held CPUs stay held."""
        with self._lock:
            self._count = count
            self._grant()

    def sleep(self, stage: str, seconds: float) -> None:
        """Hold a CPU for some seconds on behalf of a stage."""
        turn = threading.Event()
        with self._lock:
            self._line.append(turn)
            self._grant()
        turn.wait()
        began = time.monotonic()
        time.sleep(seconds)
        with self._lock:
            self._busy_s[stage] = self._busy_s.get(stage, 0.0) + time.monotonic() - began
            self._held -= 1
            self._grant()

    def busy_s(self) -> dict[str, float]:
        """Seconds held so far, by stage."""
        with self._lock:
            return dict(self._busy_s)

    def _grant(self) -> None:
        while self._line and self._held < self._count:
            self._held += 1
            self._line.popleft().set()


@dataclass(frozen=True)
class _Rows:
    """A source of single-row splits."""

    num_splits: int

    def __len__(self) -> int:
        return self.num_splits

    def read(self, split: int) -> Iterator[SourceBatch]:
        """Yield one row."""
        yield SourceBatch(pa.record_batch({ROW_ID: pa.array([split], pa.int64())}), num_read=1)

    def describe(self, split: int) -> str:
        """The number of the split."""
        return f"emulated split {split}"


def emulated_pipeline(spec: PipelineSpec, cpus: EmulatedCpus, num_elements: int, *, seed: int = 0) -> Pipeline:
    """Create a pipeline for the real engine whose stages sleep for simulated service times.

    Args:
        spec: Stages with one output element per input element.
        cpus: The virtual CPUs.
        num_elements: Number of elements of the source.
        seed: Seed of the service times. They depend only on the element, so all arms of a comparison do the same work.
    """
    pipeline, began = from_source(_Rows(num_elements)), time.monotonic()
    for number, stage in enumerate(spec.stages):
        pipeline = pipeline.map(
            partial(_serve, stage, cpus, (seed, number), lambda: time.monotonic() - began), name=stage.name
        )
    return pipeline


def open_emulated(pipeline: Pipeline, state: Mapping[str, Any] | None = None) -> BatchIterator:
    """Open an emulated pipeline with one worker per stage; `state` as for `Pipeline.open`."""
    batches = pipeline.open(workers={stage.name: 1 for stage in pipeline.plan.stages}, state=state)
    # The source has nothing to read, so without this the first idle workers would read it to its end.
    batches.tunables["read_ahead"].set(0)
    batches.tunables["source.workers"].set(1)
    return batches


def _serve(
    stage: StageSpec, cpus: EmulatedCpus, seed: tuple[int, int], clock: Callable[[], float], rows: pa.RecordBatch
) -> pa.RecordBatch:
    random = np.random.default_rng((*seed, int(rows[ROW_ID][0].as_py())))
    scale = stage.scale_at(clock())
    if stage.io_s > 0:
        time.sleep(_draw(random, stage, stage.io_s * scale))
    cpus.sleep(stage.name, _draw(random, stage, stage.cpu_s * scale))
    return rows


def _draw(random: np.random.Generator, stage: StageSpec, mean: float) -> float:
    if stage.distribution is Distribution.EXPONENTIAL:
        return float(random.exponential(mean))
    if stage.distribution is Distribution.LOGNORMAL:
        variance = np.log1p(stage.spread**2)
        return float(mean * random.lognormal(-variance / 2, variance**0.5))
    if stage.distribution is Distribution.PARETO:
        return float(mean * (stage.spread - 1) / stage.spread * (1 + random.pareto(stage.spread)))
    return mean


class EmulatedJob(LiveJob):
    """A live job whose CPUs and CPU times are the virtual ones."""

    def __init__(self, batches: BatchIterator, cpus: EmulatedCpus, spec: PipelineSpec) -> None:
        """Attach to an open `emulated_pipeline`; only its stages and their shared workers are tuned."""
        super().__init__(batches)
        self._cpus, self._spec = cpus, spec
        self._busy_at_first = self._busy_before = cpus.busy_s()

    @property
    def space(self) -> Space:
        """The knobs of the stages, of prefetch and of the shared workers."""
        stages = {workers_of(stage.name) for stage in self._spec.stages}
        return Space(tuple(k for k in super().space.knobs if k.name in stages or k.stage is None))

    def observe(self) -> Observation:
        """See `LiveJob.observe`; with virtual CPUs and without the source, which uses none."""
        seen = super().observe()
        before, self._busy_before = self._busy_before, self._cpus.busy_s()
        return self._as_virtual(seen, before, self._busy_before)

    def look(self) -> Observation:
        """See `LiveJob.look`; with virtual CPUs and without the source."""
        return self._as_virtual(super().look(), self._busy_at_first, self._cpus.busy_s())

    def _as_virtual(self, seen: Observation, before: Mapping[str, float], now: Mapping[str, float]) -> Observation:
        stages = tuple(
            replace(stage, busy_s=now.get(stage.name, 0.0) - before.get(stage.name, 0.0))
            for stage in seen.stages
            if stage.name != "source"
        )
        return replace(seen, stages=stages, cpus=float(self._cpus.count), machine_busy_ratio=0.0)
