"""How a batch is split by the rows that are missing, and what is fetched for each part."""

from __future__ import annotations

import itertools
from concurrent.futures import Future

import numpy as np
import pytest
import torch

from headrace.embeddings import EmbeddingBags, TableConfig
from headrace.placement.micro_batches import (
    FewestMissingFirst,
    check_parts,
    missing_of_rows,
    parts_of_keys,
    popular_first,
)
from headrace.placement.partial_read import PartialRead, ask_in_turn
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor


def test_hotline_trains_rows_that_miss_nothing_before_all_others() -> None:
    parts = popular_first(np.array([1.0, 0.0, 0.5, 0.0]))
    assert [part.tolist() for part in parts] == [[1, 3], [0, 2]]
    assert [part.tolist() for part in popular_first(np.zeros(3))] == [[0, 1, 2]]
    assert [part.tolist() for part in popular_first(np.ones(3))] == [[0, 1, 2]]


def test_rows_that_miss_the_fewest_come_first() -> None:
    parts = FewestMissingFirst(bytes_per_part=8)(np.array([9.0, 1, 5, 3, 2, 0, 4, 7]))
    assert [part.tolist() for part in parts] == [[1, 5], [3, 4], [2, 6], [0, 7]]


@pytest.mark.parametrize("seed", range(20))
def test_every_row_is_in_one_micro_batch(seed: int) -> None:
    rng = np.random.default_rng(seed)
    missing = rng.poisson(rng.uniform(0, 3), rng.integers(1, 300)).astype(np.float64)
    split = FewestMissingFirst(bytes_per_part=int(rng.integers(1, 200)), max_parts=int(rng.integers(1, 6)))
    for parts in (split(missing), popular_first(missing)):
        check_parts(parts, len(missing))
    parts = split(missing)
    assert len(parts) <= split.max_parts
    bounds = [(missing[part].min(), missing[part].max()) for part in parts]
    assert all(before[1] <= after[0] for before, after in itertools.pairwise(bounds))
    if not missing.any():
        assert len(parts) == 1


def test_rows_that_miss_nothing_are_not_cut() -> None:
    missing = np.repeat([0.0, 3.0], [70, 30])
    assert [len(part) for part in FewestMissingFirst(bytes_per_part=90)(missing)] == [70, 30]


@pytest.mark.parametrize(
    ("parts", "text"),
    [
        ([[0, 1], [1, 2]], "row 1 is in 2 micro-batches"),
        ([[0], [2]], "row 1 is in 0 micro-batches"),
        ([[0, 1, 2], []], "a micro-batch has no rows"),
        ([[0, 1, 2, 3]], "a micro-batch has row 3, expected rows from 0 to 2"),
    ],
)
def test_a_wrong_split_is_refused(parts: list[list[int]], text: str) -> None:
    with pytest.raises(ValueError, match=text):
        check_parts([np.array(part, dtype=np.int64) for part in parts], 3)


def some_batch() -> tuple[Batch, EmbeddingBags]:
    """Two rows share a list of `a` and `b`, which share a table; `c` is deduplicated."""
    plain = KeyedJaggedTensor.from_lists({"a": [[1, 2], [2], [], [3]], "b": [[1], [4], [4], [4]]})
    unique = KeyedJaggedTensor.from_lists({"c": [[7], [8], [9]]})
    shared = InverseKeyedJaggedTensor.of_unique(unique, torch.tensor([2, 0, 2, 0], dtype=torch.int32))
    bags = EmbeddingBags(
        [
            TableConfig(name="ab", kind="collisionless", embedding_dim=2, feature_names=("a", "b")),
            TableConfig(name="c", kind="collisionless", embedding_dim=2),
        ],
        ["a", "b", "c"],
        seed=0,
    )
    batch = Batch(torch.zeros(4, 0), (plain, shared), torch.zeros(4, 1), torch.arange(4)).with_keys([bags.key_layout])
    return batch, bags


