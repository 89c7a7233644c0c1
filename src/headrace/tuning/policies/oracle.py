"""`Oracle`: knows the true service times and picks the best of many settings by simulating each.

Only for simulation and emulation, where it is the upper bound for other policies.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import lru_cache

from headrace.simulation import Distribution, Machine, PipelineSimulator, PipelineSpec
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.rates import StageRate, fluid_rate, integer_split
from headrace.tuning.space import Space, workers_of

__all__ = ["Oracle", "best_setting", "true_rates"]

HEADROOMS = (0.0, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0)
"""Extra workers beyond the closed form, because some help with heavy tails and rounding."""
TRIAL_ELEMENTS = 1000
"""Elements delivered per trial, enough to distinguish settings 1 % apart if service times are constant ..."""
RANDOM_TRIALS, RANDOM_ELEMENTS = 4, 4000
"""... and for random service times, the number and length of trials, the same for every setting."""
UNLIMITED = (1, 4)
"""... and this multiple of the CPUs for every stage, to work as far ahead of a slow element as possible."""
WORTH_CLIMBING = 0.99
"""From the best of those it climbs by doubling one stage's workers, while this gains 1 %."""
MAX_TRIED_WORKERS = 4096
DRIFT_STEP = 0.05
"""It solves again when a true mean has moved by this share."""


def true_rates(spec: PipelineSpec, time_s: float = 0.0) -> list[StageRate]:
    """The true needs of each stage per delivered element, at a time."""
    return [
        StageRate(
            stage.name,
            cpu_s=visits * stage.cpu_s * stage.scale_at(time_s),
            blocking_s=visits * stage.io_s * stage.scale_at(time_s),
            contention=stage.contention,
            max_workers=stage.max_workers,
        )
        for stage, visits in zip(spec.stages, spec.visit_ratios(), strict=True)
    ]


def best_setting(spec: PipelineSpec, cpus: int, time_s: float = 0.0) -> tuple[dict[str, int], float]:
    """Find the workers by stage with the highest rate in trials; returns them with that rate in elements per second.

    Args:
        spec: The true pipeline.
        cpus: CPUs of the machine.
        time_s: Time at which a drifting pipeline is frozen.
    """
    still = replace(
        spec,
        stages=tuple(
            replace(each, cpu_s=each.cpu_s * f, io_s=each.io_s * f, drift=None)
            for each in spec.stages
            if (f := each.scale_at(time_s))
        ),
    )
    workers, rate = _best(still, cpus)
    return {stage.name: k for stage, k in zip(spec.stages, workers, strict=True)}, rate


@lru_cache(maxsize=256)
def _best(still: PipelineSpec, cpus: int) -> tuple[tuple[int, ...], float]:
    rates = true_rates(still)
    most = fluid_rate(rates, cpus)
    if still.consumer_s > 0:
        most = min(most, 1.0 / still.consumer_s)
    tried = [(_trial(still, cpus, workers, most), workers) for workers in _candidates(rates, cpus, most)]
    rate, workers = max(tried, key=lambda each: (each[0], -sum(each[1])))
    while rate < WORTH_CLIMBING * most:
        doubled = [
            [
                min(stage.max_workers, k * (2 if i == chosen else 1))
                for i, (stage, k) in enumerate(zip(rates, workers, strict=True))
            ]
            for chosen in range(len(rates))
        ]
        best = max((_trial(still, cpus, each, most), each) for each in doubled if sum(each) < MAX_TRIED_WORKERS)
        if best[0] <= rate / WORTH_CLIMBING:
            break
        rate, workers = best
    return tuple(workers), rate


def _candidates(rates: Sequence[StageRate], cpus: int, most: float) -> Iterator[list[int]]:
    yield integer_split(rates, cpus)[0]
    for factor in UNLIMITED:  # CPUs are shared, so extra workers cost nothing
        yield [min(stage.max_workers, factor * cpus) for stage in rates]
    for headroom in HEADROOMS:
        wanted = ((1 + headroom) * min(stage.workers_for(most), 4.0 * cpus) for stage in rates)
        # Rounded up plus one: a spare worker keeps the stage from idling.
        yield [min(stage.max_workers, int(-(-k // 1)) + (headroom > 0)) for stage, k in zip(rates, wanted, strict=True)]


def _trial(spec: PipelineSpec, cpus: int, workers: Sequence[int], most: float) -> float:
    random = any(stage.distribution is not Distribution.CONSTANT for stage in spec.stages)
    trials, elements = (RANDOM_TRIALS, RANDOM_ELEMENTS) if random else (1, TRIAL_ELEMENTS)
    seconds, delivered = elements / most, 0
    for seed in range(trials):
        simulator = PipelineSimulator(spec, Machine.fixed(cpus), seed=seed)
        for stage, k in zip(spec.stages, workers, strict=True):
            simulator.set_workers(stage.name, max(1, k))
        simulator.run(seconds / 2)
        delivered += simulator.run(seconds)
    return delivered / (trials * seconds)


class Oracle:
    """Sets the best workers at the start, at each resize, and when true means drift."""

    def __init__(self, spec: PipelineSpec) -> None:
        """Use the true pipeline `spec`."""
        self._spec = spec

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Set the best workers for this machine."""
        self._space = space
        return self._solve(observation)

    def decide(self, observation: Observation) -> Proposal:
        """Solve again if the machine or the pipeline has changed."""
        scales = [stage.scale_at(observation.time_s) for stage in self._spec.stages]
        moved = any(abs(now / then - 1) > DRIFT_STEP for now, then in zip(scales, self._scales, strict=True))
        if observation.cpus == self._cpus and not moved:
            return Proposal(reason="machine and pipeline are unchanged")
        return self._solve(observation)

    def _solve(self, observation: Observation) -> Proposal:
        self._cpus = observation.cpus
        self._scales = [stage.scale_at(observation.time_s) for stage in self._spec.stages]
        workers, rate = best_setting(self._spec, max(1, int(observation.cpus)), observation.time_s)
        values = self._space.clip({workers_of(name): k for name, k in workers.items()})
        return Proposal(values, f"best setting found for {observation.cpus:g} CPUs: {rate:.4g} per second")
