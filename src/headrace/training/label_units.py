"""Numbers as labels: a model predicts them as so many standard deviations from their mean, which the model keeps.

A rating from 1 to 5 and a watch time of thousands of seconds then take the same learning rates. Mean and standard
deviation are those of the first rows; they are buffers of the model, so checkpoints and exports have them. They are not
updated, because that would change every prediction.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from headrace.tensors import Batch

__all__ = ["LABEL_BUFFERS", "known_labels", "label_units", "predict_in_units", "set_label_units"]

MEAN, UNIT = "label_mean", "label_unit"
LABEL_BUFFERS = (MEAN, UNIT)
"""Buffers of the model, float32 [L]."""

Floats = NDArray[np.float64]


def predict_in_units(model: nn.Module, is_regression: Sequence[bool]) -> None:
    """Make a model return `mean + unit * output` for the labels that are numbers, and its output for all others.

    Args:
        model: Batch -> float32 [B, L]; it gets the buffers `label_mean`, zeros, and `label_unit`, ones, or 0 for
            labels that are no numbers.
        is_regression: Which of the L labels are numbers.
    """
    model.register_buffer(MEAN, torch.zeros(len(is_regression)))
    model.register_buffer(UNIT, torch.tensor(is_regression, dtype=torch.float32))

    def to_units(module: nn.Module, _: tuple[Any, ...], outputs_BL: Tensor) -> Tensor:
        mean_L, unit_L = module.get_buffer(MEAN), module.get_buffer(UNIT)
        return torch.where(unit_L > 0, mean_L + unit_L * outputs_BL, outputs_BL)

    model.register_forward_hook(to_units)


def label_units(model: nn.Module) -> Tensor:
    """float32 [L], the unit of each label, 0 for labels that are no numbers; changes with `set_label_units`."""
    return model.get_buffer(UNIT)


def known_labels(batch: Batch) -> tuple[Floats, Floats]:
    """The labels of a batch, and their weights, float64 [B, L] each; a missing label is 0, with weight 0."""
    labels = batch.labels.numpy().astype(np.float64)
    weights = np.ones(len(labels)) if batch.weights is None else batch.weights.numpy().astype(np.float64)
    return np.nan_to_num(labels), weights[:, None] * np.isfinite(labels)


def set_label_units(model: nn.Module, batch: Batch) -> tuple[Floats, Floats]:
    """Set mean and unit of a model's labels to the weighted mean and standard deviation of a batch.

    Returns:
        The means and the units, float64 [L]. A label that is the same in all rows, or missing in all, has the unit 1.
    """
    labels_BL, weights_BL = known_labels(batch)
    total = np.maximum(weights_BL.sum(axis=0), np.finfo(np.float64).tiny)
    means = (weights_BL * labels_BL).sum(axis=0) / total
    units = np.sqrt((weights_BL * (labels_BL - means) ** 2).sum(axis=0) / total).astype(np.float32)
    units = np.where(units > 0, units, np.float32(1.0)).astype(np.float64)
    with torch.no_grad():
        is_regression = label_units(model) > 0
        model.get_buffer(MEAN).copy_(torch.from_numpy(means) * is_regression.cpu())
        label_units(model).copy_(torch.from_numpy(units) * is_regression.cpu())
    return means, units
