"""Estimates each stage's needs as lifelong means, for the baselines."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.tuning.observation import Observation
from headrace.tuning.space import Space, workers_of

__all__ = ["LifelongMeans", "StageMeans", "max_workers"]


@dataclass
class StageMeans:
    """Sums over a stage's whole lifetime."""

    services: float = 0.0
    busy_s: float = 0.0
    wall_s: float = 0.0
    bytes_out: float = 0.0

    @property
    def wall_per_service_s(self) -> float:
        """Mean wall seconds per service; 0 before the first."""
        return self.wall_s / self.services if self.services else 0.0

    @property
    def bytes_per_service(self) -> float:
        """Mean bytes per service; 0 before the first."""
        return self.bytes_out / self.services if self.services else 0.0


@dataclass
class LifelongMeans:
    """Sums up windows without forgetting, like tf.data's model and Plumber's trace."""

    stages: dict[str, StageMeans] = field(default_factory=dict)
    delivered: float = 0.0

    def add(self, observation: Observation) -> None:
        """Add a window."""
        self.delivered += observation.delivered
        for stage in observation.stages:
            means = self.stages.setdefault(stage.name, StageMeans())
            means.services += stage.services
            means.busy_s += stage.busy_s
            means.wall_s += stage.wall_s
            means.bytes_out += stage.bytes_out

    @property
    def complete(self) -> bool:
        """Whether every stage has finished an element and the consumer has received one."""
        return self.delivered > 0 and all(means.services > 0 for means in self.stages.values())


def max_workers(space: Space, stage: str) -> int:
    """Maximum workers of a stage; 1 if they are not adjustable."""
    return space[workers_of(stage)].max if workers_of(stage) in space else 1
