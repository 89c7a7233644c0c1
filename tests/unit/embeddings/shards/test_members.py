"""A trainer's number belongs to one client at a time, and comes free when that client is gone."""

from __future__ import annotations

import pytest

from headrace.embeddings.shards.members import MAX_UNNUMBERED, SessionMembers
from headrace.errors import ShardError

OTHER = "trainer 0: is already taken by another client of this session"


def test_a_second_client_of_the_same_number_is_refused_while_the_first_lives() -> None:
    members = SessionMembers(2)
    members.join("first", 0)
    members.join("first", 0)  # asked again, because the answer was lost
    with pytest.raises(ShardError, match=OTHER):
        members.join("second", 0)
    with pytest.raises(ShardError, match=OTHER):
        members.enter("second", 0)
    members.join("second", 1)


def test_a_number_comes_free_when_all_streams_of_its_client_have_ended() -> None:
    members = SessionMembers(1)
    seats = [members.enter("first", 0), members.enter("first", 0)]
    members.leave(seats[0])
    with pytest.raises(ShardError, match=OTHER):
        members.enter("second", 0)
    members.leave(seats[1])
    members.enter("second", 0)
    with pytest.raises(ShardError, match=OTHER):
        members.enter("first", 0)
    assert members.num_streams == 1


def test_only_trainers_there_are_get_a_stream() -> None:
    for trainer in (-1, 2, 10**6):
        with pytest.raises(ShardError, match=f"trainer {trainer}: expected 0 <= trainer < 2"):
            SessionMembers(2).enter("client", trainer)


def test_only_members_may_save_and_end_windows() -> None:
    members = SessionMembers(1)
    members.join("unnumbered", None)
    members.enter("numbered", 0)
    for client in ("unnumbered", "numbered"):
        members.check(client, "save")
    with pytest.raises(ShardError, match="save: requested by a client that is not a trainer of this session"):
        members.check("stranger", "save")


def test_clients_that_never_say_who_they_are_do_not_pile_up() -> None:
    members = SessionMembers(1)
    for number in range(10 * MAX_UNNUMBERED):
        members.join(str(number), None)
    assert len(members._unnumbered) == MAX_UNNUMBERED
