"""Real plans, embeddings and a model under every policy: the numbers are those of a plain loop, bit for bit."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from small_job import (
    Phases,
    SlowStore,
    parameters,
    plan_and_model,
    raw_batches,
    rows,
    tables_of,
    train_plainly,
    train_scheduled,
)
from torch import nn

from headrace.embeddings import Keys, embedding_bags
from headrace.errors import DataError, HeadraceError
from headrace.pipeline import TableSource, from_sources
from headrace.registry import STEP_POLICIES
from headrace.scheduling.feature_groups import group_features
from headrace.scheduling.graph import ALL_GROUPS
from headrace.scheduling.policies import RECS, RECS_EARLY, Policy, PullStrategy, StepwisePolicy
from headrace.scheduling.policies.strategies import AHEAD, BY_GROUP, EARLY, IN_GROUPS, early_pulls
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.selection import WARM_UP_STEPS
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import TrainingWork
from headrace.tensors import Batch

EARLY_IN_GROUPS = PullStrategy("early, in groups", lambda step: early_pulls(step, range(step.num_groups)))
HASTY = PullStrategy(
    "asked ahead of a store that does not wait", lambda step: AHEAD.build(replace(step, store_waits=True))
)


def assert_equal(left: dict[str, Any], right: dict[str, Any]) -> None:
    assert left.keys() == right.keys()
    for name, value in left.items():
        np.testing.assert_array_equal(value, right[name], err_msg=name)


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], dict[str, Any]]:
    return train_plainly(rows(64 * 9 + 17))


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_parameters_equal_those_of_a_plain_loop_bit_for_bit(
    name: str, plain: tuple[list[float], dict[str, Any]]
) -> None:
    losses, found, _ = train_scheduled(rows(64 * 9 + 17), STEP_POLICIES[name])
    assert losses == plain[0]
    assert_equal(found, plain[1])


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_parameters_stay_equal_where_the_caller_does_it_all(
    name: str, plain: tuple[list[float], dict[str, Any]]
) -> None:
    losses, found, _ = train_scheduled(rows(64 * 9 + 17), STEP_POLICIES[name], max_groups=1, is_inline=True)
    assert losses == plain[0]
    assert_equal(found, plain[1])


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_keys_are_found_with_the_features_and_rows_read_once(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The model finds no keys and sends no reads: it gets those of its batch, under every policy."""
    num_steps = []
    forward_backward = Phases.forward_backward

    def forbid(self: Phases, batch: Batch, num_rows: int) -> float:
        def fail(*_: Any) -> Any:
            raise AssertionError("in the middle of dense work")

        with monkeypatch.context() as patch:
            for place in ("keys.unique_keys", "ops.accumulation.unique_keys", "stores.local.LocalStore.read"):
                patch.setattr(f"headrace.embeddings.{place}", fail)
            num_steps.append(len(batch))
            return forward_backward(self, batch, num_rows)

    monkeypatch.setattr(Phases, "forward_backward", forbid)
    train_scheduled(rows(64 * 3), STEP_POLICIES[name], is_inline=True, max_groups=3)
    assert num_steps == [64, 64, 64]


@contextmanager
def slow(model: nn.Module, *, forgets_updates: bool = False) -> Iterator[None]:
    """Transfers of a model's embeddings arrive a while after they were sent, in order, from a thread of their own."""
    stores = []
    for bags in embedding_bags(model).values():
        store = SlowStore(bags.store, forgets_updates)
        bags.store = store
        stores.append(store)
    stop = threading.Event()

    def deliver() -> None:
        while not stop.wait(0.0005):
            for store in stores:
                if store.queue:
                    store.queue.popleft()()

    thread = threading.Thread(target=deliver)
    thread.start()
    try:
        yield
    finally:
        while any(store.queue for store in stores):
            pass
        stop.set()
        thread.join()
        for bags, store in zip(embedding_bags(model).values(), stores, strict=True):
            bags.store = store.store


def train_slowly(
    num_rows: int, policy: Policy, *, verify: bool = False, forgets_updates: bool = False
) -> tuple[list[float], dict[str, Any], list[float]]:
    plan, model = plan_and_model()
    groups = group_features(plan, lambda name: tables_of(model, name), max_groups=4)
    losses, deferred = [], []
    with (
        slow(model, forgets_updates=forgets_updates),
        raw_batches(rows(num_rows)) as batches,
        TrainingWork(batches, lambda segment: groups, model, Phases(model), verify=verify) as work,
        StepRuntime(work, SchedulerState(policy, num_cores=2)) as steps,
    ):
        while (trained := steps.step()) is not None:
            losses.append(sum(loss for _, loss in trained.parts))
            deferred.append(work.deferred_ratio)
    return losses, parameters(model), deferred


@pytest.mark.parametrize("name", ["serial", "recs", "recs_early"])
def test_parameters_stay_equal_when_transfers_take_their_time(
    name: str, plain: tuple[list[float], dict[str, Any]]
) -> None:
    losses, found, deferred = train_slowly(64 * 9 + 17, STEP_POLICIES[name])
    assert losses == plain[0]
    assert_equal(found, plain[1])
    assert (max(deferred) > 0) == (name == "recs_early")
    assert max(deferred) < 1


TABLES = [rows(64 * 5 + 9), rows(64 * 3, seed=1), rows(10, seed=2), rows(64 * 2 + 1, seed=3)]


def forget_some(model: nn.Module) -> None:
    """What may happen between two segments: many rows begin anew."""
    for bags in embedding_bags(model).values():
        assert bags.table_group is not None
        spaces = np.repeat(np.arange(len(bags.tables), dtype=np.int32), 200)
        ids = np.tile(np.arange(200), len(bags.tables))
        bags.table_group.evict(Keys(spaces, ids, np.zeros(len(ids), np.int32)))


