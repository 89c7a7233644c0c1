"""What each stage needs *lately*: windowed means, a concave fit over the number of busy workers, and drift noticed."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from headrace.tuning.measuring import max_workers
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.rates import StageRate
from headrace.tuning.space import Space
from headrace.tuning.visits import VisitRatios

__all__ = ["Estimator", "StageEstimate"]

WINDOWS_KEPT = 24
FORGETTING = 0.85
"""Weight of a window relative to the next newer one: half after about four."""
DRIFT = 0.1
"""A stage has drifted when its CPU time per service leaves the fit by this share, in two windows in a row ..."""
NUM_ERRORS = 4.0
"""... and by so many standard errors of a window's mean: single services may be far from it without any drift."""
CAUTION = 2.0
"""Each drift noticed asks so many times the errors of the next: no standard error fits a heavy tail ..."""
CALMING = 0.98
"""... and this share of the extra caution is left after each window without one: half after 34."""
JUMP = 0.5
"""One window is enough if it is off by this share and by that many standard errors."""
PRIOR_WINDOWS = 2.0
"""Until windows have shown how much services vary, they are taken to vary as much as their mean, with this weight."""
MIN_SPREAD = 0.3
"""Contention is only fitted when the numbers of busy workers seen differ by this share of their mean."""
MAX_CONTENTION = 0.5
BLOCKINGS_KEPT = 9
WINDOWS_WANTED, LONG_WAIT = 3, 4.0
"""A wait this many times the CPU time is believed after so many windows; that of the source, which runs in threads, at
once."""
SATURATED = 0.95
"""Above this share of the CPUs, waiting for a CPU cannot be told from blocking."""


