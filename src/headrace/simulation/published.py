"""The pipeline and the machine of InTune's evaluation (arXiv 2308.08500), as far as the paper gives numbers."""

from __future__ import annotations

from typing import Any

from headrace.simulation.spec import Machine, PipelineSpec, StageSpec

__all__ = ["LATENCY_SPLIT", "PUBLISHED_CPUS", "published_machine", "published_pipeline"]

LATENCY_SPLIT = {"load": 0.14, "batch": 0.28, "shuffle": 0.117, "map": 0.423, "prefetch": 0.04}
"""Shares of the latency of its example job (figure 3): disk load, batching, shuffle, user function, prefetch."""
PUBLISHED_CPUS = (32, 64, 128, 64, 32)
"""Doubled at regular intervals, then halved back (section 5)."""


def published_pipeline(seconds: float = 0.25, **options: dict[str, Any]) -> PipelineSpec:
    """The published split of so many CPU seconds an element.

    Args:
        seconds: CPU seconds of all stages together.
        options: By stage: further arguments of `StageSpec`.
    """
    stages = (StageSpec(name=n, cpu_s=share * seconds, **options.get(n, {})) for n, share in LATENCY_SPLIT.items())
    return PipelineSpec(stages=tuple(stages))


def published_machine(phase_s: float) -> Machine:
    """The published schedule with phases of so many seconds."""
    return Machine.schedule(PUBLISHED_CPUS, phase_s)
