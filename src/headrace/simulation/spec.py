"""Specifications of simulated pipelines and machines, as validated plain data."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from enum import IntEnum
from typing import Self

from headrace.errors import ConfigError

__all__ = ["Distribution", "Drift", "Machine", "MachinePhase", "PipelineSpec", "StageSpec"]


class Distribution(IntEnum):
    """Distribution of a stage's service times and output sizes around their mean, with parameter `spread`."""

    CONSTANT = 0
    """Constant; `spread` is not used."""
    EXPONENTIAL = 1
    """Exponential; `spread` is not used."""
    LOGNORMAL = 2
    """`spread` is the coefficient of variation (standard deviation / mean)."""
    PARETO = 3
    """Heavy-tailed; `spread` is the tail index, above 1 (below 2 the variance is infinite)."""


@dataclass(frozen=True, kw_only=True)
class Drift:
    """A change of the mean service time: from a factor of 1 to `factor`, linearly between two times.

    A step change starts and ends at the same time.
    """

    factor: float
    start_s: float
    end_s: float

    def __post_init__(self) -> None:
        if self.factor <= 0 or self.end_s < self.start_s:
            raise ConfigError(f"drift: given {self}, expected factor > 0 and start_s <= end_s")


@dataclass(frozen=True, kw_only=True)
class StageSpec:
    """Specification of one stage.

    A *service* takes `num_inputs` elements from the previous stage, first blocks for `io_s` without a CPU, then holds
    one CPU for `cpu_s`, and outputs `num_outputs` elements in order.

    Attributes:
        name: Unique in the pipeline.
        cpu_s: Mean CPU seconds per service with one busy worker.
        io_s: Mean seconds per service blocked on I/O.
        distribution: Distribution of `cpu_s` and `io_s`.
        spread: See `Distribution`.
        contention: `a` in the concave rate k / (cpu_s * (1 + a * (k - 1))) of k workers on the CPU at once.
        max_workers: Maximum workers; 1 for a sequential stage.
        num_inputs: Input elements per service (a batch size); not used by the first stage.
        num_outputs: Output elements per service.
        buffer: Services that a stage may finish ahead, in addition to those in progress. Elements leave in order, to
            the queue of the next stage's workers (one more than their number).
        output_bytes: Mean output bytes per service.
        bytes_distribution: Distribution of `output_bytes`.
        bytes_spread: See `Distribution`.
        scratch_bytes: Extra memory of a service while it runs.
        drift: Changes of `cpu_s` and `io_s` over time.
    """

    name: str
    cpu_s: float
    io_s: float = 0.0
    distribution: Distribution = Distribution.CONSTANT
    spread: float = 0.0
    contention: float = 0.0
    max_workers: int = 512
    num_inputs: int = 1
    num_outputs: int = 1
    buffer: int = 2
    output_bytes: float = 0.0
    bytes_distribution: Distribution = Distribution.CONSTANT
    bytes_spread: float = 0.0
    scratch_bytes: float = 0.0
    drift: Drift | None = None

    def __post_init__(self) -> None:
        if not all(math.isfinite(x) and x >= 0 for x in (self.cpu_s, self.io_s, self.contention, self.output_bytes)):
            raise ConfigError(f"stage {self.name!r}: times, contention and bytes must be finite and not negative")
        if self.cpu_s + self.io_s <= 0:
            raise ConfigError(f"stage {self.name!r}: given cpu_s 0 and io_s 0, expected a service that takes time")
        if min(self.max_workers, self.num_inputs, self.num_outputs) < 1 or self.buffer < 0:
            raise ConfigError(
                f"stage {self.name!r}: expected workers, inputs and outputs of at least 1, and a buffer of at least 0"
            )
        for distribution, spread in ((self.distribution, self.spread), (self.bytes_distribution, self.bytes_spread)):
            if distribution is Distribution.PARETO and spread <= 1:
                raise ConfigError(f"stage {self.name!r}: given tail index {spread}, expected > 1 (else no mean exists)")
            if distribution is Distribution.LOGNORMAL and spread <= 0:
                raise ConfigError(f"stage {self.name!r}: given coefficient of variation {spread}, expected > 0")

    @property
    def sequential(self) -> bool:
        """Whether only one worker is possible."""
        return self.max_workers == 1

    def scale_at(self, time_s: float) -> float:
        """Factor on the mean service time at a given time."""
        if self.drift is None or time_s < self.drift.start_s:
            return 1.0
        if time_s >= self.drift.end_s:
            return self.drift.factor
        share = (time_s - self.drift.start_s) / (self.drift.end_s - self.drift.start_s)
        return 1.0 + (self.drift.factor - 1.0) * share


