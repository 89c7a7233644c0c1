"""A small job for scheduler tests: rows, a plan, a model with a table of each kind, and a training step in phases."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.embeddings import (
    EmbeddingBags,
    EmbeddingsConfig,
    EmbeddingStore,
    Keys,
    apply_gradients,
    embedding_bags,
)
from headrace.embeddings.changes.log import RowBlock
from headrace.features import FeaturePlan
from headrace.logs.schema import Schema
from headrace.pipeline import BatchIterator, read_arrow
from headrace.scheduling.feature_groups import group_features
from headrace.scheduling.policies import Policy
from headrace.scheduling.runtime import StepRuntime
from headrace.scheduling.state import SchedulerState
from headrace.scheduling.work import TrainingWork
from headrace.tensors import Batch

SCHEMA = Schema.from_dict(
    {
        "labels": ["click"],
        "dense": ["age", "price"],
        "ids": ["user", "item", "shop"],
        "id_lists": ["history", "words"],
        "weight": "weight",
    },
    where="schema",
)
FEATURES = {
    "dense": {"age": [{"fill": 0}, "log1p"], "price": [{"fill": 0}]},
    "sparse": {
        "user": [],
        "item": [],
        "history": [{"first_x": 5}],
        "shop": [],
        "words": [{"first_x": 3}],
        "bucket": {"from": "age", "ops": [{"bucketize": [1, 2, 4]}]},
    },
}


def embeddings(**of_items: Any) -> EmbeddingsConfig:
    """A table of each kind."""
    items = {
        "feature_names": ["item", "history"],
        "pooling": {"history": "mean"},
        "kind": "collisionless",
        "num_embeddings": 64,
        "admission_count": 2,
        **of_items,
    }
    default = {"kind": "hashed", "num_embeddings": 300, "optimizer": {"kind": "adam", "lr": 0.05}}
    return EmbeddingsConfig.from_dict({"default": default, "tables": {"items": items}}, where="embeddings")


EMBEDDINGS = embeddings()


def rows(num_rows: int, seed: int = 0) -> pa.Table:
    """Skewed ids, so that neighbouring batches share some and not others."""
    rng = np.random.default_rng(seed)
    lists = rng.zipf(1.3, (num_rows, 6)) % 500
    return pa.table(
        {
            "click": rng.integers(0, 2, num_rows).astype(np.float64),
            "age": rng.exponential(3.0, num_rows),
            "price": rng.normal(size=num_rows),
            "user": rng.integers(0, 200, num_rows),
            "item": rng.zipf(1.2, num_rows) % 1000,
            "shop": rng.integers(0, 20, num_rows),
            "history": pa.array([list(row[: 1 + i % 6]) for i, row in enumerate(lists)], pa.list_(pa.int64())),
            "words": pa.array([list(row[: i % 4]) for i, row in enumerate(lists)], pa.list_(pa.int64())),
            "weight": rng.uniform(0.5, 1.5, num_rows),
        }
    )


class Model(nn.Module):
    """Two tables of different width, as models with a linear part have, and an MLP."""

    def __init__(self, plan: FeaturePlan) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.wide = EmbeddingBags(EMBEDDINGS.first_order(), plan.sparse_keys, 1, seed=3)
        self.deep = EmbeddingBags(EMBEDDINGS, plan.sparse_keys, 8, seed=4)
        self.top = nn.Sequential(nn.Linear(8 * len(plan.sparse_keys) + 2, 16), nn.ReLU(), nn.Linear(16, 1))

    def forward(self, batch: Batch) -> Tensor:
        deep = torch.cat([self.deep(batch).flatten(1), batch.dense], dim=1)
        logits: Tensor = self.top(deep) + self.wide(batch).sum(dim=1)
        return logits


class Phases:
    """The training step in three calls."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.optimizer = torch.optim.Adam(model.parameters(), lr=0.01)

    def forward_backward(self, batch: Batch, num_rows: int) -> float:
        assert batch.weights is not None
        weights = batch.weights[:, None]
        loss = binary_cross_entropy_with_logits(self.model(batch), batch.labels, weight=weights, reduction="sum")
        loss = loss / num_rows
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.item()

    def push(self) -> None:
        apply_gradients(self.model)

    def update(self) -> None:
        self.optimizer.step()
        self.optimizer.zero_grad()


