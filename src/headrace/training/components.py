"""`JobComponents`: the feature plan, model and optimizer of a job, built from the job file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from headrace.embeddings import embedding_bags
from headrace.errors import ConfigError
from headrace.features import FeaturePlan
from headrace.messages import shorten_list
from headrace.tensors import Batch
from headrace.training.job import Device, JobConfig
from headrace.training.label_units import label_units, predict_in_units
from headrace.training.loss import LabelLoss

__all__ = ["JobComponents", "build_components", "describe_model", "place_model", "send_batches"]


@dataclass(frozen=True)
class JobComponents:
    """The components of a job.

    Attributes:
        plan: Feature plan: record batch -> `Batch`.
        model: Model: `Batch` -> float32 [B, L], logits of binary labels and the values of numbers.
        optimizer: Optimizer of the model's dense parameters.
        loss: Loss of the labels.
        label_names: Names of the L labels.
        is_regression: Which of the labels are numbers.
        shape: Description of the parameters' shapes and meaning, see `describe_model`.
    """

    plan: FeaturePlan
    model: nn.Module
    optimizer: torch.optim.Optimizer
    loss: LabelLoss
    label_names: tuple[str, ...]
    is_regression: tuple[bool, ...]
    shape: dict[str, Any]


def build_components(job: JobConfig) -> JobComponents:
    """Build plan, model and optimizer; equal jobs give equal initial parameters.

    Raises:
        ConfigError: Features, embeddings, model and schema do not fit together.
    """
    schema = job.schema_of_logs
    plan = FeaturePlan.default(schema) if job.features is None else FeaturePlan.from_config(job.features, schema)
    labels = tuple(label.name for label in schema.labels)
    is_regression = tuple(label.is_regression for label in schema.labels)
    model = job.model.build(
        num_dense=len(plan.dense_names),
        sparse_keys=plan.sparse_keys,
        num_labels=len(labels),
        embeddings=job.embeddings,
        seed=job.training.seed,
    )
    _check_linear_optimizer(job, model)
    if any(is_regression):
        predict_in_units(model, is_regression)
    model = place_model(model, job.training.device)
    baseline = job.training.baseline
    if baseline is not None and is_regression[0]:
        raise ConfigError(f"training.baseline: ranks a label of clicks, but the first label, {labels[0]}, is a number")
    if baseline is not None and baseline not in plan.dense_names:
        raise ConfigError(f"training.baseline: given {baseline}, expected one of: {shorten_list(plan.dense_names)}")
    optimizer = job.training.dense_optimizer.make(model.parameters())
    if job.training.learning_rate_schedule is not None:
        _check_rates(job, plan)
    units = label_units(model) if any(is_regression) else None
    loss = LabelLoss(_label_weights(job.training.label_weights, labels), units)
    return JobComponents(plan, model, optimizer, loss, labels, is_regression, describe_model(job, plan))


def _check_linear_optimizer(job: JobConfig, model: nn.Module) -> None:
    """Check that `embeddings.linear_optimizer`, if given, trains something.

    Raises:
        ConfigError: The model has no linear part.
    """
    given = job.embeddings.linear_optimizer
    trained = (table.optimizer for bags in embedding_bags(model).values() for table in bags.tables)
    # Identity, because the other tables may have an equal optimizer.
    if given is not None and not any(optimizer is given for optimizer in trained):
        raise ConfigError(
            f"embeddings.linear_optimizer: given {given.kind}, but model {job.model.kind} has no linear part; "
            "expected model deepfm, wide_deep, or dcnv2 with linear: true, or no linear_optimizer"
        )


def _check_rates(job: JobConfig, plan: FeaturePlan) -> None:
    """Check that a schedule can change the learning rates of all tables.

    Raises:
        ConfigError: The optimizer of a table refuses; names the table and the reason.
    """
    optimizers = {f"table {table.name}": table.optimizer for table in job.embeddings.tables_of(plan.sparse_keys)}
    if job.embeddings.linear_optimizer is not None:
        optimizers["embeddings.linear_optimizer"] = job.embeddings.linear_optimizer
    for name, optimizer in optimizers.items():
        try:
            optimizer.with_lr_factor(1.0)
        except ConfigError as error:
            raise ConfigError(f"training.learning_rate_schedule: {name}: {error}") from error


def _label_weights(given: Mapping[str, float], labels: Sequence[str]) -> Tensor | None:
    """float64 [L], the weight of each label in the loss; None if the job gives none.

    Raises:
        ConfigError: A name is not that of a label, or all weights are 0.
    """
    unknown = [name for name in given if name not in labels]
    if unknown:
        raise ConfigError(f"training.label_weights.{unknown[0]}: unknown, expected one of: {shorten_list(labels)}")
    weights = [given.get(label, 1.0) for label in labels]
    if not any(weights):
        raise ConfigError("training.label_weights: all labels have weight 0, expected one above 0")
    return torch.tensor(weights, dtype=torch.float64) if given else None


def place_model(model: nn.Module, device: Device) -> nn.Module:
    """Move a model, including its tables, to a device; it then accepts batches on the host. Returns the model.

    Dense features are copied to the device when the model is called. Ids stay on the host, where rows are looked up.

    Raises:
        ConfigError: The device does not exist.
    """
    if device == "cpu":
        return model
    if not torch.cuda.is_available():
        raise ConfigError(f"training.device: given {device}, but torch {torch.__version__} finds no GPU; expected cpu")
    return send_batches(model.to(device), torch.device(device))


def send_batches(model: nn.Module, device: torch.device) -> nn.Module:
    """Make a model copy the dense features of each batch to the device when it is called. Returns the model."""

    def send(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        batch: Batch = arguments[0]
        return (replace(batch, dense=batch.dense.to(device, non_blocking=True)), *arguments[1:])

    model.register_forward_pre_hook(send)
    return model


def describe_model(job: JobConfig, plan: FeaturePlan) -> dict[str, Any]:
    """Describe everything that learned parameters depend on, as JSON-able values.

    This includes names and order of labels and features, how each feature is computed, the table of its ids, and the
    model. Learning rates, limits and checks are not included and may change.
    """
    schema = job.schema_of_logs
    types: dict[str, str] = {column.name: column.type for column in schema.ids}
    types |= {column.name: column.type for column in schema.id_lists}
    if schema.timestamp is not None:
        types[schema.timestamp.name] = schema.timestamp.unit
    features: dict[str, dict[str, Any]] = {"dense": {}, "sparse": {}}
    for spec in plan.specs:
        features[spec.section][spec.name] = {
            "columns": {name: types.get(name, "number") for name in spec.sources},
            "operators": [{operator.name: operator.model_dump(mode="json")} for operator in spec.operators],
            "weights": spec.weights,
        }
    for table in job.embeddings.tables_of(plan.sparse_keys):
        for key in table.feature_names:
            features["sparse"][key] |= {"table": table.name, "pooling": table.pooling_of(key)}
    regression = [label.name for label in schema.labels if label.is_regression]
    return {
        "labels": [label.name for label in schema.labels],
        **({"regression": regression} if regression else {}),
        "order": {"dense": list(plan.dense_names), "sparse": list(plan.sparse_keys)},
        "features": features,
        "model": job.model.model_dump(mode="json"),
        "dense_optimizer": job.training.dense_optimizer.kind,
        "seed": job.training.seed,
    }
