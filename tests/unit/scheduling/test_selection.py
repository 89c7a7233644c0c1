"""Which strategy pays: each is tried in turn, and the fastest one stays."""

import pytest

from headrace.scheduling.policies import PullStrategy
from headrace.scheduling.policies.strategies import AHEAD, AT_ONCE, BY_GROUP, EARLY
from headrace.scheduling.selection import (
    EVERY_STEPS,
    MEASURED_STEPS,
    PASSES,
    WARM_UP_STEPS,
    StrategySelector,
    distinct_strategies,
)

STRATEGIES = (EARLY, BY_GROUP, AT_ONCE)
PHASE_STEPS = 4 + MEASURED_STEPS
TRIALS = PASSES * ([EARLY] * PHASE_STEPS + [BY_GROUP] * PHASE_STEPS + [AT_ONCE] * PHASE_STEPS)
DECIDED = WARM_UP_STEPS + len(TRIALS)


def run(selector: StrategySelector, num_steps: int, seconds: dict[PullStrategy, float]) -> list[PullStrategy]:
    strategies = []
    for _ in range(num_steps):
        strategies.append(selector.strategy)
        selector.learn(seconds[selector.strategy])
    return strategies


@pytest.mark.parametrize("fastest", STRATEGIES)
def test_all_are_tried_and_the_fastest_one_stays(fastest: PullStrategy) -> None:
    seconds = dict.fromkeys(STRATEGIES, 1.5) | {fastest: 1.0}
    strategies = run(StrategySelector(STRATEGIES), DECIDED + EVERY_STEPS, seconds)
    assert strategies[:WARM_UP_STEPS] == [EARLY] * WARM_UP_STEPS
    assert strategies[WARM_UP_STEPS:DECIDED] == TRIALS
    assert set(strategies[DECIDED:]) == {fastest}


def test_on_a_tie_the_plainest_one_stays() -> None:
    assert run(StrategySelector(STRATEGIES), DECIDED + 1, dict.fromkeys(STRATEGIES, 1.0))[-1] == AT_ONCE


def test_single_slow_steps_and_a_slow_beginning_decide_nothing() -> None:
    selector = StrategySelector(STRATEGIES)
    for number in range(DECIDED):
        selector.learn(
            50.0 if number < WARM_UP_STEPS or number % 20 == 16 else 1.0 if selector.strategy == EARLY else 1.2
        )
    assert selector.strategy == EARLY


def test_a_machine_that_slows_down_in_between_does_not_favour_what_was_tried_first() -> None:
    selector = StrategySelector(STRATEGIES)
    for number in range(DECIDED):
        slower = 1.0 + number / DECIDED  # twice as slow in the end
        selector.learn(slower * (1.0 if selector.strategy == AT_ONCE else 1.35))
    assert selector.strategy == AT_ONCE


def test_what_lost_is_tried_again_and_may_win_when_the_job_has_changed() -> None:
    selector = StrategySelector(STRATEGIES)
    run(selector, DECIDED + EVERY_STEPS, dict.fromkeys(STRATEGIES, 1.5) | {EARLY: 1.0})
    strategies = run(selector, len(TRIALS) + EVERY_STEPS, dict.fromkeys(STRATEGIES, 1.5) | {AT_ONCE: 0.5})
    assert strategies[: len(TRIALS)] == TRIALS
    assert set(strategies[len(TRIALS) :]) == {AT_ONCE}


def test_a_window_begins_with_steps_that_tell_nothing_and_the_trial_anew() -> None:
    selector = StrategySelector(STRATEGIES)
    run(selector, WARM_UP_STEPS + PHASE_STEPS + 5, dict.fromkeys(STRATEGIES, 1.0))
    selector.begin()
    assert run(selector, WARM_UP_STEPS, dict.fromkeys(STRATEGIES, 50.0)) == [BY_GROUP] * WARM_UP_STEPS
    assert run(selector, PHASE_STEPS, dict.fromkeys(STRATEGIES, 1.0)) == [BY_GROUP] * PHASE_STEPS
    assert selector.strategy == AT_ONCE


def test_batches_read_in_the_mode_before_do_not_count() -> None:
    selector = StrategySelector(STRATEGIES[1:], num_ahead=8)
    strategies = run(selector, selector.num_steps, dict.fromkeys(STRATEGIES, 1.0))
    assert strategies[WARM_UP_STEPS:].count(BY_GROUP) == PASSES * (9 + MEASURED_STEPS)
    assert selector.num_steps == WARM_UP_STEPS + 2 * PASSES * (9 + MEASURED_STEPS)


def test_a_single_mode_is_never_left() -> None:
    assert set(run(StrategySelector([BY_GROUP]), 2 * EVERY_STEPS, {BY_GROUP: 1.0})) == {BY_GROUP}


def test_strategies_that_build_the_same_step_are_one() -> None:
    every = (EARLY, BY_GROUP, AHEAD, AT_ONCE)
    assert distinct_strategies(every, num_groups=2, store_waits=True) == list(every)
    assert distinct_strategies(every, num_groups=2, store_waits=False) == [EARLY, BY_GROUP, AT_ONCE]
    assert distinct_strategies(every, num_groups=1, store_waits=True) == [EARLY, AHEAD, AT_ONCE]
    assert distinct_strategies(every, num_groups=1, store_waits=False) == [EARLY, AT_ONCE]
