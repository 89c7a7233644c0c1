"""Which version a guard tries after bad ones."""

from __future__ import annotations

from headrace.publishing.probation import LONGEST_BACK_OFF, Probation


def test_a_bad_version_is_never_tried_again_and_the_next_one_is() -> None:
    probation = Probation(good=3, bad=4)
    assert [probation.can_try(version) for version in (3, 4, 5, 9)] == [False, False, True, True]
    assert not probation.trying(5).can_try(6)


def test_the_back_off_doubles_with_each_bad_version_in_a_row_up_to_a_limit() -> None:
    probation, tried = Probation(good=3, bad=4), []
    for _ in range(9):
        tried.append(probation.retry_from)
        probation = probation.trying(probation.retry_from).after_bad()
        assert probation.good == 3
    waits = [later - earlier for earlier, later in zip([4, *tried], tried, strict=False)]
    assert waits == [1, 2, 4, 8, 16, 32, 64, LONGEST_BACK_OFF, LONGEST_BACK_OFF]


def test_a_restart_stops_the_trial_and_keeps_the_back_off() -> None:
    probation = Probation(good=3, bad=4, num_bad=3, on_trial=9).stopped()
    assert (probation.on_trial, probation.retry_from, probation.num_bad) == (0, 8, 3)
    assert probation.can_try(9)
