"""A sample arrives as it was sent, also with the rows that it shared with others."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from batches import batch, lists, random_batch

from headrace.placement.samples.packed_samples import (
    form_of,
    join_samples,
    pack_samples,
    sample_bytes,
    take_samples,
    unpack_samples,
)
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor, validate


def assert_equal(found: Batch, expected: Batch) -> None:
    for name in ("dense", "labels", "row_ids", "weights"):
        mine, other = getattr(found, name), getattr(expected, name)
        assert (mine is None) == (other is None)
        assert mine is None or (torch.equal(mine, other) and mine.dtype == other.dtype)
    assert lists(found) == lists(expected)
    assert form_of(found) == form_of(expected)


@pytest.mark.parametrize("shared", [False, True])
def test_samples_that_move_and_those_that_stay_are_a_batch_of_the_same_form(shared: bool) -> None:
    batches = [random_batch(seed, 20, shared=shared, first_row=100 * seed) for seed in range(3)]
    places = [np.array([0, 3, 19]), np.arange(20), np.array([7])]
    parts = [take_samples(each, chosen) for each, chosen in zip(batches, places, strict=True)]
    moved = [unpack_samples(pack_samples(part), like=batches[0]) for part in parts[1:]]
    for sent, arrived in zip(parts[1:], moved, strict=True):
        assert_equal(arrived, sent)
    joined = join_samples([parts[0], *moved])
    for group in joined.sparse:
        validate(group)
    assert joined.row_ids.tolist() == [0, 3, 19, *range(100, 120), 207]
    expected = [lists(each)[place] for each, chosen in zip(batches, places, strict=True) for place in chosen.tolist()]
    assert lists(joined) == expected
    for name in ("dense", "labels", "weights"):
        columns = [getattr(each, name) for each in batches]
        if columns[0] is not None:
            of_places = [column[torch.from_numpy(chosen)] for column, chosen in zip(columns, places, strict=True)]
            assert torch.equal(getattr(joined, name), torch.cat(of_places))
    assert (joined.weights is None) == (not shared)
    assert not joined.unique_keys


def test_only_the_rows_of_samples_that_move_are_sent() -> None:
    unique = KeyedJaggedTensor.from_lists({"history": [list(range(1000, 1500)), [7]]})
    repeated = InverseKeyedJaggedTensor.of_unique(unique, torch.tensor([0, 0, 1, 0], dtype=torch.int32))
    whole = batch(KeyedJaggedTensor.from_lists({"item": [[1], [2], [3], [4]]}), repeated)
    assert len(pack_samples(take_samples(whole, np.array([2])))) < 150
    of_session = len(pack_samples(take_samples(whole, np.array([0]))))
    assert len(pack_samples(take_samples(whole, np.array([0, 1, 3])))) < of_session + 40, "its row is sent once"


def test_lists_that_overlap_in_one_buffer_arrive_as_lists() -> None:
    values, starts = torch.tensor([1, 2, 3, 4]), torch.tensor([0, 1, 2])
    history = InverseKeyedJaggedTensor(
        ("history",),
        values,
        torch.tensor([3, 3, 2], dtype=torch.int32),
        None,
        torch.tensor([0, 2, 1]).int(),
        3,
        None,
        starts,
    )
    whole = batch(history)
    assert sample_bytes(whole) > 0
    assert_equal(unpack_samples(pack_samples(whole), like=whole), whole)


def test_weights_of_ids_arrive() -> None:
    ids = KeyedJaggedTensor.from_lists({"item": [[1, 2], [3]]})
    whole = batch(replace(ids, weights=torch.tensor([0.25, -1.0, 3.5])))
    arrived = unpack_samples(pack_samples(whole), like=whole)
    assert torch.equal(arrived.sparse[0].weights, whole.sparse[0].weights)


def test_batches_with_other_groups_columns_or_weights_have_another_form() -> None:
    plain = random_batch(1, 4)
    others = [
        random_batch(1, 4, shared=True),
        replace(plain, weights=torch.ones(4)),
        replace(plain, dense=torch.ones(4, 3)),
        replace(plain, sparse=(plain.sparse[0], KeyedJaggedTensor.from_lists({"more": [[1]] * 4}))),
    ]
    assert len({form_of(each) for each in (plain, *others)}) == 5
    assert form_of(random_batch(2, 7)) == form_of(plain)
