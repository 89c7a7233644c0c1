"""Whether early pulls pay: both ways are tried, the faster one stays, and the other is tried again."""

from headrace.scheduling.probing import EVERY_STEPS, PHASE_STEPS, Probe


def run(probe: Probe, num_steps: int, early_s: float, strict_s: float) -> list[bool]:
    modes = []
    for _ in range(num_steps):
        modes.append(probe.early)
        probe.learn(early_s if probe.early else strict_s)
    return modes


def test_both_are_tried_and_the_faster_one_stays() -> None:
    for early_s, strict_s in ((1.0, 1.5), (1.5, 1.0)):
        modes = run(Probe(), 2 * PHASE_STEPS + EVERY_STEPS, early_s, strict_s)
        assert modes[: 2 * PHASE_STEPS] == [True] * PHASE_STEPS + [False] * PHASE_STEPS
        assert set(modes[2 * PHASE_STEPS :]) == {early_s < strict_s}


def test_on_a_tie_pulls_are_not_early() -> None:
    assert run(Probe(), 2 * PHASE_STEPS + 1, 1.0, 1.0)[-1] is False


def test_a_single_slow_step_decides_nothing() -> None:
    probe = Probe()
    for number in range(2 * PHASE_STEPS):
        probe.learn(50.0 if number == 4 else 1.0 if probe.early else 1.2)
    assert probe.early


def test_what_lost_is_tried_again_and_may_win_when_the_job_has_changed() -> None:
    probe = Probe()
    run(probe, 2 * PHASE_STEPS + EVERY_STEPS, 1.0, 1.5)
    modes = run(probe, PHASE_STEPS + EVERY_STEPS, 1.0, 0.5)
    assert modes[:PHASE_STEPS] == [False] * PHASE_STEPS
    assert not any(modes)
