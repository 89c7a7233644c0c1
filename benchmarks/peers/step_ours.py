"""The training step of headrace: model, tables and `TrainingStep`, as `headrace train` uses them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch

from headrace.embeddings import EmbeddingsConfig
from headrace.models import DCNv2Config, DeepFMConfig, DLRMConfig, ModelConfig, WideDeepConfig
from headrace.tensors import Batch, KeyedJaggedTensor
from headrace.threads import use_threads
from headrace.training.dense_optimizer import Adagrad
from headrace.training.precision import AskedPrecision
from headrace.training.step import TrainingStep
from peers.step_work import DENSE_ADAGRAD, RawBatch, Shape, StepCode

__all__ = ["make"]


def model_config(shape: Shape) -> ModelConfig:
    """Return the section `model` of a job file."""
    dim = shape.embedding_dim
    if shape.model == "dlrm":
        return DLRMConfig(embedding_dim=dim, bottom=shape.bottom, top=shape.top)
    if shape.model == "dcnv2":
        return DCNv2Config(kind="dcnv2", embedding_dim=dim, deep=shape.top)
    if shape.model == "deepfm":
        return DeepFMConfig(kind="deepfm", embedding_dim=dim, deep=shape.top)
    return WideDeepConfig(kind="wide_deep", embedding_dim=dim, deep=shape.top)


def tables(shape: Shape) -> dict[str, Any]:
    """Return the section `embeddings` of a job file: one table per feature, whose rows are indexed by id."""
    default = {"kind": "direct", "optimizer": {"kind": "rowwise_adagrad", "lr": 0.01}}
    sizes = zip(shape.names, shape.table_rows, strict=True)
    return {"default": default, "tables": {name: {"num_embeddings": num_rows} for name, num_rows in sizes}}


def make(shape: Shape, *, precision: AskedPrecision) -> StepCode:
    """Create the model and its optimizers."""
    use_threads(shape.threads)
    model = model_config(shape).build(
        num_dense=shape.num_dense,
        sparse_keys=shape.names,
        num_labels=1,
        embeddings=EmbeddingsConfig.from_dict(tables(shape), where="bench"),
        seed=shape.seed,
    )
    dense_optimizer = Adagrad(kind="adagrad", **DENSE_ADAGRAD).make(model.parameters())
    step = TrainingStep(model, dense_optimizer, precision=precision)

    def prepare(raw: RawBatch) -> Batch:
        offsets = torch.from_numpy(raw.offsets)
        lengths = (offsets[1:] - offsets[:-1]).to(torch.int32)
        num_rows = len(raw.labels)
        group = KeyedJaggedTensor(tuple(shape.names), torch.from_numpy(raw.ids), lengths, offsets, num_rows)
        labels = torch.from_numpy(raw.labels)[:, None]
        return Batch(torch.from_numpy(raw.dense), (group,), labels, torch.arange(num_rows))

    # Batches are reused, so their keys are cleared: every step has to find them, as on a new batch.
    return StepCode(prepare, lambda batch: step(replace(batch, unique_keys={})).loss)