@dataclass(frozen=True, kw_only=True)
class PipelineSpec:
    """Specification of a chain of stages and its consumer.

    Attributes:
        stages: Stages in order, from source to consumer.
        consumer_s: Mean seconds that the consumer works on an element.
        consumer_distribution: Distribution of `consumer_s`.
        consumer_spread: See `Distribution`.
        base_bytes: Memory of the process without elements.
        ledger_bytes: Memory budget of elements in flight: a service starts only with a reservation. None for no ledger.
    """

    stages: tuple[StageSpec, ...]
    consumer_s: float = 0.0
    consumer_distribution: Distribution = Distribution.CONSTANT
    consumer_spread: float = 0.0
    base_bytes: float = 0.0
    ledger_bytes: float | None = None

    def __post_init__(self) -> None:
        names = [stage.name for stage in self.stages]
        if not names or len(set(names)) != len(names):
            raise ConfigError(f"pipeline: given stages {names}, expected at least one, each name once")
        if self.consumer_s < 0:
            raise ConfigError(f"pipeline: given consumer_s {self.consumer_s}, expected at least 0")

    def visit_ratios(self) -> list[float]:
        """Services of each stage per delivered element, from the batch ratios."""
        ratios, visits = [], 1.0
        for stage in reversed(self.stages):
            visits /= stage.num_outputs
            ratios.append(visits)
            visits *= stage.num_inputs
        return ratios[::-1]

    def with_ledger(self, ledger_bytes: float | None) -> Self:
        """A copy of the pipeline with a different memory budget."""
        return replace(self, ledger_bytes=ledger_bytes)


@dataclass(frozen=True, kw_only=True)
class MachinePhase:
    """CPUs and memory from a given time on."""

    start_s: float
    cpus: int
    memory_bytes: float = math.inf


@dataclass(frozen=True, kw_only=True)
class Machine:
    """CPUs and memory over time."""

    phases: tuple[MachinePhase, ...] = field(default=(MachinePhase(start_s=0.0, cpus=1),))

    def __post_init__(self) -> None:
        starts = [phase.start_s for phase in self.phases]
        if not starts or starts[0] != 0 or starts != sorted(set(starts)):
            raise ConfigError(f"machine: given phases that start at {starts}, expected ascending times from 0")
        if min(phase.cpus for phase in self.phases) < 1:
            raise ConfigError("machine: given a phase without CPUs, expected at least 1")

    @classmethod
    def fixed(cls, cpus: int, memory_bytes: float = math.inf) -> Self:
        """A machine with constant resources."""
        return cls(phases=(MachinePhase(start_s=0.0, cpus=cpus, memory_bytes=memory_bytes),))

    @classmethod
    def schedule(cls, cpus: Sequence[int], phase_s: float, memory_bytes: float = math.inf) -> Self:
        """A machine resized at regular intervals, as in InTune's evaluation (32-64-128-64-32)."""
        phases = (MachinePhase(start_s=i * phase_s, cpus=n, memory_bytes=memory_bytes) for i, n in enumerate(cpus))
        return cls(phases=tuple(phases))

    def at(self, time_s: float) -> MachinePhase:
        """The phase at a given time; a phase includes its start."""
        return [phase for phase in self.phases if phase.start_s <= time_s][-1]
