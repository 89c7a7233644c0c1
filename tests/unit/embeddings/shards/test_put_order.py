"""A put counts once, and a fetch waits for the puts that it names."""

import pytest

from headrace.embeddings.shards.put_order import PutOrder
from headrace.errors import ShardError


def test_a_repeated_put_is_not_taken_again() -> None:
    puts = PutOrder(2)
    assert puts.take(0, 1, 0)
    assert puts.take(0, 2, 3)
    assert not puts.take(0, 1, 0)
    assert not puts.take(0, 2, 3)
    assert puts.take(1, 1, 0)


def test_a_missing_put_is_noticed() -> None:
    puts = PutOrder(2)
    with pytest.raises(ShardError, match="trainer 1: given put 2, expected put 1"):
        puts.take(1, 2, 0)
    assert puts.take(1, 1, 0)


def test_a_fetch_waits_until_every_trainer_has_reached_its_mark() -> None:
    puts = PutOrder(3)
    assert puts.may_fetch([])
    assert puts.may_fetch([0, 0, 0])
    assert not puts.may_fetch([2, 0, 1])
    assert puts.missing([2, 0, 1]) == [0, 2]
    puts.take(0, 1, 2)
    assert puts.missing([2, 0, 1]) == [2]
    puts.take(2, 1, 4)
    assert puts.may_fetch([2, 0, 1])
    puts.take(0, 2, 0)  # marks never decrease
    assert puts.may_fetch([2, 0, 4])
