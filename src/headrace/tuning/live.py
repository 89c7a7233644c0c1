"""`LiveJob`: a running pipeline as a tunable `Job`, with observations made from its counters."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import groupby

import psutil

from headrace.pipeline.engine.counters import PipelineCounters, StageReading
from headrace.pipeline.engine.thread_feed import WORKER_NAME
from headrace.pipeline.engine.tuners import Tunables
from headrace.resources import Resources, effective_resources, queued_s
from headrace.tuning.machine import cpu_hz, memory_bytes_per_s
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.space import Space

__all__ = ["LiveJob", "observation_of"]


NUM_NAPS = 5
NUM_NAPS_WHEN_ASKED = 15
"""More naps for a single reading, because it is not averaged over windows."""
NAP_S = 20e-6


def gil_wait_s(num_naps: int = NUM_NAPS) -> float:
    """Mean seconds that a waking thread waits for the GIL, measured with a few naps.

    If other threads run Python code all the time, each waits for another's turn of 5 ms (`sys.getswitchinterval`).
    Threads in native code release the GIL, and the result is near 0. Time spent waiting for a CPU is subtracted where
    the kernel reports it.
    """
    nap, began, queued_before_s = threading.Event(), time.perf_counter(), queued_s()
    for _ in range(num_naps):
        nap.wait(NAP_S)
    waited_s = time.perf_counter() - began - (queued_s() - queued_before_s)
    return max(waited_s / num_naps - 3 * NAP_S, 0.0)


def _queued_by_worker() -> dict[int, float]:
    """Seconds that each stage thread was runnable but had no CPU, since it started.

    Threads of the training step are excluded, because their waits say nothing about a stage.
    """
    ids = [thread.native_id for thread in threading.enumerate() if thread.name == WORKER_NAME]
    return {number: queued_s(number) for number in ids if number is not None}


class LiveJob:
    """A running pipeline as a tunable job.

    Stages that one worker call runs together count as one stage, named like their tunable ("map+transform").
    """

    def __init__(
        self,
        batches: Tunables,
        *,
        resources: Callable[[], Resources] = effective_resources,
        measures_machine: bool = False,
    ) -> None:
        """Attach to an open pipeline.

        Args:
            batches: Result of `Pipeline.open(tuner="none")`, or the object in it that runs the stages.
            resources: Returns the CPUs and memory that this process may use now.
            measures_machine: Whether to measure memory bandwidth at the first observation; only InTune uses it.
        """
        self._measures_machine = measures_machine
        self._batches = batches
        self._resources = resources
        self._process = psutil.Process()
        self._began = self._last = time.monotonic()
        self._queued_s: dict[int, float] = {}

    @property
    def space(self) -> Space:
        """The pipeline's tunables."""
        return Space.from_tunables(self._batches.tunables.values())

    def observe(self) -> Observation:
        """Measure (about) the window since the last call; the engine copies its totals four times per second."""
        now = time.monotonic()
        window_s, self._last = now - self._last, now
        before, self._queued_s = self._queued_s, _queued_by_worker()
        queued_s = sum(seconds - before.get(thread, 0.0) for thread, seconds in self._queued_s.items())
        busy_ratio = psutil.cpu_percent(interval=None) / 100.0
        return self._observe(self._batches.counters(window_s), busy_ratio, queued_s)

    def look(self) -> Observation:
        """Measure the whole time since the pipeline was opened, without starting a new window."""
        queued_s = sum(_queued_by_worker().values())
        return self._observe(self._batches.counters(math.inf), queued_s=queued_s, num_naps=NUM_NAPS_WHEN_ASKED)

    def _observe(
        self,
        counters: PipelineCounters,
        machine_busy_ratio: float = 0.0,
        queued_s: float = 0.0,
        num_naps: int = NUM_NAPS,
    ) -> Observation:
        seen = observation_of(
            counters,
            {name: tunable.value for name, tunable in self._batches.tunables.items()},
            self._resources(),
            time_s=time.monotonic() - self._began,
            memory_used_bytes=self._process.memory_info().rss,
            machine_busy_ratio=machine_busy_ratio,
            queued_s=queued_s,
            gil_wait_s=gil_wait_s(num_naps),
        )
        if not self._measures_machine:
            return seen
        return replace(seen, memory_bytes_per_s=memory_bytes_per_s(), cpu_hz=cpu_hz())

    def apply(self, values: Mapping[str, int]) -> None:
        """Set tunables by name. Thread-safe."""
        for name, value in values.items():
            self._batches.tunables[name].set(value)

    def run(self, duration_s: float) -> None:
        """Sleep while another thread consumes the pipeline."""
        time.sleep(duration_s)

    def close(self) -> None:
        """Do nothing: the owner of the pipeline closes it."""


def observation_of(
    counters: PipelineCounters,
    values: Mapping[str, int],
    resources: Resources,
    *,
    time_s: float,
    memory_used_bytes: float,
    machine_busy_ratio: float = 0.0,
    queued_s: float = 0.0,
    gil_wait_s: float = 0.0,
) -> Observation:
    """Convert counters to an observation.

    Args:
        counters: Counters of the pipeline.
        values: Values of its tunables.
        resources: CPUs and memory.
        time_s: Seconds since the job started.
        memory_used_bytes: Resident memory of the process.
        machine_busy_ratio: Utilisation of all CPUs by any process, if known; at least this process's own utilisation of
            the CPUs that it may use.
        queued_s: Seconds in which stage threads were runnable but had no CPU.
        gil_wait_s: Mean seconds that a waking thread waits for the GIL.
    """
    groups = groupby(counters.stages.values(), key=lambda reading: reading.group)
    stages = [_stage(name, list(readings), name in counters.process_groups) for name, readings in groups]
    if stages:
        stages[0] = replace(stages[0], reads=counters.reads_storage)
    consumer = counters.consumer
    available_s = max(resources.cpus.count * counters.window_s, 1e-9)
    return Observation(
        time_s=time_s,
        window_s=counters.window_s,
        stages=tuple(stages),
        values=dict(values),
        delivered=consumer.num_batches,
        consumer_s=consumer.busy_s,
        starved_s=consumer.wait_s,
        cpus=resources.cpus.count,
        memory_limit_bytes=resources.memory.limit_bytes,
        memory_used_bytes=memory_used_bytes,
        machine_busy_ratio=max(machine_busy_ratio, min(counters.process_cpu_s / available_s, 1.0)),
        budget_bytes=counters.budget_bytes,
        in_flight_bytes=counters.bytes_in_flight,
        queued_s=queued_s,
        gil_wait_s=gil_wait_s,
    )


def _stage(name: str, readings: list[StageReading], in_processes: bool) -> StageObservation:
    last = readings[-1]
    return StageObservation(
        name=name,
        workers=last.num_workers,
        services=last.num_elements,
        busy_s=sum(reading.cpu_s for reading in readings),
        wall_s=sum(reading.wall_s for reading in readings),
        wait_input_s=last.wait_input_s,
        wait_output_s=last.wait_output_s,
        wait_memory_s=last.wait_memory_s,
        bytes_out=last.num_bytes_out,
        queue_depth=last.queue_depth,
        left=last.queue_depth if name == "source" else None,
        visit_ratio=last.visit_ratio,
        in_processes=in_processes,
        queued_s=sum(reading.queued_s for reading in readings),
    )
