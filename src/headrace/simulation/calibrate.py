"""`calibrate`: creates a simulated pipeline from the recorded counters of a real one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

from headrace.errors import ConfigError
from headrace.pipeline import PipelineCounters, StageReading
from headrace.simulation.spec import PipelineSpec, StageSpec

__all__ = ["calibrate"]

ENGINE_AHEAD = 2
"""Elements that an engine stage may finish ahead, in addition to those in progress (`AHEAD` in its state)."""


def calibrate(
    counters: PipelineCounters, *, num_prefetch: int = 2, cpu_s: Mapping[str, float] | None = None
) -> PipelineSpec:
    """Create a pipeline with the mean times, sizes and batch ratios of a recorded window.

    Record the window while CPUs are free, because counters cannot distinguish waiting for a CPU from waiting for
    storage.

    Args:
        counters: Counters of a window in which every stage finished elements; longer windows are better.
        num_prefetch: Value of the pipeline's prefetch tunable.
        cpu_s: CPU seconds in the window by stage, if the thread CPU clock does not measure them (emulation).

    Raises:
        ConfigError: A stage finished no elements, or none was delivered.
    """
    groups = [(name, list(readings)) for name, readings in groupby(counters.stages.values(), lambda each: each.group)]
    idle = [name for name, readings in groups if readings[-1].num_elements == 0]
    if idle or not counters.consumer.num_batches:
        raise ConfigError(
            f"calibrate: given a window in which {idle or ['the consumer']} did nothing, expected all of them busy"
        )
    stages: list[StageSpec] = []
    for index, (name, readings) in enumerate(groups):
        last = readings[-1]
        cpu = sum((cpu_s or {}).get(each.name, each.cpu_s) for each in readings) / last.num_elements
        wall = sum(each.wall_s for each in readings) / last.num_elements
        taken, given = (1, 1) if index == 0 else _ratio(groups[index - 1][1][-1], last)
        if given > 1:  # the previous stage outputs several elements at once
            stages[-1] = replace(stages[-1], num_outputs=given)
        stages.append(
            StageSpec(
                name=name,
                cpu_s=max(cpu, 1e-7),
                io_s=max(wall - cpu, 0.0),
                num_inputs=taken,
                buffer=num_prefetch if index == len(groups) - 1 else ENGINE_AHEAD,
                output_bytes=last.num_bytes_out / last.num_elements,
            )
        )
    consumer = counters.consumer
    return PipelineSpec(stages=tuple(stages), consumer_s=consumer.busy_s / consumer.num_batches)


def _ratio(before: StageReading, after: StageReading) -> tuple[int, int]:
    """Elements per service, and elements per service of the previous stage; one of them is 1."""
    ratio = before.num_elements / after.num_elements
    return (round(ratio), 1) if ratio >= 1.5 else (1, max(1, round(1 / ratio)))
