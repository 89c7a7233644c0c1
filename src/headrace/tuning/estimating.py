"""What each stage needs *lately*: windowed means, a concave fit over the number of busy workers, and drift noticed."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field

from headrace.tuning.measuring import max_workers
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.rates import StageRate
from headrace.tuning.space import Space

__all__ = ["Estimator", "StageEstimate"]

WINDOWS_KEPT = 24
FORGETTING = 0.85
"""Weight of a window relative to the next newer one: half after about four."""
DRIFT = 0.1
"""A stage has drifted when its CPU time per service leaves the fit by this share, in two windows in a row ..."""
NUM_ERRORS = 4.0
"""... and by so many standard errors of a window's mean: single services may be far from it without any drift."""
JUMP = 0.5
"""One window is enough if it is off by this share and by that many standard errors."""
PRIOR_WINDOWS = 2.0
"""Until windows have shown how much services vary, they are taken to vary as much as their mean, with this weight."""
MIN_SPREAD = 0.3
"""Contention is only fitted when the numbers of busy workers seen differ by this share of their mean."""
SATURATED = 0.95
"""Above this share of the CPUs, waiting for a CPU cannot be told from blocking."""


@dataclass
class StageEstimate:
    """One stage's recent windows: (busy workers, CPU seconds per service, services)."""

    windows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOWS_KEPT))
    blocking_s: float | None = None
    bytes_out: float = 0.0
    contention: float = 0.0
    cpu_s: float = 0.0
    suspicious: int = 0

    def add(self, stage: StageObservation, window_s: float, saturated: bool) -> bool:
        """Add a window; whether the stage has drifted, in which case older windows are forgotten."""
        if stage.services <= 0 or window_s <= 0:
            return False
        busy, cpu_s = stage.busy_s / window_s, stage.busy_s / stage.services
        drifted = self._has_drifted(busy, cpu_s, stage.services)
        if drifted:
            self.windows.clear()
            self.blocking_s, self.suspicious = None, 0
        self.windows.append((busy, cpu_s, float(stage.services)))
        self._fit()
        blocking_s = max(stage.wall_s - stage.busy_s, 0.0) / stage.services
        if self.blocking_s is None:
            self.blocking_s = blocking_s
        elif not saturated:
            self.blocking_s += (1.0 - FORGETTING) * (blocking_s - self.blocking_s)
        else:
            self.blocking_s = min(self.blocking_s, blocking_s)
        self.bytes_out = max(stage.bytes_out / stage.services, FORGETTING * self.bytes_out)
        return drifted

    def at(self, busy: float) -> float:
        """CPU seconds of a service with so many workers busy."""
        return self.cpu_s * (1.0 + self.contention * max(busy - 1.0, 0.0))

    def _has_drifted(self, busy: float, cpu_s: float, services: int) -> bool:
        if not self.windows or self.cpu_s <= 0:
            return False
        off = abs(cpu_s / self.at(busy) - 1.0)
        # The error of this window's mean and that of the fit it is compared with.
        error = self._variation() * (1.0 / services + 1.0 / self._weight()) ** 0.5
        significant = off > NUM_ERRORS * error
        self.suspicious = self.suspicious + 1 if significant and off > DRIFT else 0
        return self.suspicious >= 2 or (significant and off > JUMP)

    def _weight(self) -> float:
        return float(sum(n * FORGETTING**age for age, (_, _, n) in enumerate(reversed(self.windows))))

    def _variation(self) -> float:
        """Coefficient of variation of single services, from how far the means of windows are apart."""
        squares = sum(n * (cpu_s / self.at(k) - 1.0) ** 2 for k, cpu_s, n in self.windows)
        return float(((PRIOR_WINDOWS + squares) / (PRIOR_WINDOWS + len(self.windows))) ** 0.5)

    def _fit(self) -> None:
        """Weighted least squares of cpu = c (1 + a (k - 1)), a >= 0; where k hardly varied, a is kept."""
        weights = [n * FORGETTING**age for age, (_, _, n) in enumerate(reversed(self.windows))][::-1]
        total = sum(weights)
        xs = [max(k - 1.0, 0.0) for k, _, _ in self.windows]
        ys = [cpu_s for _, cpu_s, _ in self.windows]
        mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
        mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
        variance = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True)) / total
        if len(xs) > 2 and variance > (MIN_SPREAD * (mean_x + 1.0)) ** 2:
            covariance = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in zip(weights, xs, ys, strict=True)) / total
            slope = max(covariance / variance, 0.0)
            base = mean_y - slope * mean_x
            self.contention = slope / base if base > 0.05 * mean_y else self.contention
        self.cpu_s = mean_y / (1.0 + self.contention * mean_x)


@dataclass
class Estimator:
    """All stages, and how often each is visited for an element delivered."""

    stages: dict[str, StageEstimate] = field(default_factory=dict)
    _visits: dict[str, float] = field(default_factory=dict)
    _delivered: float = 0.0

    def add(self, observation: Observation) -> list[str]:
        """Add a window.

        Returns:
            Names of the stages that have drifted.
        """
        busy = sum(stage.busy_s for stage in observation.stages)
        saturated = busy > SATURATED * observation.cpus * observation.window_s
        saturated = saturated or observation.machine_busy_ratio > SATURATED
        self._delivered = FORGETTING * self._delivered + observation.delivered
        drifted = []
        for stage in observation.stages:
            self._visits[stage.name] = FORGETTING * self._visits.get(stage.name, 0.0) + stage.services
            if self.stages.setdefault(stage.name, StageEstimate()).add(stage, observation.window_s, saturated):
                drifted.append(stage.name)
        return drifted

    @property
    def complete(self) -> bool:
        """Whether every stage has finished something and the consumer has got something."""
        return self._delivered > 0 and all(each.windows for each in self.stages.values())

    def visits(self, stage: str) -> float:
        """Services of a stage for each element delivered."""
        return self._visits[stage] / self._delivered

    def rates(self, space: Space) -> list[StageRate]:
        """What each stage needs for an element delivered."""
        return [
            StageRate(
                name,
                cpu_s=max(self.visits(name) * each.cpu_s, 1e-9),
                blocking_s=self.visits(name) * (each.blocking_s or 0.0),
                contention=each.contention,
                max_workers=max_workers(space, name),
            )
            for name, each in self.stages.items()
        ]
