"""Which way of sending pulls pays: all are tried, the fastest one stays, and the others are tried again."""

from headrace.scheduling.probing import EVERY_STEPS, PHASE_STEPS, WARM_UP_STEPS, Mode, Probe

EARLY, BY_GROUP, WHOLE = Mode(early=True, joint=True), Mode(by_group=True), Mode(joint=True)
MODES = (EARLY, BY_GROUP, WHOLE)
TRIALS = WARM_UP_STEPS + 3 * PHASE_STEPS


def run(probe: Probe, num_steps: int, seconds: dict[Mode, float]) -> list[Mode]:
    modes = []
    for _ in range(num_steps):
        modes.append(probe.mode)
        probe.learn(seconds[probe.mode])
    return modes


def test_all_are_tried_and_the_fastest_one_stays() -> None:
    for fastest in MODES:
        seconds = dict.fromkeys(MODES, 1.5) | {fastest: 1.0}
        modes = run(Probe(MODES, num_groups=2), TRIALS + EVERY_STEPS, seconds)
        assert (
            modes[:TRIALS] == [EARLY] * (WARM_UP_STEPS + PHASE_STEPS) + [BY_GROUP] * PHASE_STEPS + [WHOLE] * PHASE_STEPS
        )
        assert set(modes[TRIALS:]) == {fastest}


def test_on_a_tie_the_plainest_one_stays() -> None:
    assert run(Probe(MODES, num_groups=2), TRIALS + 1, dict.fromkeys(MODES, 1.0))[-1] == WHOLE


def test_a_single_slow_step_decides_nothing() -> None:
    probe = Probe(MODES, num_groups=2)
    for number in range(TRIALS):
        probe.learn(50.0 if number in (4, 16) else 1.0 if probe.mode == EARLY else 1.2)
    assert probe.mode == EARLY


def test_what_lost_is_tried_again_and_may_win_when_the_job_has_changed() -> None:
    probe = Probe(MODES, num_groups=2)
    run(probe, TRIALS + EVERY_STEPS, dict.fromkeys(MODES, 1.5) | {EARLY: 1.0})
    modes = run(probe, 2 * PHASE_STEPS + EVERY_STEPS, dict.fromkeys(MODES, 1.5) | {WHOLE: 0.5})
    assert modes[: 2 * PHASE_STEPS] == [BY_GROUP] * PHASE_STEPS + [WHOLE] * PHASE_STEPS
    assert set(modes[2 * PHASE_STEPS :]) == {WHOLE}


def test_a_single_mode_is_never_left() -> None:
    assert set(run(Probe([BY_GROUP], num_groups=2), 2 * EVERY_STEPS, {BY_GROUP: 1.0})) == {BY_GROUP}


def test_ways_that_differ_only_in_groups_are_one_where_there_is_one_group() -> None:
    assert set(run(Probe(MODES, num_groups=1), TRIALS, dict.fromkeys(MODES, 1.0))) == {EARLY, WHOLE}
    assert set(run(Probe(MODES[1:], num_groups=1), 2 * EVERY_STEPS, dict.fromkeys(MODES, 1.0))) == {WHOLE}