class SlowStore:
    """A store whose transfers arrive when told to: every read and update waits in a queue until `deliver`."""

    def __init__(self, store: EmbeddingStore, forgets_updates: bool = False) -> None:
        self.store = store
        self.queue: deque[Any] = deque()
        self._forgets_updates = forgets_updates

    @property
    def step(self) -> int:
        return self.store.step

    def read(self, keys: Keys, *, after: int | None = None) -> Future[npt.NDArray[np.float32]]:
        read: Future[npt.NDArray[np.float32]] = Future()
        self.queue.append(lambda: read.set_result(self.store.read(keys, after=after).result()))
        return read

    def update(
        self, keys: Keys, gradients: npt.NDArray[np.float32], *, num_rows: int = 1, lr_factor: float = 1.0
    ) -> Future[None]:
        updated: Future[None] = Future()
        if self._forgets_updates:  # says that it is applied before it is
            self.queue.append(lambda: self.store.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor))
            updated.set_result(None)
        else:
            self.queue.append(
                lambda: updated.set_result(
                    self.store.update(keys, gradients, num_rows=num_rows, lr_factor=lr_factor).result()
                )
            )
        return updated

    def changes(self, since: int = 0) -> Iterator[RowBlock]:
        return self.store.changes(since)

    def acknowledge(self, consumer: str, version: int) -> None:
        self.store.acknowledge(consumer, version)


def plan_and_model() -> tuple[FeaturePlan, Model]:
    plan = FeaturePlan.from_config(FEATURES, SCHEMA)
    return plan, Model(plan)


def raw_batches(table: pa.Table, size: int = 64) -> BatchIterator:
    return read_arrow(table).batch(size).open(executor="inline")


def train_plainly(table: pa.Table) -> tuple[list[float], dict[str, Any]]:
    """Losses and parameters of a plain loop."""
    plan, model = plan_and_model()
    phases, losses = Phases(model), []
    for batch in raw_batches(table):
        losses.append(phases.forward_backward(plan.apply(batch), batch.num_rows))
        phases.push()
        phases.update()
    return losses, parameters(model)


def train_scheduled(
    table: pa.Table, policy: Policy, *, verify: bool = False, max_groups: int = 4, is_inline: bool = False
) -> tuple[list[float], dict[str, Any], float]:
    """The same under a scheduler; also the greatest share of keys an early pull deferred."""
    plan, model = plan_and_model()
    groups = group_features(plan, lambda name: tables_of(model, name), max_groups=max_groups)
    losses, deferred = [], 0.0
    with (
        raw_batches(table) as batches,
        TrainingWork(batches, lambda segment: groups, model, Phases(model), verify=verify) as work,
        StepRuntime(work, SchedulerState(policy, num_cores=2), is_inline=is_inline) as steps,
    ):
        while (trained := steps.step()) is not None:
            losses.append(sum(loss for _, loss in trained.parts))
            deferred = max(deferred, work.deferred_ratio)
    return losses, parameters(model), deferred


def tables_of(model: nn.Module, feature: str) -> list[str]:
    """Where a feature is looked up."""
    return [
        f"{name}.{table.name}"
        for name, bags in embedding_bags(model).items()
        for table in bags.tables
        if feature in table.feature_names
    ]


def parameters(model: nn.Module) -> dict[str, Any]:
    """Dense parameters, and the rows of all ids in all tables, wherever they live."""
    found: dict[str, Any] = {name: value.detach().numpy().copy() for name, value in model.named_parameters()}
    for name, bags in embedding_bags(model).items():
        for number, table in enumerate(bags.tables):
            ids = np.arange(1000 if table.kind == "collisionless" else table.num_embeddings)
            keys = Keys(np.full(len(ids), number, np.int32), ids, np.zeros(len(ids), np.int32))
            found[f"{name}.{number}"] = bags.store.read(keys).result()
    return found