@pytest.fixture(scope="module")
def plain_segments() -> tuple[list[list[float]], dict[str, Any]]:
    plan, model = plan_and_model()
    phases, losses = Phases(model), []
    for table in TABLES:
        losses.append([])
        for batch in raw_batches(table):
            losses[-1].append(phases.forward_backward(plan.apply(batch), batch.num_rows))
            phases.push()
            phases.update()
        forget_some(model)
    return losses, parameters(model)


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_rows_that_are_forgotten_between_segments_are_read_anew(
    name: str, is_slow: bool, plain_segments: tuple[list[list[float]], dict[str, Any]]
) -> None:
    plan, model = plan_and_model()
    split, whole = (group_features(plan, lambda feature: tables_of(model, feature), max_groups=n) for n in (4, 1))
    pipe = from_sources([TableSource(table) for table in TABLES]).batch(64).prefetch(4)
    losses: list[list[float]] = []
    stats: list[int] = []
    with (
        slow(model) if is_slow else nullcontext(),
        pipe.open(workers=1) as batches,
        TrainingWork(batches, [split, whole, split, split].__getitem__, model, Phases(model), verify=True) as work,
        StepRuntime(work, SchedulerState(STEP_POLICIES[name], num_cores=2, num_segments=len(TABLES))) as steps,
    ):
        for _ in TABLES:
            losses.append([])
            stats.append(0)
            while (trained := steps.step()) is not None:
                losses[-1].append(sum(loss for _, loss in trained.parts))
                stats[-1] += trained.row_stats.num_used
            end, position = work.end_segment()
            assert end.num_read == 0
            assert position.get("segment", 0) == len(losses) - 1
            forget_some(model)
    assert losses == plain_segments[0]
    assert_equal(parameters(model), plain_segments[1])
    assert stats == [table.num_rows for table in TABLES]


@pytest.mark.parametrize("strategies", [(BY_GROUP, EARLY), (EARLY, IN_GROUPS), (EARLY_IN_GROUPS, EARLY)])
def test_parameters_stay_equal_when_the_way_of_splitting_features_changes(strategies: tuple[PullStrategy, ...]) -> None:
    table = rows(64 * (WARM_UP_STEPS + 16))
    expected, parameters_then = train_plainly(table)[:2]
    losses, found, deferred = train_slowly(table.num_rows, replace(RECS_EARLY, strategies=strategies), verify=True)
    assert losses == expected
    assert_equal(found, parameters_then)
    assert max(deferred) > 0


@pytest.mark.parametrize("policy", [RECS, RECS_EARLY])
def test_verify_passes_where_nothing_is_wrong(policy: Policy) -> None:
    train_slowly(64 * 6, policy, verify=True)


@pytest.mark.parametrize("policy", [RECS, RECS_EARLY])
def test_verify_catches_a_pull_that_ignores_a_push(policy: StepwisePolicy, monkeypatch: pytest.MonkeyPatch) -> None:
    if policy is RECS_EARLY:  # nothing counts as touched, so every row is pulled early
        nothing = lambda keys, others: np.zeros(len(keys), dtype=bool)  # noqa: E731
        monkeypatch.setattr("headrace.scheduling.store.keys_in", nothing)
    else:
        policy = replace(policy, strategies=(HASTY,))
    with pytest.raises(HeadraceError, match=r"verify: \d+ of \d+ rows were pulled before the last push"):
        train_slowly(64 * 12, policy, verify=True)


def test_groups_together_have_every_feature_once_and_shared_tables_stay_together() -> None:
    plan, model = plan_and_model()
    for max_groups in (1, 2, 3, 8):
        groups = group_features(plan, lambda name: tables_of(model, name), max_groups=max_groups)
        assert len(groups) <= max_groups
        assert sorted(name for group in groups.parts for name in group.features) == sorted(plan.sparse_keys)
        assert sum({"item", "history"} <= set(group.features) for group in groups.parts) == 1
        assert groups.of(0).plan.dense_names == plan.dense_names
        assert groups.of(0).plan.label_names == plan.label_names
        assert all(not group.plan.label_names for group in groups.parts[1:])
        assert groups.of(ALL_GROUPS).plan is plan


def test_accounts_and_tokens_are_those_of_the_batch_that_trained() -> None:
    table = rows(64 * 5)
    with raw_batches(table) as batches:
        tokens = [batches.state_dict() for _ in batches]
    plan, model = plan_and_model()
    groups = group_features(plan, lambda name: tables_of(model, name))
    with (
        raw_batches(table) as batches,
        TrainingWork(batches, lambda segment: groups, model, Phases(model)) as work,
        StepRuntime(work, SchedulerState(RECS, num_cores=1)) as steps,
    ):
        trained = [steps.step() for _ in range(5)]
        assert steps.step() is None
    assert [one.position for one in trained] == tokens
    assert [one.row_stats.num_used for one in trained] == [64] * 5
    assert work.end_segment()[0].num_used == 0


def test_a_feature_that_cannot_be_computed_stops_training_with_its_error() -> None:
    table = rows(64 * 4).drop_columns(["history"])
    plan, model = plan_and_model()
    groups = group_features(plan, lambda name: tables_of(model, name))
    store = model.deep.store
    with (
        raw_batches(table) as batches,
        TrainingWork(batches, lambda segment: groups, model, Phases(model)) as work,
        StepRuntime(work, SchedulerState(RECS, num_cores=1)) as steps,
        pytest.raises(DataError, match="history"),
    ):
        steps.step()
    assert model.deep.store is store
