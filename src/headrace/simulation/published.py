"""The pipeline and the machine of InTune's evaluation (arXiv 2308.08500), from numbers in the paper."""

from __future__ import annotations

from typing import Any

from headrace.simulation.spec import Machine, PipelineSpec, StageSpec

__all__ = ["LATENCY_SPLIT", "PUBLISHED_CPUS", "published_machine", "published_pipeline"]

LATENCY_SPLIT = {"load": 0.14, "batch": 0.28, "shuffle": 0.117, "map": 0.423, "prefetch": 0.04}
"""Latency shares of its example job (figure 3): disk load, batching, shuffle, user function, prefetch."""
PUBLISHED_CPUS = (32, 64, 128, 64, 32)
"""CPUs, doubled at regular intervals and then halved again (section 5)."""


def published_pipeline(seconds: float = 0.25, **options: dict[str, Any]) -> PipelineSpec:
    """A pipeline with the published split of `seconds` CPU seconds per element.

    Args:
        seconds: Total CPU seconds of all stages per element.
        options: Further arguments of `StageSpec` by stage.
    """
    stages = (StageSpec(name=n, cpu_s=share * seconds, **options.get(n, {})) for n, share in LATENCY_SPLIT.items())
    return PipelineSpec(stages=tuple(stages))


def published_machine(phase_s: float) -> Machine:
    """A machine with the published schedule and phases of `phase_s` seconds."""
    return Machine.schedule(PUBLISHED_CPUS, phase_s)
