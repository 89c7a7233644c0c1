"""One pass over a log: predict each batch, then train on it."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from budget.logs import BudgetLog
from headrace.embeddings import EmbeddingsConfig, embedding_bags
from headrace.embeddings.tables.make_group import full_bytes_of
from headrace.models import DLRMConfig
from headrace.training import BinaryMetrics
from headrace.training.step import TrainingStep

__all__ = ["FULL", "PassResult", "one_pass"]

FULL = "full"
DIM = 16
OPTIMIZER = {"kind": "rowwise_adagrad", "lr": 0.1, "initial_accumulator": 0.003, "reduction": "sum"}
DENSE_LR = 0.001
LOOKUPS = 100


@dataclass(frozen=True)
class PassResult:
    """Result of a pass.

    Attributes:
        log_loss: Mean log loss in nats of predictions made before their rows were trained on.
        auc: Area under the ROC curve of the same predictions.
        seconds: Seconds of each step.
        cpu_seconds: Processor seconds of each step.
        lookup_seconds: Seconds of reading the rows of each batch once more, after the last step.
        num_bytes: Bytes of the tables at the end.
        budget_bytes: The budget.
    """

    log_loss: float
    auc: float
    seconds: list[float]
    cpu_seconds: list[float]
    lookup_seconds: list[float]
    num_bytes: int
    budget_bytes: int


def one_pass(
    log: BudgetLog, retention: dict[str, Any] | None, ratio: float, seed: int, *, rows: str = "fp32"
) -> PassResult:
    """Train a new model on a log.

    Args:
        log: The log.
        retention: The policy, as in a job file; None for tables with a row for every id.
        ratio: How many times smaller than full tables the budget is.
        seed: Seed of all initial values.
        rows: Storage dtype of rows.

    Raises:
        ConfigError: The policy cannot keep to this budget.
    """
    tables = {name: {"num_embeddings": max(1, count)} for name, count in log.num_ids.items()}
    values: dict[str, Any] = {
        "default": {"kind": "collisionless" if retention is None else "hashed", "optimizer": OPTIMIZER, "rows": rows},
        "tables": tables,
    }
    if retention is not None:
        values |= {"budget": f"{100 / ratio}%", "retention": retention}
    config = EmbeddingsConfig.from_dict(values, where="bench_budget")
    model = DLRMConfig(embedding_dim=DIM, bottom=(64,), top=(64, 32)).build(
        num_dense=log.num_dense, sparse_keys=list(log.num_ids), num_labels=1, embeddings=config, seed=seed
    )
    step = TrainingStep(model, torch.optim.Adam(model.parameters(), lr=DENSE_LR))
    logits, labels, seconds, cpu_seconds = [], [], [], []
    for batch in log.fresh():
        start, cpu_start = time.perf_counter(), time.process_time()
        logits.append(step(batch).logits[:, 0])
        seconds.append(time.perf_counter() - start)
        cpu_seconds.append(time.process_time() - cpu_start)
        labels.append(batch.labels.numpy()[:, 0])
    (bags,) = embedding_bags(model).values()
    lookup_seconds = []
    for batch in log.fresh()[-LOOKUPS:]:
        batch.keys_of(bags.key_layout)
        start = time.perf_counter()
        for part in bags.lookup(batch).parts:
            part.rows()
        lookup_seconds.append(time.perf_counter() - start)
    bags.drop_gradients()
    full_bytes = full_bytes_of(config.tables_of(list(log.num_ids), DIM))
    predicted, known = np.concatenate(logits).astype(np.float64), np.concatenate(labels)
    loss = float(np.mean(np.logaddexp(0, predicted) - known * predicted))
    metrics = BinaryMetrics()
    metrics.update(predicted.astype(np.float32), known)
    return PassResult(
        loss,
        metrics.compute().auc,
        seconds,
        cpu_seconds,
        lookup_seconds,
        bags.table_group.num_bytes,  # type: ignore[union-attr]
        full_bytes if retention is None else int(full_bytes / ratio),
    )
