"""From whom a replica fetches a version: one replica from the publisher, the others from it, and all if it is gone."""

from __future__ import annotations

from dataclasses import replace

from headrace.publishing.following import SourceState, choose_source, newest_known, turn_of

REPLICAS = ["a:1", "b:1", "c:1", "d:1"]
PUBLISHER = SourceState("p:1", is_publisher=True, newest=7)


def sources_of(me: str, having: tuple[str, ...] = (), down: tuple[str, ...] = ()) -> list[SourceState]:
    peers = [
        SourceState(each, is_publisher=False, newest=7 if each in having else 6, is_up=each not in down)
        for each in REPLICAS
        if each != me
    ]
    return [*peers, PUBLISHER]


def test_one_replica_asks_the_publisher_and_the_others_wait_for_it() -> None:
    choices = {me: choose_source(7, me, sources_of(me), waited_s=0, patience_s=1) for me in REPLICAS}
    first = turn_of(7, REPLICAS)[0]
    assert [me for me, choice in choices.items() if choice.source == "p:1"] == [first]
    assert choices[first].reason == "first in turn"
    second = turn_of(7, REPLICAS)[1]
    assert choices[second].wait_s == 1
    assert first in choices[second].reason


def test_each_replica_is_first_for_some_versions() -> None:
    assert {turn_of(version, REPLICAS)[0] for version in range(50)} == set(REPLICAS)


def test_a_replica_that_has_the_version_is_asked_before_the_publisher() -> None:
    for me in ("a:1", "b:1"):
        assert choose_source(7, me, sources_of(me, having=("c:1",)), waited_s=0, patience_s=1).source == "c:1"


def test_replicas_that_do_not_answer_are_not_waited_for() -> None:
    first, second = turn_of(7, REPLICAS)[:2]
    assert choose_source(7, second, sources_of(second, down=(first,)), waited_s=0, patience_s=1).source == "p:1"


def test_after_some_time_the_publisher_is_asked_all_the_same() -> None:
    last = turn_of(7, REPLICAS)[3]
    assert choose_source(7, last, sources_of(last), waited_s=2.9, patience_s=1).source is None
    assert choose_source(7, last, sources_of(last), waited_s=3.0, patience_s=1).source == "p:1"


def test_a_source_that_sent_a_damaged_version_is_not_asked_for_it_again() -> None:
    bad = [replace(source, bad=frozenset({7})) for source in sources_of("a:1", having=("c:1",))]
    choice = choose_source(7, "a:1", bad, waited_s=100, patience_s=1)
    assert (choice.source, choice.reason) == (None, "no source has it")
    assert newest_known([replace(PUBLISHER, bad=frozenset({7}))]) == 0
    assert newest_known(sources_of("a:1")) == 7
