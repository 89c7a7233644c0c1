"""Estimates each stage's visits per delivered element, despite elements in flight."""

from __future__ import annotations

from dataclasses import dataclass, field

from headrace.tuning.observation import Observation
from headrace.tuning.space import PREFETCH

__all__ = ["VisitRatios"]

MARGIN = 4
"""Elements that a stage may hold in addition to those that it and the next one have workers for."""
RENEWED_AFTER = 20
"""Counting restarts after this multiple of the pipeline's capacity was delivered, because ratios may change."""


@dataclass
class _Count:
    """Services and capacity of each stage, and deliveries, since a point in time; and the capacity at that time."""

    places_before: dict[str, float]
    services: dict[str, float] = field(default_factory=dict)
    delivered: float = 0.0

    def add(self, observation: Observation) -> None:
        self.delivered += observation.delivered
        for stage in observation.stages:
            self.services[stage.name] = self.services.get(stage.name, 0.0) + stage.services


@dataclass
class VisitRatios:
    """Services of each stage per delivered element.

    Services and deliveries of one window say little while a pipeline fills, because a stage may be hundreds of elements
    ahead. But elements in flight are in known places: a stage can only be ahead of the next one by the capacity of
    both. So the ratio of neighbouring stages lies in a known interval, which narrows as elements pass. The usual ratio
    of 1 is assumed as long as the interval contains it.
    """

    _old: _Count = field(default_factory=lambda: _Count({}))
    _young: _Count = field(default_factory=lambda: _Count({}))
    _places: dict[str, float] = field(default_factory=dict)

    def add(self, observation: Observation) -> None:
        """Add a window."""
        after = [stage.workers for stage in observation.stages[1:]]
        after.append(observation.values.get(PREFETCH, 0))
        for stage, next_workers in zip(observation.stages, after, strict=True):
            # Elements outlive their workers, so the maximum capacity of this window and earlier ones counts.
            places = float(stage.workers + 2 * next_workers + MARGIN)
            self._places[stage.name] = max(places, 0.98 * self._places.get(stage.name, 0.0))
        self._old.add(observation)
        self._young.add(observation)
        if self._young.delivered > RENEWED_AFTER * sum(self._places.values()):
            self._old, self._young = self._young, _Count(dict(self._places))

    @property
    def known(self) -> bool:
        """Whether something was delivered and every stage has finished something."""
        return self._old.delivered > 0 and all(self._old.services.values())

    def ratios(self) -> dict[str, float]:
        """The ratios by stage, starting with the source."""
        visits, later, ratio = {}, self._old.delivered, 1.0
        for name in reversed(self._old.services):
            done = self._old.services[name]
            scale = max(1.0, done / later)
            low = max(done - scale * self._places[name], 0.0) / later
            high = (done + scale * self._old.places_before.get(name, 0.0)) / later
            ratio *= 1.0 if low <= 1.0 <= high else (max(low, high / 2.0) + high) / 2.0
            visits[name], later = ratio, done
        return {name: visits[name] for name in self._old.services}