@dataclass
class StageEstimate:
    """One stage's recent windows: (busy workers, CPU seconds per service, services)."""

    windows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOWS_KEPT))
    blockings: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=BLOCKINGS_KEPT))
    bytes_out: float = 0.0
    contention: float = 0.0
    cpu_s: float = 0.0
    suspicious: int = 0
    caution: float = 1.0

    def add(self, stage: StageObservation, window_s: float, saturated: bool) -> bool:
        """Add a window; whether the stage has drifted, in which case older windows are forgotten."""
        if stage.services <= 0 or window_s <= 0:
            return False
        busy, cpu_s = stage.busy_s / window_s, stage.busy_s / stage.services
        drifted = self._has_drifted(busy, cpu_s, stage.services)
        self.caution = 1.0 + CALMING * (self.caution - 1.0)
        if drifted:
            self.caution *= CAUTION
            self.windows.clear()
            self.blockings.clear()
            self.suspicious = 0
        self.windows.append((busy, cpu_s, float(stage.services)))
        self._fit()
        self._add_blocking(max(stage.wall_s - stage.busy_s, 0.0) / stage.services, stage.services, saturated)
        self.bytes_out = max(stage.bytes_out / stage.services, FORGETTING * self.bytes_out)
        return drifted

    @property
    def blocking_s(self) -> float:
        """Seconds of a service without a CPU: the median over recent windows, by services.

        The first element of a worker process waits until the process has started: no mean would forget that soon.
        """
        passed, half = 0.0, sum(services for _, services in self.blockings) / 2.0
        for blocking_s, services in sorted(self.blockings):
            passed += services
            if passed >= half:
                return blocking_s
        return 0.0

    @property
    def believable(self) -> bool:
        """Whether a long wait has been seen often enough to be more than the start of a worker."""
        return len(self.windows) >= WINDOWS_WANTED or self.blocking_s <= LONG_WAIT * self.cpu_s

    def _add_blocking(self, blocking_s: float, services: int, saturated: bool) -> None:
        # Where all CPUs have been busy ever since, nothing is known of waits, and more workers would not help either.
        if not saturated:
            self.blockings.append((blocking_s, float(services)))
        elif (
            self.blockings and blocking_s < self.blocking_s
        ):  # a service that waits for a CPU blocks no longer than it seems to
            self.blockings.clear()
            self.blockings.append((blocking_s, float(services)))

    def at(self, busy: float) -> float:
        """CPU seconds of a service with so many workers busy."""
        return self.cpu_s * (1.0 + self.contention * max(busy - 1.0, 0.0))

    def _has_drifted(self, busy: float, cpu_s: float, services: int) -> bool:
        if not self.windows or self.cpu_s <= 0:
            return False
        off = abs(cpu_s / self.at(busy) - 1.0)
        # The error of this window's mean and that of the fit it is compared with.
        error = self._variation() * (1.0 / services + 1.0 / self._weight()) ** 0.5
        significant = off > NUM_ERRORS * self.caution * error
        self.suspicious = self.suspicious + 1 if significant and off > DRIFT else 0
        return self.suspicious >= 2 or (significant and off > JUMP)

    def _weight(self) -> float:
        return float(sum(self._weights(self.windows)))

    def _variation(self) -> float:
        """Coefficient of variation of single services, from how far the means of windows are apart."""
        squares = sum(n * (cpu_s / self.at(k) - 1.0) ** 2 for k, cpu_s, n in self.windows)
        return float(((PRIOR_WINDOWS + squares) / (PRIOR_WINDOWS + len(self.windows))) ** 0.5)

    def _fit(self) -> None:
        """The mean, and how it grows with the number of busy workers: cpu = c (1 + a (k - 1)), a >= 0."""
        weights = self._weights(self.windows)
        total = sum(weights)
        mean_x = sum(w * max(k - 1.0, 0.0) for w, (k, _, _) in zip(weights, self.windows, strict=True)) / total
        mean_y = sum(w * cpu_s for w, (_, cpu_s, _) in zip(weights, self.windows, strict=True)) / total
        slope = self._slope()
        if slope is not None:
            base = mean_y - slope * mean_x
            self.contention = min(slope / base, MAX_CONTENTION) if base > 0.05 * mean_y else self.contention
        self.cpu_s = mean_y / (1.0 + self.contention * mean_x)

    def _slope(self) -> float | None:
        """Weighted least squares over the windows, without spikes; None where k hardly varied.

        The CPU time of a service counts in the window it ends in: a very long one makes both `busy` and `cpu_s` of that
        window large, which looks like contention. So of three windows in a row the one with the median counts.
        """
        kept = list(self.windows)
        calm = [sorted(kept[i - 1 : i + 2], key=lambda each: each[1])[1] for i in range(1, len(kept) - 1)]
        if len(calm) < 3:
            return None
        weights = self._weights(calm)
        total = sum(weights)
        xs, ys = [max(k - 1.0, 0.0) for k, _, _ in calm], [cpu_s for _, cpu_s, _ in calm]
        mean_x = sum(w * x for w, x in zip(weights, xs, strict=True)) / total
        mean_y = sum(w * y for w, y in zip(weights, ys, strict=True)) / total
        variance = sum(w * (x - mean_x) ** 2 for w, x in zip(weights, xs, strict=True)) / total
        if variance <= (MIN_SPREAD * (mean_x + 1.0)) ** 2:
            return None
        points = list(zip(weights, xs, ys, strict=True))
        slope = sum(w * (x - mean_x) * (y - mean_y) for w, x, y in points) / total / variance
        squares = sum(w * (y - mean_y - slope * (x - mean_x)) ** 2 for w, x, y in points) / total
        error = (squares / variance / len(calm)) ** 0.5
        return slope if slope > NUM_ERRORS * error else 0.0

    @staticmethod
    def _weights(windows: Sequence[tuple[float, float, float]]) -> list[float]:
        return [n * FORGETTING**age for age, (_, _, n) in enumerate(reversed(windows))][::-1]


@dataclass
class Estimator:
    """All stages, and how often each is visited for an element delivered."""

    stages: dict[str, StageEstimate] = field(default_factory=dict)
    _visits: VisitRatios = field(default_factory=VisitRatios)

    def add(self, observation: Observation) -> list[str]:
        """Add a window.

        Returns:
            Names of the stages that have drifted.
        """
        busy = sum(stage.busy_s for stage in observation.stages)
        saturated = busy > SATURATED * observation.cpus * observation.window_s
        saturated = saturated or observation.machine_busy_ratio > SATURATED
        self._visits.add(observation)
        return [
            stage.name
            for stage in observation.stages
            if self.stages.setdefault(stage.name, StageEstimate()).add(stage, observation.window_s, saturated)
        ]

    @property
    def complete(self) -> bool:
        """Whether every stage has finished something and the consumer has got something."""
        first, *others = self.stages.values()
        measured = first.windows and all(each.windows and each.believable for each in others)
        return self._visits.known and bool(measured)

    def visits(self) -> dict[str, float]:
        """Services of each stage for an element delivered."""
        return self._visits.ratios()

    def rates(self, space: Space) -> list[StageRate]:
        """What each stage needs for an element delivered."""
        visits = self.visits()
        return [
            StageRate(
                name,
                cpu_s=max(visits[name] * each.cpu_s, 1e-9),
                blocking_s=visits[name] * each.blocking_s,
                contention=each.contention,
                max_workers=max_workers(space, name),
            )
            for name, each in self.stages.items()
        ]
