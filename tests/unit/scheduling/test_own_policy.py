"""A policy that is defined outside the package: it trains each batch as two micro-batches, with the same gradients."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import torch
from small_job import EMBEDDINGS, Phases, SlowStore, plan_and_model, raw_batches, rows, tables_of
from torch import Tensor, nn

from headrace.embeddings import EmbeddingBags, Keys, embedding_bags
from headrace.features import FeaturePlan
from headrace.scheduling import ALL_GROUPS, Decision, Kind, Node, Operator, Part, PullStrategy, Start, StepContext
from headrace.scheduling.feature_groups import group_features
from headrace.scheduling.policies import SERIAL, Policy, SchedulerView, nothing
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import TrainingWork
from headrace.tensors import Batch

HALVES = (Part(0, 2), Part(1, 2))
NUM_ROWS = 64


def build_halves(step: StepContext, *, waits_for_all_keys: bool = True) -> list[Node]:
    """Dense work of the first half may run while the rows of the second are on their way."""
    batch, group = step.batch, ALL_GROUPS if step.num_groups > 1 else 0
    nodes = []
    for half in HALVES:
        features = Operator(Kind.FEATURES, batch, group, half)
        pull = Operator(Kind.PULL, batch, group, half)
        dense = Operator(Kind.DENSE, batch, part=half)
        keys = Operator(Kind.FEATURES, batch) if waits_for_all_keys else features
        known = Start((keys, Operator(Kind.PUSH, batch - 1)), "the keys of both halves are known", after=batch - 1)
        here = Start((pull, Operator(Kind.UPDATE, batch - 1)), "the rows of this half are here")
        nodes += [Node(features, priority=half.number), Node(pull, (known,), priority=half.number)]
        nodes.append(Node(dense, (here,), priority=half.number))
    trained = Start((Operator(Kind.DENSE, batch),), "the gradients of both halves are known")
    return [*nodes, Node(Operator(Kind.PUSH, batch), (trained,)), Node(Operator(Kind.UPDATE, batch), (trained,), 2)]


@dataclass(frozen=True)
class TwoHalves:
    """Features of the next batch to train, on all cores that training leaves free."""

    strategies: tuple[PullStrategy, ...] = (PullStrategy("two halves", build_halves),)
    name: str = "two_halves"
    num_ahead: int = 1

    def num_workers(self, num_cores: int, free_cores: int) -> int:
        return free_cores

    def choose(self, now: SchedulerView) -> Decision:
        operator = now.next_features(now.current)
        return nothing("both halves are begun") if operator is None else Decision(operator, "the next to train")


class Wide(nn.Module):
    """Sums of rows alone: each row of a batch has the same bits whatever rows are beside it."""

    def __init__(self, plan: FeaturePlan) -> None:
        super().__init__()
        self.bags = EmbeddingBags(EMBEDDINGS.first_order(), plan.sparse_keys, 1, seed=3)
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, batch: Batch) -> Tensor:
        return self.bags(batch).sum(dim=1) + self.bias  # type: ignore[no-any-return]


class Recorded(SlowStore):
    """Keeps what each update was handed."""

    def __init__(self, store: Any) -> None:
        super().__init__(store)
        self.updates: list[tuple[Keys, npt.NDArray[np.float32]]] = []

    def read(self, keys: Keys, *, after: int | None = None) -> Any:
        return self.store.read(keys, after=after)

    def update(
        self, keys: Keys, gradients: npt.NDArray[np.float32], *, num_rows: int = 1, lr_factor: float = 1.0
    ) -> Any:
        self.updates.append((keys, gradients.copy()))
        return self.store.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor)


@dataclass
class Outcome:
    losses: list[float]
    dense: dict[str, npt.NDArray[np.float32]]
    counts: dict[tuple[int, int, int], int]
    gradients: dict[tuple[int, int, int], npt.NDArray[np.float32]]
    num_parts: set[int]


class KeptGradients(Phases):
    """Keeps the dense gradients of the last step."""

    def update(self) -> None:
        self.dense = {
            name: each.grad.numpy().copy() for name, each in self.model.named_parameters() if each.grad is not None
        }
        super().update()


def train(policy: Policy, model: nn.Module, plan: FeaturePlan, table: pa.Table, *, max_groups: int = 1) -> Outcome:
    """Train on a table, batch by batch; what the last step sent to the stores."""
    groups = group_features(plan, lambda name: tables_of(model, name), max_groups=max_groups)
    modules, phases, losses, num_parts = list(embedding_bags(model).values()), KeptGradients(model), [], set()
    stores = [Recorded(bags.store) for bags in modules]
    for bags, store in zip(modules, stores, strict=True):
        bags.store = store
    with (
        raw_batches(table, NUM_ROWS) as batches,
        TrainingWork(batches, lambda segment: groups, model, phases) as work,
        StepRuntime(work, SchedulerState(policy, num_cores=2)) as steps,
    ):
        while (trained := steps.step()) is not None:
            losses.append(sum(loss for _, loss in trained.parts))
            num_parts.add(len(trained.parts))
    outcome = Outcome(losses, phases.dense, {}, {}, num_parts)
    for number, store in enumerate(stores):
        keys, gradients = store.updates[-1]
        for table, key, count, gradient in zip(keys.tables, keys.ids, keys.counts, gradients, strict=True):
            outcome.counts[number, int(table), int(key)] = int(count)
            outcome.gradients[number, int(table), int(key)] = gradient
    return outcome


@pytest.mark.parametrize("max_groups", [1, 3])
def test_two_micro_batches_have_the_gradients_of_the_whole_batch(max_groups: int) -> None:
    table = rows(NUM_ROWS)
    (plan, model), (_, other) = plan_and_model(), plan_and_model()
    halves = train(TwoHalves(), model, plan, table, max_groups=max_groups)
    whole = train(SERIAL, other, plan, table)
    assert (halves.num_parts, whole.num_parts) == ({2}, {1})
    assert halves.losses == pytest.approx(whole.losses, rel=1e-6)
    assert halves.counts == whole.counts
    for name, gradient in whole.dense.items():
        np.testing.assert_allclose(halves.dense[name], gradient, rtol=1e-4, atol=1e-7, err_msg=name)
    for key, gradient in whole.gradients.items():
        np.testing.assert_allclose(halves.gradients[key], gradient, rtol=1e-4, atol=1e-7, err_msg=str(key))


def test_the_policy_of_the_documentation_trains_the_same() -> None:
    page = (Path(__file__).parents[3] / "docs" / "scheduling.md").read_text(encoding="utf-8")
    scope: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", page, re.DOTALL):
        exec(compile(block, "scheduling.md", "exec"), scope)
    (plan, model), (_, other) = plan_and_model(), plan_and_model()
    table = rows(NUM_ROWS)
    assert train(scope["TwoHalves"](), model, plan, table).losses == train(TwoHalves(), other, plan, table).losses


def test_gradients_of_keys_in_one_micro_batch_are_those_of_the_whole_batch_bit_for_bit() -> None:
    table, plan = rows(NUM_ROWS), plan_and_model()[0]
    halves, whole = (train(policy, Wide(plan), plan, table) for policy in (TwoHalves(), SERIAL))
    in_halves = [train(SERIAL, Wide(plan), plan, table.slice(*bounds)).counts for bounds in ((0, 32), (32, 32))]
    alone = [key for key in whole.gradients if (key in in_halves[0]) != (key in in_halves[1])]
    assert len(alone) > 50
    for key in alone:
        np.testing.assert_array_equal(halves.gradients[key], whole.gradients[key], err_msg=str(key))


def test_an_id_is_admitted_by_its_counts_in_both_micro_batches() -> None:
    table, plan = rows(NUM_ROWS), plan_and_model()[0]
    columns = {"item": pa.array([7] + [0] * 31 + [7] + [0] * 31), "click": pa.array([1.0] + [0.0] * 63)}
    for name, column in columns.items():
        table = table.set_column(table.schema.get_field_index(name), name, column)
    halves, whole = (train(policy, plan_and_model()[1], plan, table) for policy in (TwoHalves(), SERIAL))
    assert halves.losses == pytest.approx(whole.losses, rel=1e-6)  # a part alone would read zeros for the id


def test_a_batch_without_rows_for_every_part_trains_the_others() -> None:
    plan, model = plan_and_model()
    outcome = train(TwoHalves(), model, plan, rows(NUM_ROWS + 1))
    assert outcome.num_parts == {1, 2}
    assert np.isfinite(outcome.losses).all()


def test_a_pull_that_does_not_wait_for_the_keys_of_all_parts_is_refused() -> None:
    class Hasty:
        def __call__(self, step: StepContext) -> Sequence[Node]:
            return build_halves(step, waits_for_all_keys=False)

    plan, model = plan_and_model()
    policy = TwoHalves((PullStrategy("hasty", Hasty()),))
    groups = group_features(plan, lambda name: tables_of(model, name), max_groups=1)
    with (
        raw_batches(rows(NUM_ROWS)) as batches,
        TrainingWork(batches, lambda segment: groups, model, Phases(model)) as work,
        StepRuntime(work, SchedulerState(policy), is_inline=True) as steps,
        pytest.raises(ValueError, match=r"pull\(0, 0, part 1 of 2\): started before the features of all parts"),
    ):
        steps.step()
