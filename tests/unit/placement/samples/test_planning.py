"""Plans keep every sample, give each trainer its share and the keys of its samples, and put samples where rows are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
import pytest
from batches import batch, layout, lists, random_batch, told

from headrace.placement.samples.planning import KEY_BYTES, SamplePlan, SamplePlanner, ToldBatch, row_prices
from headrace.placement.samples.sample_keys import SampleKeys
from headrace.tensors import Batch, KeyedJaggedTensor

MOVE, USE = 92, 128
TABLE_OF = {"item": 0, "history": 0, "user": 1}


def planner(num_trainers: int, max_keys: int = 1000) -> SamplePlanner:
    return SamplePlanner([row_prices(num_trainers, MOVE, USE)], max_keys)


def plan_of(planner: SamplePlanner, parts: Sequence[Batch], **options: int) -> SamplePlan:
    return planner.plan([told(part, layout(), **options) for part in parts])


def items(*ids: int) -> Batch:
    return batch(
        KeyedJaggedTensor.from_lists({"item": [[i] for i in ids], "history": [[]] * len(ids), "user": [[]] * len(ids)})
    )


@pytest.mark.parametrize("sizes", [(8, 8), (7, 8, 8), (1, 1)])
@pytest.mark.parametrize("shared", [False, True])
def test_every_sample_has_one_trainer_and_each_trainer_the_keys_of_its_samples(
    sizes: tuple[int, ...], shared: bool
) -> None:
    planning = planner(len(sizes))
    for number in range(4):
        parts = [random_batch(10 * number + rank, size, shared=shared) for rank, size in enumerate(sizes)]
        plan = plan_of(planning, parts)
        assert np.bincount(plan.assignment, minlength=len(sizes)).tolist() == list(sizes)
        for target in range(len(sizes)):
            expected: Counter[tuple[int, int]] = Counter()
            for source, part in enumerate(parts):
                samples = lists(part)
                for place in plan.samples(source, target).tolist():
                    ids = samples[place].items()
                    expected.update((TABLE_OF[name], each) for name, values in ids for each in values)
            keys = plan.keys[0][target]
            assert (np.diff(keys.tables) >= 0).all()
            pairs = zip(keys.tables.tolist(), keys.ids.tolist(), strict=True)
            assert dict(zip(pairs, keys.counts.tolist(), strict=True)) == expected


def test_samples_go_where_their_rows_were_read_last() -> None:
    planning = planner(2)
    assert plan_of(planning, [items(1, 2), items(3, 4)]).assignment.tolist() == [0, 0, 1, 1]
    assert plan_of(planning, [items(3, 4), items(1, 2)]).assignment.tolist() == [1, 1, 0, 0]
    assert plan_of(planning, [items(3, 1), items(9, 9)]).assignment.tolist() == [1, 0, 0, 1]


def test_a_sample_moves_only_if_that_saves_more_than_its_bytes() -> None:
    for sample_bytes, expected in ((MOVE - 1, [1, 0]), (MOVE + 1, [0, 1])):
        planning = planner(2)
        plan_of(planning, [items(1), items(3)])
        assert plan_of(planning, [items(3), items(1)], sample_bytes=sample_bytes).assignment.tolist() == expected


def test_parts_with_other_groups_of_features_stay_in_order() -> None:
    planning = planner(2)
    plan_of(planning, [items(1, 2), items(3, 4)])
    parts = [told(items(3, 4), layout(), form=1), told(items(1, 2), layout(), form=2)]
    assert planning.plan(parts).assignment.tolist() == [0, 0, 1, 1]


def test_rows_of_the_oldest_batches_are_forgotten() -> None:
    planning = planner(2, max_keys=8)
    plan_of(planning, [items(1, 2), items(3, 4)])
    plan_of(planning, [items(5, 6), items(7, 8)])
    held = planning.num_bytes
    for first in range(100, 900, 4):
        plan_of(planning, [items(first, first + 1), items(first + 2, first + 3)])
    assert planning.num_bytes < held + 100
    assert plan_of(planning, [items(3, 4), items(1, 2)]).assignment.tolist() == [0, 0, 1, 1], "nothing is known of them"


@pytest.mark.parametrize("num_ids", [50, 100_000])
def test_what_is_remembered_stays_within_its_bytes(num_ids: int) -> None:
    """Also of keys that are read in every batch."""
    planning, sizes = planner(2, max_keys=6_000), []
    for number in range(60):
        plan_of(planning, [random_batch(2 * number + rank, 100, num_ids) for rank in range(2)])
        sizes.append(planning.num_bytes)
    assert max(sizes) <= KEY_BYTES * 6_000
    assert num_ids > 50 or sizes[-1] < sizes[10] + 2_000


def test_the_same_batches_have_the_same_plan() -> None:
    parts = [[random_batch(10 * number + rank, 9) for rank in range(3)] for number in range(3)]
    first, second = planner(3), planner(3)
    for each in parts:
        assert plan_of(first, each).assignment.tolist() == plan_of(second, each).assignment.tolist()


def test_rows_of_several_layouts_are_priced_apart() -> None:
    """A sample goes where its dearer row is."""
    apart = [layout({"things": [name]}) for name in ("item", "user")]
    for dearer, expected in ((0, [1, 0]), (1, [0, 1])):
        prices = [row_prices(2, MOVE * (2 if number == dearer else 1), 2 * USE) for number in range(2)]
        planning = SamplePlanner(prices, 1000)
        for items_of, users_of, found in (([1, 2], [1, 2], [0, 1]), ([2, 1], [1, 2], expected)):
            parts = []
            for rank in range(2):
                ids = {"item": [[items_of[rank]]], "history": [[]], "user": [[users_of[rank]]]}
                part = batch(KeyedJaggedTensor.from_lists(ids))
                keys = tuple(SampleKeys.of(part.keys_of(each)[0]) for each in apart)
                parts.append(ToldBatch(keys, 0, 0))
            plan = planning.plan(parts)
            assert plan.assignment.tolist() == found
        for number, column in enumerate((items_of, users_of)):
            ids = [keys.ids.tolist() for keys in plan.keys[number]]
            assert ids == [[column[plan.assignment.tolist().index(rank)]] for rank in range(2)]
