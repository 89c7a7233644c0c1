"""`StrategySelector`: finds out by measuring which of a policy's strategies is fastest on this job."""

from __future__ import annotations

import statistics
from collections.abc import Sequence

from headrace.errors import ConfigError
from headrace.scheduling.cost import Costs
from headrace.scheduling.graph import check_step
from headrace.scheduling.policies.base import Policy, PullStrategy, StepContext

__all__ = ["StrategySelector", "distinct_strategies", "make_selector"]

MEASURED_STEPS = 4
"""Of a trial, at its end. Before them are those whose batches were already read when the strategy changed: their
operators are those of the strategy before."""

PASSES = 2
"""Trials of each strategy, in turn: the speed of a machine that others share changes meanwhile."""

WARM_UP_STEPS = 10
"""At the beginning of a window, which belong to no trial: batches ahead have yet to be made."""

EVERY_STEPS = 512
"""Steps until all strategies are tried again: one step in ten at most pays the difference."""

GAIN = 1.03
"""How much faster a strategy must be than a plainer one: on a tie the plainer one is better."""


def distinct_strategies(
    strategies: Sequence[PullStrategy], *, num_groups: int, store_waits: bool, num_cores: int = 1
) -> list[PullStrategy]:
    """Strategies that build different steps; of those that build the same, the plainest.

    Args:
        strategies: The plainest last.
        num_groups: Parts into which features can be split.
        store_waits: Whether the store holds pulls back until the push they must see is applied.
        num_cores: Feature operators that may run at once.

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
    """A selector of the strategies that a policy has on this job; see `distinct_strategies`."""
    strategies = distinct_strategies(
        policy.strategies, num_groups=num_groups, store_waits=store_waits, num_cores=num_cores
    )
    return StrategySelector(strategies, num_ahead=policy.num_ahead)


class StrategySelector:
    """Tries strategies in turn on the job itself, and stays with the fastest; it is kept over windows.

    Early pulls take two requests, and their rows arrive while dense work runs; pulls by group take several; those sent
    ahead wait in the store. Each request costs processor time on both ends, and each group of features costs some by
    itself, which pays where the processor would rest otherwise, and not where it never does. Plain numbers, without a
    clock.

    Attributes:
        strategies: Those tried.
    """

    def __init__(self, strategies: Sequence[PullStrategy], *, num_ahead: int = 3) -> None:
        """Nothing is tried yet.

        Args:
            strategies: The plainest last; the first trial is of the first.
            num_ahead: Batches that may be read behind the next to train.
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
        """The strategy that builds the next step."""
        return self.strategies[self._now]

    @property
    def num_steps(self) -> int:
        """From the beginning until the fastest is known."""
        if len(self.strategies) == 1:
            return 0
        return WARM_UP_STEPS + PASSES * len(self.strategies) * (self._num_skipped + MEASURED_STEPS)

    def begin(self) -> None:
        """A window begins: its first steps tell nothing, and the trial under way begins anew."""
        self._num_warm_up, self._trial = WARM_UP_STEPS, []

    def learn(self, step_s: float) -> None:
        """A step has ended under the present strategy."""
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
