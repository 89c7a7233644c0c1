"""Under any order of arrival and any repetition, each step is applied once, whole, in trainer order."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from headrace.embeddings.shards.step_merger import StepMerger
from headrace.errors import ShardError


@settings(max_examples=150, deadline=None)
@given(data=st.data(), num_trainers=st.integers(1, 4), num_steps=st.integers(0, 6), ahead=st.integers(1, 4))
def test_steps_are_applied_once_in_order_with_all_trainers_however_they_arrive(
    data: st.DataObject, num_trainers: int, num_steps: int, ahead: int
) -> None:
    merger: StepMerger[tuple[int, int]] = StepMerger(num_trainers, max_ahead=ahead)
    sent = [0] * num_trainers
    updates: list[tuple[tuple[int, int], ...]] = []
    while min(sent) < num_steps:
        may = [t for t in range(num_trainers) if sent[t] < num_steps and merger.may_update(sent[t] + 1)]
        assert may, "the slowest trainer may always go on"
        trainer = data.draw(st.sampled_from(may))
        sent[trainer] += 1
        updates += merger.update(trainer, sent[trainer], (trainer, sent[trainer])).steps
        if data.draw(st.booleans()):  # an answer was lost, so the trainer asks again
            again = data.draw(st.integers(1, sent[trainer]))
            assert merger.update(trainer, again, (trainer, -1)).repeated
        assert merger.applied == min(sent) == len(updates)
        assert merger.may_read(merger.applied)
        assert not merger.may_read(merger.applied + 1)
        assert merger.missing(merger.applied + 1) == [t for t in range(num_trainers) if sent[t] == merger.applied]
    assert updates == [tuple((t, step) for t in range(num_trainers)) for step in range(1, num_steps + 1)]


@settings(max_examples=50, deadline=None)
@given(order=st.permutations([0, 0, 0, 1, 1, 1]))
def test_without_merging_steps_are_applied_as_they_come_and_reads_never_wait(order: list[int]) -> None:
    merger: StepMerger[int] = StepMerger(2, merged=False)
    sent = [0, 0]
    for trainer in order:
        assert merger.may_read(10**9)
        sent[trainer] += 1
        assert merger.update(trainer, sent[trainer], trainer).steps == ((trainer,),)
    assert merger.applied == 3


def test_steps_go_on_from_the_checkpoint() -> None:
    merger: StepMerger[str] = StepMerger(1, applied=100)
    assert merger.update(0, 100, "old").repeated
    assert merger.update(0, 101, "new").steps == (("new",),)


def test_a_step_out_of_turn_or_of_an_unknown_trainer_changes_nothing() -> None:
    merger: StepMerger[str] = StepMerger(2)
    with pytest.raises(ShardError, match="trainer 1: given step 2, expected step 1"):
        merger.update(1, 2, "x")
    with pytest.raises(ShardError, match="trainer 2: expected 0 <= trainer < 2"):
        merger.update(2, 1, "x")
    assert merger.update(1, 1, "x").steps == ()


def test_trainers_that_keep_rows_have_made_a_step_once_the_last_one_has() -> None:
    merger: StepMerger[str] = StepMerger(2, applied=3)
    merger.skip_to(0, 7)
    assert merger.applied == 3
    merger.skip_to(1, 5)
    assert merger.applied == 5
    assert merger.missing(7) == [1]
    with pytest.raises(ShardError, match="trainer 0: given step 6, expected 7 or later"):
        merger.skip_to(0, 6)


def test_some_trainers_cannot_keep_rows_while_others_send_updates() -> None:
    merger: StepMerger[str] = StepMerger(2)
    merger.update(0, 1, "x")
    with pytest.raises(ShardError, match="trainer 1: keeps rows, but others send their updates; expected all or none"):
        merger.skip_to(1, 1)
    merger = StepMerger(2)
    merger.skip_to(0, 1)
    with pytest.raises(ShardError, match="trainer 1: sends step 1, but others keep rows; expected all or none"):
        merger.update(1, 1, "x")
