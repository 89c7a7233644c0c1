"""Which way of computing features and sending pulls pays: each is tried in turn, and the fastest one stays."""

import pytest

from headrace.scheduling.probing import EVERY_STEPS, MEASURED_STEPS, PASSES, WARM_UP_STEPS, Mode, Probe, distinct

EARLY, BY_GROUP, WHOLE = Mode(early=True, joint=True), Mode(by_group=True), Mode(joint=True)
MODES = (EARLY, BY_GROUP, WHOLE)
PHASE_STEPS = 4 + MEASURED_STEPS
TRIALS = PASSES * ([EARLY] * PHASE_STEPS + [BY_GROUP] * PHASE_STEPS + [WHOLE] * PHASE_STEPS)
DECIDED = WARM_UP_STEPS + len(TRIALS)


def run(probe: Probe, num_steps: int, seconds: dict[Mode, float]) -> list[Mode]:
    modes = []
    for _ in range(num_steps):
        modes.append(probe.mode)
        probe.learn(seconds[probe.mode])
    return modes


@pytest.mark.parametrize("fastest", MODES)
def test_all_are_tried_and_the_fastest_one_stays(fastest: Mode) -> None:
    seconds = dict.fromkeys(MODES, 1.5) | {fastest: 1.0}
    modes = run(Probe(MODES), DECIDED + EVERY_STEPS, seconds)
    assert modes[:WARM_UP_STEPS] == [EARLY] * WARM_UP_STEPS
    assert modes[WARM_UP_STEPS:DECIDED] == TRIALS
    assert set(modes[DECIDED:]) == {fastest}


def test_on_a_tie_the_plainest_one_stays() -> None:
    assert run(Probe(MODES), DECIDED + 1, dict.fromkeys(MODES, 1.0))[-1] == WHOLE


def test_single_slow_steps_and_a_slow_beginning_decide_nothing() -> None:
    probe = Probe(MODES)
    for number in range(DECIDED):
        probe.learn(50.0 if number < WARM_UP_STEPS or number % 20 == 16 else 1.0 if probe.mode == EARLY else 1.2)
    assert probe.mode == EARLY


def test_a_machine_that_slows_down_in_between_does_not_favour_what_was_tried_first() -> None:
    probe = Probe(MODES)
    for number in range(DECIDED):
        slower = 1.0 + number / DECIDED  # twice as slow in the end
        probe.learn(slower * (1.0 if probe.mode == WHOLE else 1.35))
    assert probe.mode == WHOLE


def test_what_lost_is_tried_again_and_may_win_when_the_job_has_changed() -> None:
    probe = Probe(MODES)
    run(probe, DECIDED + EVERY_STEPS, dict.fromkeys(MODES, 1.5) | {EARLY: 1.0})
    modes = run(probe, len(TRIALS) + EVERY_STEPS, dict.fromkeys(MODES, 1.5) | {WHOLE: 0.5})
    assert modes[: len(TRIALS)] == TRIALS
    assert set(modes[len(TRIALS) :]) == {WHOLE}


def test_a_window_begins_with_steps_that_tell_nothing_and_the_trial_anew() -> None:
    probe = Probe(MODES)
    run(probe, WARM_UP_STEPS + PHASE_STEPS + 5, dict.fromkeys(MODES, 1.0))
    probe.begin()
    assert run(probe, WARM_UP_STEPS, dict.fromkeys(MODES, 50.0)) == [BY_GROUP] * WARM_UP_STEPS
    assert run(probe, PHASE_STEPS, dict.fromkeys(MODES, 1.0)) == [BY_GROUP] * PHASE_STEPS
    assert probe.mode == WHOLE


def test_batches_read_in_the_mode_before_do_not_count() -> None:
    probe = Probe(MODES[1:], num_ahead=8)
    modes = run(probe, probe.num_steps, dict.fromkeys(MODES, 1.0))
    assert modes[WARM_UP_STEPS:].count(BY_GROUP) == PASSES * (9 + MEASURED_STEPS)
    assert probe.num_steps == WARM_UP_STEPS + 2 * PASSES * (9 + MEASURED_STEPS)


def test_a_single_mode_is_never_left() -> None:
    assert set(run(Probe([BY_GROUP]), 2 * EVERY_STEPS, {BY_GROUP: 1.0})) == {BY_GROUP}


def test_ways_that_come_to_the_same_are_one() -> None:
    ahead = Mode(ahead=True, joint=True)
    every = (EARLY, BY_GROUP, ahead, WHOLE)
    assert distinct(every, num_groups=2, store_holds=True) == list(every)
    assert distinct(every, num_groups=2, store_holds=False) == [EARLY, BY_GROUP, WHOLE]
    assert distinct(every, num_groups=1, store_holds=True) == [EARLY, ahead, WHOLE]
    assert distinct(every, num_groups=1, store_holds=False) == [EARLY, WHOLE]
