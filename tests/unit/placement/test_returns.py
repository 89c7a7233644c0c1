"""Returns of rows: how many travel at once, and when those go back that are not used again before the end."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, cast

import numpy as np
import pytest

from headrace.embeddings.config import TableConfig
from headrace.embeddings.keys import Keys
from headrace.embeddings.stores.remote import RemoteStore
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.returns import MAX_PUTS, BeforeEnd, Returns

NUM_ROWS = 25


class Shards:
    """Records puts, and confirms them at once."""

    def __init__(self) -> None:
        self.step = 3
        self.puts: list[tuple[list[int], int, int]] = []

    def put(self, keys: Keys, states: Any, *, step: int, version: int, mark: int) -> Future[None]:
        assert len(states.places) == len(keys)
        self.puts.append((keys.ids.tolist(), step, mark))
        confirmed: Future[None] = Future()
        confirmed.set_result(None)
        return confirmed


@pytest.fixture
def returns() -> tuple[Returns, Shards, Keys]:
    rows = ResidentRows([TableConfig(name="t", embedding_dim=4)], seed=1, capacity=NUM_ROWS)
    ids = np.arange(NUM_ROWS)
    keys = Keys(np.zeros(NUM_ROWS, np.int32), ids, np.ones(NUM_ROWS, np.int32))
    rows.update(1 + ids, keys, np.ones((NUM_ROWS, 4), np.float32), step=1, version=1)
    shards = Shards()
    returns = Returns(cast(RemoteStore, shards), rows)
    returns.max_rows = 10
    return returns, shards, keys


def test_many_rows_return_in_parts_and_the_last_one_says_that_all_have(returns: tuple[Returns, Shards, Keys]) -> None:
    store, shards, keys = returns
    returned = store.put(1 + keys.ids, keys, step=4, version=1, mark=7)
    assert returned.ids.tolist() == list(range(NUM_ROWS))
    assert shards.puts == [(list(range(10)), 3, 0), (list(range(10, 20)), 3, 0), (list(range(20, 25)), 4, 7)]


def test_unchanged_rows_do_not_return_again(returns: tuple[Returns, Shards, Keys]) -> None:
    store, shards, keys = returns
    store.put(1 + keys.ids, keys, step=4, version=1)
    shards.puts.clear()
    assert not len(store.put(1 + keys.ids, keys, step=5, version=2, mark=8))
    assert shards.puts == []
    store.put(1 + keys.ids, keys, step=6, version=2, mark=9, even_if_none=True)
    assert shards.puts == [([], 6, 9)]


def test_a_put_is_limited_in_bytes() -> None:
    rows = ResidentRows([TableConfig(name="t", embedding_dim=64)], seed=1, capacity=1)
    assert 8 << 20 > Returns(cast(RemoteStore, Shards()), rows).max_rows * (rows.packed_bytes + 8) > 7 << 20
    assert MAX_PUTS * 8 << 20 <= 64 << 20, "the copies that wait for a slow link"


def taken(before_end: BeforeEnd, num_batches: int, most: int) -> list[int]:
    return before_end.take(num_batches, most).tolist()


def test_rows_that_are_not_used_again_return_as_soon_as_they_fit_in_a_put() -> None:
    before_end = BeforeEnd(9)
    before_end.add(np.arange(6, dtype=np.int32))
    before_end.add(np.arange(6, 8, dtype=np.int32))
    assert taken(before_end, 3, 5) == [0, 1, 2, 3, 4]
    assert taken(before_end, 2, 5) == [5, 6, 7]
    assert taken(before_end, 1, 5) == []


def test_more_return_in_each_step_if_too_many_were_left_for_the_last_one() -> None:
    before_end = BeforeEnd(9)
    before_end.add(np.arange(100, dtype=np.int32))
    assert [len(taken(before_end, left, 5)) for left in (3, 2, 1, 0)] == [25, 25, 25, 25]


def test_a_row_that_became_unused_twice_returns_once() -> None:
    before_end = BeforeEnd(9)
    for _ in range(2):
        before_end.add(np.array([3, 4], dtype=np.int32))
    assert taken(before_end, 0, 1) == [3, 4]
