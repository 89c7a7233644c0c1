"""Simulated training episodes: pipelines like those that InTune reports, on machines that are resized."""

from __future__ import annotations

import numpy as np

from headrace.simulation import LATENCY_SPLIT, Machine, PipelineSpec, StageSpec
from headrace.tuning.job import SimulatedJob
from headrace.tuning.policies.oracle import true_rates
from headrace.tuning.rates import fluid_rate

__all__ = ["draw_job", "draw_pipeline", "latency_split"]

CONCENTRATION = 20.0
"""Concentration of the Dirichlet around the published split: the share of the user function varies by about +-0.11."""
SECONDS_RANGE = (0.5, 2.0)
"""CPU seconds per element over all stages; policies see the logarithm."""
CPU_CHOICES = (16, 32, 64, 96, 128)


def latency_split(num_stages: int) -> list[float]:
    """Latency shares of a pipeline with 3 to 7 stages, derived from the published five.

    Three stages are load, user function and prefetch; the fourth is batch; beyond five there are further transforms,
    each taking half of the batch stage's time.
    """
    split = LATENCY_SPLIT
    shares = {
        3: [split["load"], split["map"], split["prefetch"]],
        4: [split["load"], split["batch"], split["map"], split["prefetch"]],
    }.get(num_stages)
    if shares is None:
        extra = [split["batch"] / 2] * (num_stages - 5)
        shares = [split["load"], split["batch"], split["shuffle"], *extra, split["map"], split["prefetch"]]
    return [share / sum(shares) for share in shares]


def draw_pipeline(num_stages: int, random: np.random.Generator) -> PipelineSpec:
    """Draw a pipeline whose latency shares vary around `latency_split`."""
    shares = np.maximum(random.dirichlet(CONCENTRATION * np.asarray(latency_split(num_stages))), 0.005)
    low, high = SECONDS_RANGE
    seconds = low * (high / low) ** random.random()
    stages = (StageSpec(name=f"stage{i}", cpu_s=float(share * seconds)) for i, share in enumerate(shares))
    return PipelineSpec(stages=tuple(stages))


def draw_job(num_stages: int, random: np.random.Generator, *, phase_s: float = 30.0) -> tuple[SimulatedJob, float]:
    """Draw a job on a machine that is resized once, and the maximum rate of all CPUs in its larger phase."""
    spec = draw_pipeline(num_stages, random)
    cpus = [int(each) for each in random.choice(CPU_CHOICES, size=2)]
    job = SimulatedJob(spec, Machine.schedule(cpus, phase_s), seed=int(random.integers(1 << 30)))
    return job, fluid_rate(true_rates(spec), max(cpus))
