"""Compiles the kernels of training steps ahead of time, and caches them on disk."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import get_args

import numpy as np
import torch

import headrace.features as features
from headrace.embeddings import EmbeddingBags, EmbeddingsConfig, KeyedPlan, Keys, TableConfig, TableGroup
from headrace.embeddings.changes.restoring import restored_state
from headrace.embeddings.changes.segments import write_delta
from headrace.embeddings.shards.merging import PlacedUpdate, merge_placed
from headrace.embeddings.shards.warm_up import warm_up_shard
from headrace.embeddings.storage.tiered import TieredStorage
from headrace.embeddings.tables.index.key_index import SEGMENT_SLOTS, KeyIndex
from headrace.logs.warm_up import warm_up_logs
from headrace.models import DCNv2Config, DeepFMConfig, DLRMConfig, ModelConfig, WideDeepConfig
from headrace.models.products import Precision
from headrace.placement.key_entries import FIRST_ENTRIES, KeyEntries
from headrace.placement.micro_batches import missing_of_rows, parts_of_keys
from headrace.placement.residency import Residency
from headrace.placement.resident_rows import ResidentRows
from headrace.placement.samples.packed_numbers import NumberReader
from headrace.placement.samples.packed_samples import (
    form_of,
    join_samples,
    pack_samples,
    sample_bytes,
    take_samples,
    unpack_samples,
)
from headrace.placement.samples.planning import SamplePlanner, ToldBatch, row_prices
from headrace.placement.samples.sample_keys import SampleKeys
from headrace.publishing.warm_up import warm_up_replica
from headrace.simulation import Machine, PipelineSimulator, published_pipeline
from headrace.tensors import Batch, InverseKeyedJaggedTensor, KeyedJaggedTensor
from headrace.threads import use_threads
from headrace.training.dense_optimizer import eager
from headrace.training.metrics import BinaryMetrics
from headrace.training.step import TrainingStep

__all__ = ["compile_group", "warm_up_groups"]

OPTIMIZERS = ("rowwise_adagrad", "adagrad", "adam", "sgd", "ftrl")
KINDS = ("collisionless", "hashed", "direct")
MODELS: tuple[ModelConfig, ...] = (DLRMConfig(), DCNv2Config(), DeepFMConfig(), WideDeepConfig())


def warm_up_groups() -> dict[str, Callable[[], object]]:
    """Functions that compile kernels, by name; each is fast if the kernels are cached."""
    groups: dict[str, Callable[[], object]] = {"features": features.warmup, "logs": warm_up_logs}
    for optimizer, kind in itertools.zip_longest(OPTIMIZERS, KINDS, fillvalue="hashed"):
        groups[f"embeddings ({optimizer}, {kind})"] = partial(_train_once, optimizer, kind)
    for config in MODELS:
        groups[f"model ({config.kind})"] = partial(_step_in_each_precision, config)
    groups["embeddings (budget)"] = _train_under_a_budget_once
    for rows in ("bf16", "int8"):  # fp16 has the kernels of bf16
        groups[f"embeddings ({rows})"] = partial(_train_rows_once, rows)
    groups["index"] = _grow_index_once
    groups["shards"] = warm_up_shard
    groups["keys"] = _find_keys_once
    groups["placement"] = _keep_rows_once
    groups["samples"] = _place_samples_once
    groups["storage"] = _use_files_once
    groups["checkpoints"] = _restore_once
    groups["replica"] = warm_up_replica
    groups["metrics"] = _score_once
    groups["simulation"] = _simulate_once
    return groups


def compile_group(name: str) -> None:
    """Compile one of `warm_up_groups`, for use in a separate process."""
    warm_up_groups()[name]()


def _use_files_once() -> None:
    """Move rows of a table group to a file and back."""
    table = TableConfig(name="warm up", num_embeddings=2_000, embedding_dim=8)
    with TemporaryDirectory() as folder:
        group = TableGroup([table], seed=0, make_storage=TieredStorage.within(folder, 40_000))
        for first in [*range(0, 2_000, 100), 0]:
            keys = Keys(np.zeros(100, np.int32), np.arange(first, first + 100), np.ones(100, np.int32))
            group.read(keys)
            group.update(keys, np.zeros((100, 8), np.float32))


def _restore_once() -> None:
    """Write two delta checkpoints, and restore the second one."""
    group = TableGroup([TableConfig(name="warm up", num_embeddings=64, embedding_dim=8)], seed=0)
    with TemporaryDirectory() as name:
        folder, entries = Path(name), []
        for number in (1, 2):
            ids = np.arange(number, number + 8, number)  # the second checkpoint has every other row
            keys = Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32))
            group.update(keys, np.zeros((len(ids), 8), np.float32))
            delta = group.delta()
            entries.append(write_delta(folder / f"{number}.rows", delta, first=number))
            group.mark_saved(delta.version)
        restored_state(folder, entries, delta.whole, free_bytes=1 << 30)


def _score_once() -> None:
    """Compute metrics of a batch."""
    BinaryMetrics().update(np.zeros(2, np.float32), np.zeros(2, np.float32))


def _simulate_once() -> None:
    """Simulate a pipeline, as the tuner does."""
    PipelineSimulator(published_pipeline(0.3), Machine.fixed(6)).run(1.0)


def _grow_index_once() -> None:
    """Grow an index of keys by a segment."""
    index, ids = KeyIndex(1), np.arange(SEGMENT_SLOTS)
    index.allocate(Keys(np.zeros(len(ids), np.int32), ids, np.ones(len(ids), np.int32)))
    index.allocate(Keys(np.zeros(len(ids), np.int32), len(ids) + ids, np.ones(len(ids), np.int32)))


def _find_keys_once() -> None:
    """Find unique keys like a pipeline worker, on one thread."""

    class Plan:
        def apply(self, batch: Batch) -> Batch:
            return batch

    bags = EmbeddingBags(EmbeddingsConfig(), ["id"], 8, seed=0)
    batch = Batch(
        torch.ones(2, 0), (KeyedJaggedTensor.from_lists({"id": [[1], [2]]}),), torch.ones(2, 0), torch.arange(2)
    )
    KeyedPlan(Plan(), [bags.key_layout]).apply(batch)


def _keep_rows_once() -> None:
    """Read and update kept rows, of tables with and without admission, split a batch by the rows that are missing, and
    plan and merge the rows of two trainers."""
    for admission_count in (1, 2):
        table = TableConfig(name="warm up", kind="collisionless", embedding_dim=8, admission_count=admission_count)
        residency, rows = Residency(8), ResidentRows([table], 0, 8)
        keys = Keys(np.zeros(4, np.int32), np.arange(4), np.ones(4, np.int32))
        residency.announce(keys)
        residency.place(0)
        for step in (1, 2):
            rows.read(residency.rows_of(0), keys)
            gradients = np.zeros((4, 8), np.float32)
            rows.update(residency.rows_of(0), keys, gradients, step=step, version=step, lr_factor=1.0)
        residency.finish()
        residency.resident()
    entries, num_keys = KeyEntries(), FIRST_ENTRIES * 2  # so that it grows
    many = Keys(np.zeros(num_keys, np.int32), np.arange(num_keys), np.ones(num_keys, np.int32))
    entries.remove(entries.add(many))
    ids = KeyedJaggedTensor.from_lists({"id": [[1], [2]]})
    batch = Batch(torch.ones(2, 0), (ids,), torch.ones(2, 0), torch.arange(2))
    found = EmbeddingBags(EmbeddingsConfig(), ["id"], 8, seed=0).key_layout.find(batch.sparse, ("id",))
    is_missing = np.ones(2, np.bool_)
    missing_of_rows(found, is_missing)
    parts_of_keys(found.split([np.zeros(1, np.int64), np.ones(1, np.int64)]), is_missing)
    shared = Residency(8, 2)
    shared.announce(keys, keys)
    shared.place(0)
    merge_placed([PlacedUpdate(np.arange(4), keys.counts, gradients, 1)] * 2, 4)


def _place_samples_once() -> None:
    """Plan batches of two and of three trainers, of which the first is forgotten, and send samples."""
    ids = KeyedJaggedTensor.from_lists({"id": [[1, 1], [2], [3]]})
    repeated = InverseKeyedJaggedTensor.of_unique(ids, torch.arange(3, dtype=torch.int32))
    layout = EmbeddingBags(EmbeddingsConfig(), ["id"], 8, seed=0).key_layout
    for num_trainers in (2, 3):
        planner = SamplePlanner([row_prices(num_trainers, 1, 1)], max_keys=0)
        for group in (ids, repeated):
            batch = Batch(torch.ones(3, 1), (group,), torch.ones(3, 1), torch.arange(3))
            keys = SampleKeys.of(batch.keys_of(layout)[0])
            keys = SampleKeys.unpack(NumberReader(keys.pack(1)), 1, 3)
            planner.plan([ToldBatch((keys,), sample_bytes(batch), form_of(batch))] * num_trainers)
            sent = unpack_samples(pack_samples(take_samples(batch, np.arange(2))), batch)
            join_samples([sent, sent])


def _train_once(optimizer: str, kind: str) -> None:
    """Run one step of a table group: every pooling, a new row, an update, a window end, an eviction, a saved state."""
    use_threads(None)
    config = EmbeddingsConfig.from_dict(
        {
            "default": {"kind": kind, "num_embeddings": 64, "optimizer": {"kind": optimizer, "lr": 0.1}},
            "tables": {"mean": {"pooling": "mean"}, "max": {"pooling": "max"}},
        },
        where="warm up",
    )
    names = ("sum", "mean", "max")
    bags = EmbeddingBags(config, names, 8, seed=0)
    assert bags.table_group is not None
    batch = (KeyedJaggedTensor.from_lists({name: [[1, 2, 2], [], [40]] for name in names}),)
    bags(batch).sum().backward()
    bags.apply_gradients()
    bags.table_group.end_window()
    bags.table_group.evict(Keys(np.zeros(1, np.int32), np.ones(1, np.int64), np.zeros(1, np.int32)))
    with torch.inference_mode():
        bags.eval()(batch)
    EmbeddingBags(config, names, 8, seed=0).table_group.load_state_dict(bags.table_group.state_dict())  # type: ignore[union-attr]


def _train_rows_once(rows: str) -> None:
    """Run steps of table groups with rows in a format, with and without a budget."""
    values = {"name": "warm up", "num_embeddings": 64, "embedding_dim": 8, "rows": rows}
    table = TableConfig.from_dict(values, where="warm up")
    group = TableGroup([table], seed=0)
    keys = Keys(np.zeros(4, np.int32), np.arange(4), np.ones(4, np.int32))
    group.read(keys)
    group.update(keys, np.zeros((4, 8), np.float32))
    TableGroup([table], seed=0).load_state_dict(group.state_dict())
    _train_under_a_budget_once(rows)


def _train_under_a_budget_once(rows: str = "fp32") -> None:
    """Run steps of a table group with fewer rows than ids, so that rows move, and load its state."""
    use_threads(None)
    policy = {"kind": "importance", "admission": 0, "half_life_rows": 1}
    config = EmbeddingsConfig.from_dict(
        {"budget": "2KiB", "retention": policy, "default": {"num_embeddings": 64, "rows": rows}}, where="warm up"
    )
    bags = EmbeddingBags(config, ["id"], 8, seed=0)
    assert bags.table_group is not None
    for first in (0, 64, 64):
        ids = KeyedJaggedTensor.from_lists({"id": [[first + each] for each in range(64)]})
        bags((ids,)).sum().backward()
        bags.apply_gradients()
    bags.table_group.evict(Keys(np.zeros(1, np.int32), np.full(1, 64, np.int64), np.zeros(1, np.int32)))
    EmbeddingBags(config, ["id"], 8, seed=0).table_group.load_state_dict(bags.table_group.state_dict())  # type: ignore[union-attr]


def _step_in_each_precision(config: ModelConfig) -> None:
    """Run steps of a model in each precision, with weights and without; precisions share kernels."""
    for precision in get_args(Precision):
        _step_once(config, precision)


def _step_once(config: ModelConfig, precision: Precision) -> None:
    embeddings = EmbeddingsConfig.from_dict({"default": {"num_embeddings": 64}}, where="warm up")
    model = config.build(num_dense=2, sparse_keys=["id"], num_labels=1, embeddings=embeddings, seed=0)
    optimizer = eager(torch.optim.SGD)(model.parameters(), lr=0.1)
    step = TrainingStep(model, optimizer, precision=precision)
    ids = KeyedJaggedTensor.from_lists({"id": [[1], [2]]})
    for weights in (None, torch.ones(2)):
        step(Batch(torch.ones(2, 2), (ids,), torch.ones(2, 1), torch.arange(2), weights))
