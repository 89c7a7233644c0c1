"""`Plumber`: trace once, solve its linear program, set the result; arXiv 2111.04131, section 5, caching off.

maximise X subject to X <= theta_i R_i for every stage, sum of theta_i <= cores, theta_i <= 1 for sequential stages,
with R_i elements delivered per CPU second of stage i. On a chain the optimum is X = min(cores / sum of 1/R_i, min over
sequential stages of R_s) and theta_i = X / R_i; whole workers come from the same program over integers, by bisection.
"""

from __future__ import annotations

from headrace.tuning.measuring import LifelongMeans
from headrace.tuning.observation import Observation
from headrace.tuning.policies.base import Proposal
from headrace.tuning.rates import StageRate, fluid_rate, integer_split
from headrace.tuning.space import Space, workers_of

__all__ = ["Plumber", "linear_program"]

TRACE_S = 60.0
"""It traces "about a minute", or until the throughput estimate moves by less than 1 % (section 5.1)."""
STEADY = 0.01
MIN_DELIVERED = 100
"""Elements before the estimate may count as steady: fewer are dominated by the pipeline filling up."""


def linear_program(stages: list[StageRate], cores: float) -> tuple[float, list[float]]:
    """The optimum X, and theta of each stage, in closed form."""
    rate = fluid_rate(stages, cores)
    return rate, [rate * stage.cpu_s for stage in stages]


class Plumber:
    """Traces with one worker a stage, then sets the solution and leaves it."""

    def start(self, space: Space, observation: Observation) -> Proposal:
        """One worker a stage, for the trace."""
        self._space, self._cores = space, max(1, int(observation.cpus))
        self._means = LifelongMeans()
        self._began_s, self._last_rate, self._done = observation.time_s, 0.0, False
        return Proposal({knob.name: knob.min for _, knob in space.worker_knobs()}, "one worker a stage, to trace")

    def decide(self, observation: Observation) -> Proposal:
        """Go on tracing, or set the solution, once."""
        if self._done:
            return Proposal(reason="nothing, because the program was solved once")
        self._means.add(observation)
        elapsed = observation.time_s - self._began_s
        rate = self._means.delivered / elapsed if elapsed > 0 else 0.0
        steady = self._means.delivered >= MIN_DELIVERED and abs(rate - self._last_rate) < STEADY * rate
        self._last_rate = rate
        if not self._means.complete or not (steady or elapsed >= TRACE_S):
            return Proposal(reason=f"nothing, because the trace has run for {elapsed:.3g} s and is not steady")
        self._done = True
        rates = self._means.cpu_rates(self._space)
        predicted, _ = linear_program(rates, self._cores)
        workers, _ = integer_split(rates, self._cores)
        values = {workers_of(stage.name): k for stage, k in zip(rates, workers, strict=True)}
        return Proposal(self._space.clip(values), f"linear program for {self._cores} cores: {predicted:.4g} a second")
