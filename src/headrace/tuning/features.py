"""Encodes an observation for a learning policy, as numbers around 1."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space

__all__ = ["STEPS", "View", "features", "num_features", "step_workers"]

STEPS = (-5, -1, 0, 1, 5)
"""Changes that an action may make to a stage's workers (InTune, section 4)."""

View = Literal["published", "stages"]
""""published": InTune's six factors; "stages": also the counters of each stage."""

_NUM_PUBLISHED = 6
_PER_STAGE = 4


def num_features(num_stages: int, view: View) -> int:
    """Length of the result of `features`."""
    return _NUM_PUBLISHED + (_PER_STAGE * num_stages if view == "stages" else 0)


def features(observation: Observation, view: View) -> NDArray[np.float32]:
    """The state: pipeline latency, free CPUs, free memory, model latency, memory bandwidth, CPU clock.

    "stages" adds for each stage its share of the CPUs, how busy its workers are, how long they wait for input and how
    long they are held back. float32, around 0 to 1 each; latencies are logarithms, because they span decades.
    """
    held = sum(stage.workers for stage in observation.stages)
    rate, consumer = observation.rate_per_s, observation.consumer_rate_per_s
    values = [
        _log_latency(1.0 / rate if rate > 0 else math.inf),
        (observation.cpus - held) / observation.cpus,
        1.0 - observation.memory_ratio,
        _log_latency(0.0 if math.isinf(consumer) else 1.0 / consumer),
        observation.memory_bytes_per_s / 1e11,
        observation.cpu_hz / 3e9,
    ]
    if view == "stages":
        for stage in observation.stages:
            time = max(stage.workers * observation.window_s, 1e-9)
            values += [
                stage.workers / observation.cpus,
                min(stage.wall_s / time, 2.0),
                min(stage.wait_input_s / time, 2.0),
                min(stage.wait_output_s / time, 2.0),
            ]
    return np.asarray(values, np.float32)


def step_workers(space: Space, observation: Observation, choices: list[int]) -> dict[str, int]:
    """Compute the workers of each knob after an action.

    Args:
        space: The knobs.
        observation: Current workers and CPUs.
        choices: An index into `STEPS` for each stage with a knob.

    Returns:
        The new values. InTune assigns CPUs to stages instead of sharing them, so requests beyond the free CPUs are
        reduced, and after the machine shrinks the largest stages lose workers.
    """
    knobs = [knob for _, knob in space.worker_knobs()]
    values = {knob.name: observation.values.get(knob.name, 1) for knob in knobs}
    for knob, choice in zip(knobs, choices, strict=True):
        if STEPS[choice] < 0:
            values[knob.name] = knob.clip(values[knob.name] + STEPS[choice])
    cpus = max(int(observation.cpus), len(knobs))
    while sum(values.values()) > cpus:
        largest = max(values, key=values.__getitem__)
        values[largest] -= 1
    free = cpus - sum(values.values())
    for knob, choice in zip(knobs, choices, strict=True):
        if STEPS[choice] > 0:
            wanted = knob.clip(values[knob.name] + min(STEPS[choice], free))
            free -= wanted - values[knob.name]
            values[knob.name] = wanted
    return values


def _log_latency(seconds: float) -> float:
    """0 at 1 ms or less, 1 at 100 s or more."""
    return min(max(math.log10(max(seconds, 1e-3)) + 3.0, 0.0) / 5.0, 1.0)
