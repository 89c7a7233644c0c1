"""`Plumber`: traces once, solves a linear program and applies the result; arXiv 2111.04131, section 5, without caching.

maximise X subject to X <= theta_i R_i for every stage, sum of theta_i <= cores, theta_i <= 1 for sequential stages,
with R_i elements delivered per CPU second of stage i. For a chain the optimum is X = min(cores / sum of 1/R_i, min over
sequential stages of R_s) and theta_i = X / R_i; whole workers come from the same program over integers, solved by
bisection.
"""

from __future__ import annotations

from headrace.tuning.measuring import LifelongMeans, max_workers
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.policies.relaunched import Relaunched
from headrace.tuning.rates import StageRate, fluid_rate, integer_split
from headrace.tuning.space import Space, workers_of
from headrace.tuning.visits import VisitRatios

__all__ = ["Plumber", "linear_program"]

TRACE_S = 60.0
"""Length of the trace: "about a minute", or until the throughput estimate changes by less than 1 % (section 5.1)."""
STEADY = 0.01
MIN_DELIVERED = 100
"""Minimum elements for a steady estimate; fewer are dominated by the pipeline filling up."""


def linear_program(stages: list[StageRate], cores: float) -> tuple[float, list[float]]:
    """The optimum X, and theta of each stage, in closed form."""
    rate = fluid_rate(stages, cores)
    return rate, [rate * stage.cpu_s for stage in stages]


class Plumber:
    """Traces with one worker per stage, then sets the solution once."""

    def __init__(self, trace_s: float = TRACE_S, min_delivered: int = MIN_DELIVERED) -> None:
        """Configure the trace.

        Args:
            trace_s: Maximum length in seconds.
            min_delivered: Minimum elements before it can be steady.
        """
        self._trace_s, self._min_delivered = trace_s, min_delivered

    def start(self, space: Space, observation: Observation) -> Proposal:
        """Set one worker per stage for the trace."""
        self._space, self._cores = space, max(1, int(observation.cpus))
        self._means, self._visits = LifelongMeans(), VisitRatios()
        self._began_s, self._last_rate, self._done = observation.time_s, 0.0, False
        return Proposal({knob.name: knob.min for _, knob in space.worker_knobs()}, "one worker per stage for the trace")

    def decide(self, observation: Observation) -> Proposal:
        """Continue the trace, or set the solution once."""
        if self._done:
            return Proposal(reason="workers are assigned only once")
        self._means.add(observation)
        self._visits.add(observation)
        elapsed = observation.time_s - self._began_s
        rate = self._means.delivered / elapsed if elapsed > 0 else 0.0
        steady = self._means.delivered >= self._min_delivered and abs(rate - self._last_rate) < STEADY * rate
        self._last_rate = rate
        if not self._means.complete or not (steady or elapsed >= self._trace_s):
            return Proposal(reason=f"the trace has run for {elapsed:.3g} s and is not steady yet")
        self._done = True
        rates = self._rates()
        predicted, _ = linear_program(rates, self._cores)
        workers, _ = integer_split(rates, self._cores)
        values = {workers_of(stage.name): k for stage, k in zip(rates, workers, strict=True)}
        return Proposal(self._space.clip(values), f"linear program for {self._cores} cores: {predicted:.4g} per second")

    def _rates(self) -> list[StageRate]:
        """Each stage's needs per delivered element, from the CPU clock alone and linear."""
        visits = self._visits.ratios()
        return [
            StageRate(
                name,
                cpu_s=max(visits[name] * means.busy_s / means.services, 1e-9),
                max_workers=max_workers(self._space, name),
            )
            for name, means in self._means.stages.items()
        ]


def adaptive() -> Relaunched:
    """Plumber in a job that is restarted at each resize."""
    return Relaunched(Plumber)
