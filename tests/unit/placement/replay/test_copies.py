"""Which updates copies contain, and which plans are impossible."""

import numpy as np
import pytest

from headrace.placement.replay import ALL, SHARD, Copies, Drop, InvalidPlan, Kind, Move


def rows(*numbers: int) -> np.ndarray:
    return np.array(numbers, dtype=np.int32)


def with_copies(num_trainers: int = 2) -> Copies:
    """Every trainer holds row 0, as the shards have it."""
    copies = Copies(3, num_trainers)
    for trainer in range(num_trainers):
        copies.move(Move(Kind.FETCH, SHARD, trainer, rows(0)))
    return copies


def missing(copies: Copies) -> list[int]:
    return [int(copies.missing(trainer, rows(0))[0]) for trainer in range(2)]


def test_a_copy_misses_the_updates_of_others_until_their_gradients_come() -> None:
    copies = with_copies()
    copies.update(0, rows(0))
    copies.update(1, rows(0))
    assert missing(copies) == [1, 1]
    copies.move(Move(Kind.GRADIENT, 0, 1, rows(0)))
    assert missing(copies) == [1, 0]
    copies.move(Move(Kind.HAND_OVER, 1, 0, rows(0)))
    assert missing(copies) == [0, 0]
    assert copies.num_lost() == 2
    copies.move(Move(Kind.WRITE_BACK, 0, SHARD, rows(0)))
    assert copies.num_lost() == 0


def test_an_all_reduce_gives_every_trainer_all_updates() -> None:
    copies = with_copies(3)
    for trainer in (0, 2):
        copies.update(trainer, rows(0))
    copies.move(Move(Kind.ALL_REDUCE, ALL, ALL, rows(0)))
    copies.end_phase()
    assert [copies.missing(trainer, rows(0))[0] for trainer in range(3)] == [0, 0, 0]
    assert copies.num_misapplied == 0


def test_a_gradient_may_go_to_several_trainers_in_a_phase_and_only_once_later() -> None:
    copies = with_copies(3)
    copies.update(0, rows(0))
    copies.move(Move(Kind.GRADIENT, 0, 1, rows(0)))
    copies.move(Move(Kind.GRADIENT, 0, 2, rows(0)))
    copies.end_phase()
    assert copies.num_misapplied == 0
    copies.update(0, rows(0))
    copies.move(Move(Kind.GRADIENT, 0, 1, rows(0)))
    copies.end_phase()
    copies.update(0, rows(0))
    copies.move(Move(Kind.GRADIENT, 0, 2, rows(0)))  # trainer 2 has not got the one before
    assert copies.num_misapplied == 1
    assert copies.missing(2, rows(0))[0] == 2


def test_a_gradient_of_updates_that_the_target_has_is_misapplied() -> None:
    copies = with_copies()
    copies.update(0, rows(0))
    copies.move(Move(Kind.GRADIENT, 0, SHARD, rows(0)))
    copies.move(Move(Kind.GRADIENT, 0, SHARD, rows(0)))
    assert copies.num_misapplied == 1


def test_a_fetch_overwrites_unsent_gradients_and_a_read_keeps_them() -> None:
    for kind, lost in ((Kind.READ, 0), (Kind.FETCH, 1)):
        copies = with_copies()
        copies.update(0, rows(0))
        copies.move(Move(kind, SHARD, 0, rows(0)))
        assert missing(copies)[0] == lost
        copies.move(Move(Kind.GRADIENT, 0, SHARD, rows(0)))
        assert copies.num_lost() == lost


def test_a_second_write_back_overwrites_the_first() -> None:
    copies = with_copies()
    for trainer in (0, 1):
        copies.update(trainer, rows(0))
        copies.move(Move(Kind.WRITE_BACK, trainer, SHARD, rows(0)))
    assert copies.num_lost() == 1


def test_dropped_updates_are_lost_and_rows_that_are_not_held_are_reported() -> None:
    copies = with_copies()
    copies.update(0, rows(0))
    copies.drop(Drop(0, rows(0)))
    assert missing(copies) == [-1, 1]
    copies.move(Move(Kind.FETCH, SHARD, 0, rows(0)))
    copies.update(0, rows(0))
    copies.move(Move(Kind.GRADIENT, 0, SHARD, rows(0)))
    assert copies.num_lost() == 2  # updates of a trainer are applied in order


def test_impossible_moves_name_the_trainer_and_the_row() -> None:
    copies = Copies(3, 2)
    with pytest.raises(InvalidPlan, match="trainer 1 is the source of a HAND_OVER, but does not hold row 2"):
        copies.move(Move(Kind.HAND_OVER, 1, 0, rows(2)))
    with pytest.raises(InvalidPlan, match="trainer 0 takes part in an all-reduce, but does not hold row 1"):
        copies.move(Move(Kind.ALL_REDUCE, ALL, ALL, rows(1)))
    with pytest.raises(InvalidPlan, match="trainer 0 drops, but does not hold row 1"):
        copies.drop(Drop(0, rows(1)))
    copies.move(Move(Kind.FETCH, SHARD, 0, rows(1)))
    with pytest.raises(InvalidPlan, match="trainer 1 receives gradients, but does not hold row 1"):
        copies.move(Move(Kind.GRADIENT, 0, 1, rows(1)))


def test_a_memory_holds_no_more_rows_than_its_capacity() -> None:
    copies = Copies(4, 1, capacity=2)
    copies.move(Move(Kind.FETCH, SHARD, 0, rows(0, 1)))
    copies.move(Move(Kind.READ, SHARD, 0, rows(1)))
    with pytest.raises(InvalidPlan, match="trainer 0 holds 3 rows, expected at most 2"):
        copies.move(Move(Kind.FETCH, SHARD, 0, rows(2)))
