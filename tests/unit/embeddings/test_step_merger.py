"""Under any order of arrival and any repetition, each step is applied once, whole, in trainer order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings.step_merger import MAX_REMEMBERED_PULLS, StepMerger
from headrace.errors import ShardError


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_trainers=st.integers(1, 4), num_steps=st.integers(0, 6), ahead=st.integers(1, 4))
def test_steps_are_applied_once_in_order_with_all_trainers_however_pushes_arrive(
    data: st.DataObject, num_trainers: int, num_steps: int, ahead: int
) -> None:
    merger: StepMerger[tuple[int, int]] = StepMerger(num_trainers, max_ahead=ahead)
    sent = [0] * num_trainers
    updates: list[tuple[tuple[int, int], ...]] = []
    while min(sent) < num_steps:
        may = [t for t in range(num_trainers) if sent[t] < num_steps and merger.may_push(sent[t] + 1)]
        assert may, "the slowest trainer may always push"
        trainer = data.draw(st.sampled_from(may))
        sent[trainer] += 1
        updates += merger.push(trainer, sent[trainer], (trainer, sent[trainer])).updates
        if data.draw(st.booleans()):  # an answer was lost, so the trainer asks again
            again = data.draw(st.integers(1, sent[trainer]))
            assert merger.push(trainer, again, (trainer, -1)).repeated
        assert merger.applied == min(sent) == len(updates)
        assert merger.may_pull(merger.applied)
        assert not merger.may_pull(merger.applied + 1)
        assert merger.missing(merger.applied + 1) == [t for t in range(num_trainers) if sent[t] == merger.applied]
    assert updates == [tuple((t, step) for t in range(num_trainers)) for step in range(1, num_steps + 1)]


@settings(max_examples=50, deadline=None)
@given(order=st.permutations([0, 0, 0, 1, 1, 1]))
def test_without_merging_pushes_are_applied_as_they_come_and_pulls_never_wait(order: list[int]) -> None:
    merger: StepMerger[int] = StepMerger(2, merged=False)
    sent = [0, 0]
    for trainer in order:
        assert merger.may_pull(10**9)
        sent[trainer] += 1
        assert merger.push(trainer, sent[trainer], trainer).updates == ((trainer,),)
    assert merger.applied == 3


def test_steps_go_on_from_the_checkpoint() -> None:
    merger: StepMerger[str] = StepMerger(1, applied=100)
    assert merger.push(0, 100, "old").repeated
    assert merger.push(0, 101, "new").updates == (("new",),)


def test_a_push_out_of_turn_or_of_an_unknown_trainer_changes_nothing() -> None:
    merger: StepMerger[str] = StepMerger(2)
    with pytest.raises(ShardError, match="trainer 1 pushed step 2, expected step 1"):
        merger.push(1, 2, "x")
    with pytest.raises(ShardError, match="trainer 2: expected 0 <= trainer < 2"):
        merger.push(2, 1, "x")
    assert merger.push(1, 1, "x").updates == ()


def test_a_repeated_pull_is_recognised_for_a_while() -> None:
    merger: StepMerger[str] = StepMerger(1)
    assert merger.is_first(0, 7)
    assert not merger.is_first(0, 7)
    for pull in range(8, 8 + 3 * MAX_REMEMBERED_PULLS):
        assert merger.is_first(0, pull)
    assert not merger.is_first(0, 7 + 3 * MAX_REMEMBERED_PULLS)
