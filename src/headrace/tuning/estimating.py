"""Estimates each stage's *recent* needs: windowed means, a concave fit over busy workers, and drift detection."""

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
"""Weight of a window relative to the next newer one; the half-life is about four windows."""
DRIFT = 0.1
"""A stage has drifted if its CPU time per service deviates from the fit by this share in two consecutive windows ..."""
NUM_ERRORS = 4.0
"""... and by this many standard errors of a window's mean, because single services deviate without any drift."""
CAUTION = 2.0
"""Each detected drift multiplies the standard errors needed for the next, because none fit heavy tails ..."""
CALMING = 0.98
"""... and the extra factor decays to this share with each window without drift: half after 34 windows."""
JUMP = 0.5
"""A single window is enough if it deviates by this share and by this many standard errors."""
PRIOR_WINDOWS = 2.0
"""Prior weight of a coefficient of variation of 1, until windows show how much services vary."""
MIN_SPREAD = 0.3
"""Contention is fitted only if the numbers of busy workers seen vary by this share of their mean."""
MAX_CONTENTION = 0.5
BLOCKINGS_KEPT = 9
WINDOWS_WANTED, LONG_WAIT = 3, 4.0
"""A wait of more than this multiple of the CPU time is trusted only after this many windows, except for the source,
which runs in threads."""
SATURATED = 0.95
"""Above this CPU utilisation, waiting for a CPU cannot be distinguished from blocking."""


@dataclass
class StageEstimate:
    """Recent windows of one stage: (busy workers, CPU seconds per service, services)."""

    windows: deque[tuple[float, float, float]] = field(default_factory=lambda: deque(maxlen=WINDOWS_KEPT))
    blockings: deque[tuple[float, float]] = field(default_factory=lambda: deque(maxlen=BLOCKINGS_KEPT))
    bytes_out: float = 0.0
    contention: float = 0.0
    cpu_s: float = 0.0
    suspicious: int = 0
    caution: float = 1.0

    def add(self, stage: StageObservation, window_s: float, saturated: bool) -> bool:
        """Add a window; returns whether the stage has drifted, in which case older windows are dropped."""
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
        """Seconds per service without a CPU: the median over recent windows, weighted by services.

        The first element of a worker process waits until the process has started, which would distort a mean for long.
        """
        passed, half = 0.0, sum(services for _, services in self.blockings) / 2.0
        for blocking_s, services in sorted(self.blockings):
            passed += services
            if passed >= half:
                return blocking_s
        return 0.0

    @property
    def believable(self) -> bool:
        """Whether a long wait has been seen often enough not to be just the start of a worker."""
        return len(self.windows) >= WINDOWS_WANTED or self.blocking_s <= LONG_WAIT * self.cpu_s

    def _add_blocking(self, blocking_s: float, services: int, saturated: bool) -> None:
        # If all CPUs have been busy all the time, nothing is known about waits, and more workers would not help anyway.
        if not saturated:
            self.blockings.append((blocking_s, float(services)))
        elif self.blockings and blocking_s < self.blocking_s:  # waiting for a CPU can only make blocking look longer
            self.blockings.clear()
            self.blockings.append((blocking_s, float(services)))

    def at(self, busy: float) -> float:
        """CPU seconds per service with `busy` workers busy."""
        return self.cpu_s * (1.0 + self.contention * max(busy - 1.0, 0.0))

    def _has_drifted(self, busy: float, cpu_s: float, services: int) -> bool:
        if not self.windows or self.cpu_s <= 0:
            return False
        off = abs(cpu_s / self.at(busy) - 1.0)
        # The errors of this window's mean and of the fit.
        error = self._variation() * (1.0 / services + 1.0 / self._weight()) ** 0.5
        significant = off > NUM_ERRORS * self.caution * error
        self.suspicious = self.suspicious + 1 if significant and off > DRIFT else 0
        return self.suspicious >= 2 or (significant and off > JUMP)

    def _weight(self) -> float:
        return float(sum(self._weights(self.windows)))

    def _variation(self) -> float:
        """Coefficient of variation of single services, estimated from the spread of window means."""
        squares = sum(n * (cpu_s / self.at(k) - 1.0) ** 2 for k, cpu_s, n in self.windows)
        return float(((PRIOR_WINDOWS + squares) / (PRIOR_WINDOWS + len(self.windows))) ** 0.5)

    def _fit(self) -> None:
        """Fit the mean and its growth with the number of busy workers: cpu = c (1 + a (k - 1)), a >= 0."""
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
        """Weighted least squares over the windows, without spikes; None if k hardly varied.

        The CPU time of a service counts in the window in which it ends. A very long service makes both `busy` and
        `cpu_s` of that window large, which looks like contention. So a median filter over three consecutive windows is
        used.
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
    """Estimates of all stages, and of their visits per delivered element."""

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
        """Whether every stage has finished an element and the consumer has received one."""
        first, *others = self.stages.values()
        measured = first.windows and all(each.windows and each.believable for each in others)
        return self._visits.known and bool(measured)

    def visits(self) -> dict[str, float]:
        """Services of each stage per delivered element."""
        return self._visits.ratios()

    def rates(self, space: Space) -> list[StageRate]:
        """The needs of each stage per delivered element."""
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
