"""`LiveJob`: a running pipeline as a job: its tunables, and its counters turned into observations."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from itertools import groupby

import psutil

from headrace.pipeline import BatchIterator, PipelineCounters, StageReading
from headrace.resources import Resources, effective_resources
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.space import Space

__all__ = ["LiveJob", "observation_of"]


class LiveJob:
    """What a tuner drives when the pipeline is a real one.

    Stages that one worker call runs together are one stage here, named as their tunable ("map+transform").
    """

    def __init__(self, batches: BatchIterator, *, resources: Callable[[], Resources] = effective_resources) -> None:
        """Attach to an open pipeline.

        Args:
            batches: What `Pipeline.open` returned.
            resources: Gives the CPUs and memory this process may use now.
        """
        self._batches = batches
        self._resources = resources
        self._process = psutil.Process()
        self._began = self._last = time.monotonic()

    @property
    def space(self) -> Space:
        """The pipeline's tunables."""
        return Space.from_tunables(self._batches.tunables.values())

    def observe(self) -> Observation:
        """About the window since the last call; the engine copies its totals four times a second."""
        now = time.monotonic()
        window_s, self._last = now - self._last, now
        return observation_of(
            self._batches.counters(window_s),
            {name: tunable.value for name, tunable in self._batches.tunables.items()},
            self._resources(),
            time_s=now - self._began,
            memory_used_bytes=self._process.memory_info().rss,
            machine_busy_ratio=psutil.cpu_percent(interval=None) / 100.0,
        )

    def apply(self, values: Mapping[str, int]) -> None:
        """Set tunables; from any thread."""
        for name, value in values.items():
            self._batches.tunables[name].set(value)

    def run(self, duration_s: float) -> None:
        """Let time pass beside the pipeline, which some other thread consumes."""
        time.sleep(duration_s)


def observation_of(
    counters: PipelineCounters,
    values: Mapping[str, int],
    resources: Resources,
    *,
    time_s: float,
    memory_used_bytes: float,
    machine_busy_ratio: float = 0.0,
) -> Observation:
    """A reading of the counters as a policy sees it.

    Args:
        counters: Of the pipeline.
        values: Of its tunables.
        resources: CPUs and memory.
        time_s: Seconds since the job began.
        memory_used_bytes: Resident memory of the process.
        machine_busy_ratio: Share of all CPUs that is busy with anything.
    """
    groups = groupby(counters.stages.values(), key=lambda reading: reading.group)
    consumer = counters.consumer
    return Observation(
        time_s=time_s,
        window_s=counters.window_s,
        stages=tuple(_stage(name, list(readings)) for name, readings in groups),
        values=dict(values),
        delivered=consumer.num_batches,
        consumer_s=consumer.busy_s,
        starved_s=consumer.wait_s,
        cpus=resources.cpus.count,
        memory_limit_bytes=resources.memory.limit_bytes,
        memory_used_bytes=memory_used_bytes,
        machine_busy_ratio=machine_busy_ratio,
    )


def _stage(name: str, readings: list[StageReading]) -> StageObservation:
    last = readings[-1]
    return StageObservation(
        name=name,
        workers=last.num_workers,
        services=last.num_items,
        busy_s=sum(reading.cpu_s for reading in readings),
        wall_s=sum(reading.wall_s for reading in readings),
        wait_input_s=last.wait_input_s,
        wait_output_s=last.wait_output_s,
        bytes_out=last.num_bytes_out,
        queue_depth=last.queue_depth,
        visit_ratio=last.visit_ratio,
    )
