"""`Sizing`: computes workers, threads and prefetch for a target rate, within memory, from the stages' needs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from headrace.tuning.estimating import Estimator
from headrace.tuning.observation import Observation
from headrace.tuning.rates import fluid_rate
from headrace.tuning.space import PREFETCH, THREADS, Space, workers_of

__all__ = ["Sizing", "SizingConfig"]


@dataclass(frozen=True, kw_only=True)
class SizingConfig:
    """Constants of `Sizing`.

    Attributes:
        headroom: Factor of workers over the closed form. CPUs are shared, so a surplus worker costs only memory, while
            a missing one costs throughput.
        max_extra: Maximum factor of a stage's workers over the closed form.
        memory_share: Share of the memory limit that may be in use.
        burst: Assumed maximum size of an element, relative to the largest recent mean.
        consumer_headroom: Target rate relative to the consumer's rate, if the consumer is the limit.
    """

    headroom: float = 0.25
    max_extra: float = 16.0
    memory_share: float = 0.7
    burst: float = 2.0
    consumer_headroom: float = 0.15


@dataclass
class Sizing:
    """Computes settings for target rates.

    Attributes:
        space: The knobs.
        estimator: Estimates of each stage's needs.
        extra: Factor on each stage's workers that probes found useful.
        ahead: Minimum workers per stage to work far enough ahead of a slow element; dropped first when memory is short.
    """

    space: Space
    estimator: Estimator
    config: SizingConfig = field(default_factory=SizingConfig)
    extra: dict[str, float] = field(default_factory=dict)
    ahead: dict[str, int] = field(default_factory=dict)

    def target(self, observation: Observation) -> tuple[float, str]:
        """The target rate in elements per second, and its limit."""
        rates = self.estimator.rates(self.space)
        cpus = fluid_rate(rates, observation.cpus)
        consumer = observation.consumer_rate_per_s * (1.0 + self.config.consumer_headroom)
        if consumer < cpus:
            return consumer, "the consumer needs no more"
        slowest = min(rates, key=lambda stage: stage.rate(stage.max_workers))
        if slowest.rate(slowest.max_workers) <= cpus * (1.0 + 1e-6):
            return cpus, f"stage {slowest.name} with {slowest.max_workers} workers"
        return cpus, f"{observation.cpus:g} CPUs"

    def setting(self, observation: Observation, target: float, *, prefetch: int) -> dict[str, int]:
        """Workers, threads and prefetch for a rate, or for the highest rate that memory allows."""
        share, ahead = 1.0, dict(self.ahead)
        allowed = self._bytes_allowed(observation)
        while True:
            values = self._for_rate(observation, share * target, ahead)
            if self._bytes(values, prefetch) <= allowed or share < 0.05:
                break
            if any(count > 1 for count in ahead.values()):
                ahead = {name: count // 2 for name, count in ahead.items()}
            elif prefetch > 1:
                prefetch //= 2
            else:
                share *= 0.9
        if PREFETCH in self.space:
            values[PREFETCH] = prefetch
        return self.space.clip(values)

    def most(self, stage: str, observation: Observation, target: float) -> int:
        """Maximum useful workers of a stage."""
        rate = next(each for each in self.estimator.rates(self.space) if each.name == stage)
        needed = min(rate.workers_for(target), 4.0 * observation.cpus + 4.0 * target * rate.blocking_s)
        return self.space[workers_of(stage)].clip(self.config.max_extra * max(needed, 1.0))

    def _for_rate(self, observation: Observation, target: float, ahead: Mapping[str, int]) -> dict[str, int]:
        values, running, blocked = {}, 0.0, 0.0
        for stage in self.estimator.rates(self.space):
            busy = min(stage.workers_for(target), 4.0 * observation.cpus + 4.0 * target * stage.blocking_s)
            spare = 1.0 + self.config.headroom
            # One more than needed, because a single worker idles while its result waits to be taken.
            needed = math.ceil(busy * spare * self.extra.get(stage.name, 1.0) - 1e-9) + 1
            values[workers_of(stage.name)] = max(needed, ahead.get(stage.name, 1))
            cpu, seconds = stage.cpu_with(busy), stage.cpu_with(busy) + stage.blocking_s
            running += busy * cpu / seconds if seconds > 0 else 0.0
            blocked += busy * spare * stage.blocking_s / seconds if seconds > 0 else 0.0
        if THREADS in self.space:
            # More threads than CPUs only for blocking stages; otherwise they would take CPUs from the trainer.
            on_cpus = min(math.ceil((1.0 + self.config.headroom) * running) + 1, math.ceil(observation.cpus))
            values[THREADS] = max(1, on_cpus) + math.ceil(blocked - 1e-9)
        return values

    def _bytes(self, values: Mapping[str, int], prefetch: int) -> float:
        """Maximum bytes of the elements of a setting."""
        stages = list(self.estimator.stages.items())
        held = sum((values.get(workers_of(name), 1) + 2) * each.bytes_out for name, each in stages)
        return self.config.burst * (held + prefetch * stages[-1][1].bytes_out)

    def _bytes_allowed(self, observation: Observation) -> float:
        """Bytes available for elements: the memory share minus the process's other memory."""
        now = {name: value for name, value in observation.values.items() if name != PREFETCH}
        in_flight = self._bytes(now, observation.values.get(PREFETCH, 0)) / self.config.burst
        beside = max(observation.memory_used_bytes - in_flight, 0.0)
        return max(self.config.memory_share * observation.memory_limit_bytes - beside, 0.0)
