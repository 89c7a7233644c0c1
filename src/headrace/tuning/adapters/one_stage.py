"""`OneStageJob`: base of the adapters: a loader as a single stage with one adjustable number of workers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any

import psutil

from headrace.resources import Resources, effective_resources
from headrace.tuning.observation import Observation, StageObservation
from headrace.tuning.space import Knob, Space, workers_of

__all__ = ["MAX_WORKERS", "OneStageJob", "Totals"]

MAX_WORKERS = 64
"""Default maximum of workers, which are processes or whole CPUs here."""
STARVED = 0.5
"""The time per batch can be inferred from windows in which the consumer waits for more than this share."""


@dataclass
class Totals:
    """Counts since the loader was created, updated as batches are taken.

    Attributes:
        delivered: Batches taken.
        wait_s: Seconds the consumer waited for batches.
        busy_s: Seconds the consumer worked on batches.
        services: Batches whose production was timed; 0 if the library gives no times.
        cpu_s: CPU seconds to produce them.
        wall_s: Wall seconds to produce them, summed over workers.
        num_bytes: Bytes of the batches.
    """

    delivered: int = 0
    wait_s: float = 0.0
    busy_s: float = 0.0
    services: int = 0
    cpu_s: float = 0.0
    wall_s: float = 0.0
    num_bytes: int = 0

    def since(self, before: Totals) -> Totals:
        """The difference from an earlier copy."""
        return Totals(*(getattr(self, each.name) - getattr(before, each.name) for each in fields(Totals)))

    def copy(self) -> Totals:
        """A copy of the current counts."""
        return self.since(Totals())


class OneStageJob:
    """Counts batches and reports observations; subclasses hold the loader and set its workers.

    Attributes:
        totals: Counts so far.
        window_s: Useful seconds between observations: the time until a change shows.
    """

    window_s = 1.0

    def __init__(
        self,
        stage: str,
        workers: int,
        *,
        max_workers: int = MAX_WORKERS,
        resources: Callable[[], Resources] = effective_resources,
    ) -> None:
        """Start counting.

        Args:
            stage: Name of the stage.
            workers: Initial number of workers.
            max_workers: Maximum number of workers.
            resources: Returns the CPUs and memory that this process may use now.
        """
        self.totals = Totals()
        self._stage, self._max_workers, self._resources = stage, max_workers, resources
        self._workers = min(max(workers, 1), max_workers)
        self._process = psutil.Process()
        self._began = self._last = time.monotonic()
        self._before = Totals()
        self._batch_s = 0.0

    @property
    def workers(self) -> int:
        """The number of workers, including changes that have not taken effect yet."""
        return self._workers

    @property
    def space(self) -> Space:
        """The workers knob."""
        return Space((Knob(workers_of(self._stage), 1, self._max_workers, "workers"),))

    def apply(self, values: Mapping[str, int]) -> None:
        """Set the number of workers. Thread-safe."""
        for name, value in values.items():
            self._workers = self.space[name].clip(value)

    def observe(self) -> Observation:
        """Measure the window since the last call."""
        now, totals, resources = time.monotonic(), self.totals.copy(), self._resources()
        window_s, self._last = now - self._last, now
        passed, self._before = totals.since(self._before), totals
        stage = self._timed(passed) if passed.services else self._inferred(passed, window_s)
        return Observation(
            time_s=now - self._began,
            window_s=window_s,
            stages=(stage,),
            values={workers_of(self._stage): self._workers},
            delivered=passed.delivered,
            consumer_s=passed.busy_s,
            starved_s=passed.wait_s,
            cpus=resources.cpus.count,
            memory_limit_bytes=resources.memory.limit_bytes,
            memory_used_bytes=self._process.memory_info().rss,
        )

    def _timed(self, passed: Totals) -> StageObservation:
        return StageObservation(
            name=self._stage,
            workers=self._workers,
            services=passed.services,
            busy_s=passed.cpu_s,
            wall_s=passed.wall_s,
            bytes_out=passed.num_bytes,
            visit_ratio=passed.services / passed.delivered if passed.delivered else 0.0,
        )

    def _inferred(self, passed: Totals, window_s: float) -> StageObservation:
        """Infer the stage's times if its library gives none: while the consumer waits, all workers are busy.

        A window without waiting only gives an upper bound on the time per batch.
        """
        if passed.delivered:
            most_s = self._workers * window_s / passed.delivered
            told = passed.wait_s > STARVED * window_s
            self._batch_s = most_s if told or not self._batch_s else min(most_s, self._batch_s)
        wall_s = passed.delivered * self._batch_s
        return StageObservation(
            name=self._stage,
            workers=self._workers,
            services=passed.delivered,
            busy_s=min(passed.cpu_s, wall_s) if passed.cpu_s else wall_s,
            wall_s=wall_s,
            visit_ratio=1.0 if passed.delivered else 0.0,
        )

    def _count(self, batches: Iterator[Any]) -> Iterator[Any]:
        """Pass batches on, counting them, the waits for them, and the time between them."""
        asked = time.perf_counter()
        for batch in batches:
            came = time.perf_counter()
            self.totals.wait_s += came - asked
            self.totals.delivered += 1
            yield batch
            asked = time.perf_counter()
            self.totals.busy_s += asked - came