def test_keys_are_missed_by_the_rows_that_use_them_and_fetched_for_the_first_part() -> None:
    batch, bags = some_batch()
    (found,) = batch.keys_of(bags.key_layout)
    keys = list(zip(found.keys.tables.tolist(), found.keys.ids.tolist(), found.keys.counts.tolist(), strict=True))
    assert sorted(keys) == [(0, 1, 2), (0, 2, 2), (0, 3, 1), (0, 4, 3), (1, 7, 2), (1, 9, 2)]
    is_missing = np.array([(table, key) in {(0, 2), (0, 4), (1, 7)} for table, key, _ in keys])
    third, half = 1 / 3, 1 / 2
    expected = [half, half + third + half, third, third + half]
    assert missing_of_rows(found, is_missing) == pytest.approx(expected)
    parts = batch.micro_batches([torch.tensor([0, 2]), torch.tensor([1, 3])])
    places = parts_of_keys([part.keys_of(bags.key_layout)[0] for part in parts], is_missing)
    assert [{keys[place][:2] for place in part} for part in places] == [{(0, 2), (0, 4)}, {(1, 7)}]


def test_micro_batches_pool_and_update_what_the_batch_does() -> None:
    batch, bags = some_batch()
    other = EmbeddingBags(bags.config, bags.feature_names, 2, seed=0)
    rows = [torch.tensor([3, 0]), torch.tensor([1]), torch.tensor([2])]
    weights = torch.arange(24.0).reshape(4, 3, 2)
    for _ in range(2):
        whole = bags(batch)
        (whole * weights).sum().backward()
        for part, where in zip(batch.micro_batches(rows), rows, strict=True):
            assert part.keys_of(bags.key_layout)[0].keys is batch.keys_of(bags.key_layout)[0].keys
            pooled = other(part)
            assert torch.equal(pooled, whole[where])
            assert torch.equal(part.row_ids, where)
            again = part.expand()
            assert torch.equal(bags.eval()(again), bags(batch)[where])
            bags.train()
            (pooled * weights[where]).sum().backward()
        bags.apply_gradients(4)
        other.apply_gradients(4)
    assert bags.table_group is not None
    assert other.table_group is not None
    expected, found = bags.table_group.state_dict(), other.table_group.state_dict()
    assert all(np.array_equal(expected[name], found[name]) for name in expected)


def test_parts_are_asked_for_one_after_the_other() -> None:
    asked: list[tuple[list[int], Future[list[int]]]] = []

    def ask(places: np.ndarray) -> Future[list[int]]:
        asked.append((places.tolist(), Future()))
        return asked[-1][1]

    ended: list[bool] = []
    parts = [np.array(part) for part in ([1, 4], [], [2], [3], [5])]
    first, empty, last, failed, after = ask_in_turn(ask, parts, lambda: ended.append(failed.done()))
    assert [places for places, _ in asked] == [[1, 4]]
    asked[0][1].set_result([10])
    assert [places for places, _ in asked] == [[1, 4], [2]]
    assert (first.result(), empty.result()) == ([10], [])
    assert not last.done()
    asked[1][1].set_result([20])
    assert ended == []
    asked[2][1].set_exception(OSError("gone"))
    assert ended == [False]
    assert last.result() == [20]
    assert len(asked) == 3
    for future in (failed, after):
        with pytest.raises(OSError, match="gone"):
            future.result()


def test_what_follows_the_last_part_comes_before_its_answer_is_known() -> None:
    asked: list[Future[list[int]]] = []
    ended: list[bool] = []

    def ask(places: np.ndarray) -> Future[list[int]]:
        asked.append(Future())
        return asked[-1]

    first, last, empty = ask_in_turn(
        ask, [np.array([1]), np.array([2]), np.array([])], lambda: ended.append(last.done())
    )
    asked[0].set_result([])
    assert (first.done(), ended) == (True, [])
    asked[1].set_result([])
    assert (last.done(), empty.done(), ended) == (True, True, [False])
    assert ask_in_turn(ask, [np.array([])], lambda: ended.append(True))[0].result() == []
    assert ended == [False, True]


def test_rows_are_waited_for_when_their_part_is_trained() -> None:
    received: list[int] = []
    values = np.arange(10.0, dtype=np.float32).reshape(5, 2) + 1
    read = PartialRead(
        lambda places: values[places], lambda: received.append(len(received)), [np.array([3]), np.array([0, 4])], (5, 2)
    )
    assert received == []
    assert (read.rows() == np.where([[0], [1], [1], [1], [0]], values, 0)).all()
    assert received == [0]
    assert not read.is_complete
    read.part = 1
    assert (read.rows() == values).all()
    assert received == [0, 1]
    assert read.is_complete
