"""Scheduled steps over real shards: parameters are those of one process, bit for bit, and `verify` sees a race."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "scheduling"))

from small_job import Phases, embeddings, parameters, plan_and_model, raw_batches, rows, tables_of, train_plainly
from torch import nn

from headrace.embeddings import embedding_bags
from headrace.embeddings.shards.group import ShardGroup
from headrace.embeddings.shards.service import ShardServer
from headrace.embeddings.shards.shard import Shard
from headrace.embeddings.shards.table_group import TableGroupSpec
from headrace.errors import HeadraceError
from headrace.pipeline import TableSource, from_sources
from headrace.registry import STEP_POLICIES
from headrace.scheduling.feature_groups import group_features
from headrace.scheduling.policies import RECS_EARLY
from headrace.scheduling.policies.strategies import EARLY
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import TrainingWork

NUM_ROWS = 64 * 9 + 17
NUM_SHARDS = 2


@pytest.fixture
def addresses() -> Iterator[list[str]]:
    servers = [ShardServer(Shard(), "127.0.0.1:0", threads=1) for _ in range(NUM_SHARDS)]
    yield [f"127.0.0.1:{server.port}" for server in servers]
    for server in servers:
        server.shutdown()


@contextmanager
def in_shards(model: nn.Module, addresses: list[str]) -> Iterator[ShardGroup]:
    modules = embedding_bags(model)
    seeds = {"wide": 3, "deep": 4}
    table_groups = {name: TableGroupSpec(bags.tables, seeds[name]) for name, bags in modules.items()}
    with ShardGroup(addresses, table_groups) as group:
        for name, bags in modules.items():
            bags.use_store(group.store(name))
        yield group


def train(addresses: list[str], name: str, *, verify: bool = False) -> tuple[list[float], dict[str, Any]]:
    plan, model = plan_and_model()
    groups = group_features(plan, lambda feature: tables_of(model, feature), max_groups=4)
    losses = []
    with in_shards(model, addresses):
        state = SchedulerState(STEP_POLICIES[name], num_cores=2, store_waits=True)
        with (
            raw_batches(rows(NUM_ROWS)) as batches,
            TrainingWork(batches, lambda segment: groups, model, Phases(model), verify=verify) as work,
            StepRuntime(work, state) as steps,
        ):
            while (trained := steps.step()) is not None:
                losses.append(sum(loss for _, loss in trained.parts))
        return losses, parameters(model)


@pytest.fixture(scope="module")
def plain() -> tuple[list[float], dict[str, Any]]:
    return train_plainly(rows(NUM_ROWS))


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_parameters_equal_those_of_one_process(
    addresses: list[str], name: str, plain: tuple[list[float], dict[str, Any]]
) -> None:
    losses, found = train(addresses, name)
    assert losses == plain[0]
    for key, value in found.items():
        np.testing.assert_array_equal(value, plain[1][key], err_msg=key)


TABLES = [rows(64 * 4 + 9), rows(64 * 3, seed=1), rows(64 * 2 + 1, seed=2)]


@pytest.mark.parametrize("name", sorted(STEP_POLICIES))
def test_the_end_of_a_window_comes_between_the_updates_before_and_the_reads_behind(
    addresses: list[str], name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("small_job.EMBEDDINGS", embeddings(evict_after=1))
    plan, model = plan_and_model()
    phases, num_freed = Phases(model), 0
    for table in TABLES:
        for batch in raw_batches(table):
            phases.forward_backward(plan.apply(batch), batch.num_rows)
            phases.push()
            phases.update()
        for bags in embedding_bags(model).values():
            assert bags.table_group is not None
            num_freed += bags.table_group.end_window()
    assert num_freed > 0
    expected = parameters(model)

    plan, model = plan_and_model()
    groups = group_features(plan, lambda feature: tables_of(model, feature), max_groups=4)
    pipe = from_sources([TableSource(table) for table in TABLES]).batch(64).prefetch(4)
    num_steps = 0
    with in_shards(model, addresses) as group:
        state = SchedulerState(STEP_POLICIES[name], num_cores=2, store_waits=True, num_segments=len(TABLES))
        with (
            pipe.open(workers=1) as batches,
            TrainingWork(batches, lambda segment: groups, model, Phases(model), verify=True) as work,
            StepRuntime(work, state) as steps,
        ):
            for _ in TABLES:
                while steps.step() is not None:
                    num_steps += 1
                group.end_window(num_steps)
        found = parameters(model)
    for key, value in found.items():
        np.testing.assert_array_equal(value, expected[key], err_msg=key)


@pytest.mark.parametrize("name", ["recs", "recs_early"])
def test_verify_passes_over_shards(addresses: list[str], name: str) -> None:
    train(addresses, name, verify=True)


def test_verify_catches_an_early_pull_of_rows_that_a_push_touches(
    addresses: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing = lambda keys, others: np.zeros(len(keys), dtype=bool)  # noqa: E731
    monkeypatch.setattr("headrace.scheduling.store.keys_in", nothing)
    assert RECS_EARLY.strategies[0] is EARLY
    with pytest.raises(HeadraceError, match=r"verify: \d+ of \d+ rows were pulled before the last push"):
        train(addresses, "recs_early", verify=True)
