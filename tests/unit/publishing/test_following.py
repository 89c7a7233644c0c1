"""From whom a replica fetches which version: one replica from the publisher, the others from it, all if it is gone."""

from __future__ import annotations

from dataclasses import replace

from headrace.publishing.following import (
    VERSIONS_PER_TURN,
    Choice,
    SourceState,
    choose_source,
    newest_known,
    patience_of,
    turn_of,
)

REPLICAS = ["a:1", "b:1", "c:1", "d:1"]
PUBLISHER = SourceState("p:1", is_publisher=True, newest=7)
TURN = 7 // VERSIONS_PER_TURN


def sources_of(me: str, having: tuple[str, ...] = (), down: tuple[str, ...] = ()) -> list[SourceState]:
    peers = [
        SourceState(each, is_publisher=False, newest=7 if each in having else 6, is_up=each not in down)
        for each in REPLICAS
        if each != me
    ]
    return [*peers, PUBLISHER]


def choose(me: str, sources: list[SourceState], waited_s: float = 0, mine: int = 6) -> Choice:
    return choose_source(mine, me, sources, waited_s=waited_s, patience_s=1)


def test_one_replica_asks_the_publisher_and_the_others_wait_for_it() -> None:
    choices = {me: choose(me, sources_of(me)) for me in REPLICAS}
    first, second = turn_of(TURN, REPLICAS)[:2]
    assert [me for me, choice in choices.items() if choice.source == "p:1"] == [first]
    assert (choices[first].reason, choices[first].version) == ("first in turn", 7)
    assert choices[second].wait_s == 1
    assert first in choices[second].reason


def test_each_replica_is_first_in_some_turns() -> None:
    assert {turn_of(turn, REPLICAS)[0] for turn in range(50)} == set(REPLICAS)


def test_the_first_replica_asks_for_several_versions_in_a_row_while_others_are_fetching() -> None:
    versions = range(VERSIONS_PER_TURN, 2 * VERSIONS_PER_TURN)
    asking = {
        me
        for version in versions
        for me in REPLICAS
        if choose(me, [*sources_of(me)[:-1], replace(PUBLISHER, newest=version)]).source == "p:1"
    }
    assert len(asking) == 1


def test_a_replica_that_has_a_newer_version_is_asked_before_the_publisher() -> None:
    for me in ("a:1", "b:1"):
        choice = choose(me, sources_of(me, having=("c:1",)))
        assert (choice.source, choice.version) == ("c:1", 7)


def test_also_if_the_publisher_has_a_still_newer_one() -> None:
    first = turn_of(TURN, REPLICAS)[0]
    peer = next(each for each in REPLICAS if each != first)
    sources = sources_of(first, having=(peer,))
    sources[-1] = replace(PUBLISHER, newest=9)
    choice = choose(first, sources)
    assert (choice.source, choice.version) == (peer, 7)
    choice = choose(first, sources, mine=7)
    assert (choice.source, choice.version) == ("p:1", 9)


def test_replicas_that_have_a_version_share_those_that_ask() -> None:
    asked = {choose("a:1", sources_of("a:1", having=("b:1", "c:1", "d:1")), mine=mine).source for mine in (6, 6)}
    assert len(asked) == 1
    others = [f"r{number}:1" for number in range(30)]
    assert {choose(me, sources_of(me, having=("b:1", "c:1"))).source for me in others} == {"b:1", "c:1"}


def test_replicas_that_do_not_answer_are_not_waited_for() -> None:
    first, second = turn_of(TURN, REPLICAS)[:2]
    assert choose(second, sources_of(second, down=(first,))).source == "p:1"


def test_after_some_time_the_publisher_is_asked_all_the_same() -> None:
    order = turn_of(TURN, REPLICAS)
    sources = sources_of(order[3])
    assert choose(order[3], sources, waited_s=2.9).source is None
    choice = choose(order[3], sources, waited_s=3.0)
    assert (choice.source, choice.missed) == ("p:1", tuple(order[:3]))


def test_a_replica_that_was_waited_for_in_vain_is_not_waited_for_until_it_has_that_version() -> None:
    first, second = turn_of(TURN, REPLICAS)[:2]
    sources = [replace(each, missed=7) if each.address == first else each for each in sources_of(second)]
    assert choose(second, sources).reason == "first in turn"
    there = [replace(each, newest=7) if each.address == first else each for each in sources]
    later = [*there[:-1], replace(PUBLISHER, newest=8)]
    assert choose(second, later, mine=7).source is None


def test_patience_grows_with_the_time_that_versions_take() -> None:
    assert [patience_of(1.0, took_s) for took_s in (0.0, 0.4, 0.8, 1.5, 60.0)] == [1.0, 1.0, 1.6, 3.0, 4.0]


def test_a_source_that_sent_a_damaged_version_is_not_asked_for_it_again() -> None:
    bad = [replace(source, bad=frozenset({7})) for source in sources_of("a:1", having=("c:1",))]
    choice = choose("a:1", bad, waited_s=100)
    assert (choice.source, choice.reason) == (None, "no source has a newer version")
    assert newest_known([replace(PUBLISHER, bad=frozenset({7}))]) == 0
    assert newest_known(sources_of("a:1")) == 7
