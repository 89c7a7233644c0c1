"""`StrategySelector`: measures which of a policy's strategies is fastest on this job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import check_step
from headrace.scheduling.policies.base import Policy, PullStrategy, StepContext

__all__ = ["StrategySelector", "distinct_strategies", "make_selector"]

MEASURED_STEPS = 4
"""Measured steps at the end of a trial. Earlier steps of the trial do not count, because their batches were read, and
their operators built, under the previous strategy."""

PASSES = 2
"""Trials per strategy, in turns, because the speed of a shared machine varies."""

WARM_UP_STEPS = 10
"""Steps at the start of a window that belong to no trial, because rows of its first batches are not pulled ahead."""

EVERY_STEPS = 512
"""Steps until all strategies are tried again; at most one step in ten runs a slower strategy."""

GAIN = 1.03
"""Minimum speedup over a simpler strategy, so that the simpler one wins a tie."""


def distinct_strategies(
    strategies: Sequence[PullStrategy], *, num_groups: int, store_waits: bool, num_cores: int = 1
) -> list[PullStrategy]:
    """Strategies that build different steps; of those that build the same, only the simplest.

    Args:
        strategies: Strategies, the simplest last.
        num_groups: Number of feature groups.
        store_waits: Whether the store holds pulls back until the push they must include is applied.
        num_cores: Number of feature operators that may run at once.

    Raises:
        ConfigError: A strategy builds a step that cannot run; see `check_step`.
    """
    step = StepContext(1, num_groups, store_waits, num_cores, Costs(num_groups))
    kept: list[PullStrategy] = []
    built: list[object] = []
    for strategy in reversed(strategies):
        nodes = list(strategy.build(step))
        try:
            check_step(nodes, step.batch, num_groups)
        except ValueError as error:
            raise ConfigError(f"scheduling strategy {strategy.name!r}: {error}") from error
        if nodes not in built:
            built.append(nodes)
            kept.append(strategy)
    return kept[::-1]


def make_selector(policy: Policy, *, num_groups: int, store_waits: bool, num_cores: int = 1) -> StrategySelector:
    """Create a selector for a policy's strategies on this job; see `distinct_strategies`."""
    strategies = distinct_strategies(
        policy.strategies, num_groups=num_groups, store_waits=store_waits, num_cores=num_cores
    )
    return StrategySelector(strategies, num_ahead=policy.num_ahead)


class StrategySelector:
    """Tries strategies in turn during training and keeps the fastest, across windows.

    Early pulls take two requests, pulls by group take several, and pulls sent ahead wait in the store. Each request
    costs CPU time on both ends, and each feature group has a fixed cost. This pays off if the CPU would otherwise be
    idle, and not if it never is. Plain numbers, without a clock.

    Attributes:
        strategies: The strategies to try.
    """

    def __init__(self, strategies: Sequence[PullStrategy], *, num_ahead: int = 3) -> None:
        """Start without measurements.

        Args:
            strategies: Strategies, the simplest last; trials start with the first.
            num_ahead: Number of batches that may be read ahead of the next one to train.
        """
        self.strategies = tuple(strategies)
        self._num_skipped = num_ahead + 1
        self._num_warm_up, self._num_settled = WARM_UP_STEPS, 0
        self._now = 0
        self._trials: list[int] = []
        self._trial: list[float] = []
        self._seconds: list[list[float]] = []
        self._begin_trials()

    @property
    def strategy(self) -> PullStrategy:
        """The strategy for the next step."""
        return self.strategies[self._now]

    @property
    def num_steps(self) -> int:
        """Number of steps until the fastest strategy is known."""
        if len(self.strategies) == 1:
            return 0
        return WARM_UP_STEPS + PASSES * len(self.strategies) * (self._num_skipped + MEASURED_STEPS)

    def begin(self) -> None:
        """Start a window: its first steps are ignored, and the current trial restarts."""
        self._num_warm_up, self._trial = WARM_UP_STEPS, []

    def learn(self, step_s: float) -> None:
        """Record the time of a step under the current strategy."""
        if len(self.strategies) == 1:
            return
        if self._num_warm_up:
            self._num_warm_up -= 1
        elif self._trials:
            self._try(step_s)
        else:
            self._num_settled += 1
            if self._num_settled == EVERY_STEPS:
                self._begin_trials()

    def _try(self, step_s: float) -> None:
        self._trial.append(step_s)
        if len(self._trial) < self._num_skipped + MEASURED_STEPS:
            return
        self._seconds[self._trials.pop(0)] += self._trial[self._num_skipped :]
        self._trial = []
        if self._trials:
            self._now = self._trials[0]
        else:
            self._now, self._num_settled = self._fastest(), 0

    def _begin_trials(self) -> None:
        self._trials = [*range(len(self.strategies))] * PASSES
        self._seconds = [[] for _ in self.strategies]
        self._trial = []
        self._now = 0

    def _fastest(self) -> int:
        medians = [statistics.median(seconds) for seconds in self._seconds]
        best = len(self.strategies) - 1
        for number in reversed(range(len(self.strategies))):
            if medians[number] * GAIN <= medians[best]:
                best = number
        return best
