"""The output starts at the label rate, so that a model predicts it before it has learned anything.

If the last layer of a model is called `head`, its bias is set to log(r / (1 - r)) before the first step, where r is the
rate of each label in the first rows (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4.1). Otherwise
the first steps on a log with few positives teach every row and every layer that positives are rare.

Metrics stay those of predictions made before training: what the bias knows of the first batch is taken out of its
predictions again, see `without_start`.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headrace.tensors import Batch

__all__ = ["first_logits", "set_output_bias", "without_start"]

Floats = NDArray[np.float64]


def first_logits(batch: Batch) -> Floats:
    """float64 [L], the logits that predict the rate of each label in a batch, with half a positive and half a negative
    added (Krichevsky and Trofimov, 1981), so that they are finite."""
    weights, positives = _sums(batch)
    return _logits(weights[-1], positives[-1])


def set_output_bias(model: nn.Module, logits: Floats) -> bool:
    """Set the bias [L] of the model's `head`; False if it has none of that size."""
    bias = getattr(getattr(model, "head", None), "bias", None)
    if not isinstance(bias, torch.Tensor) or bias.shape != logits.shape:
        return False
    with torch.no_grad():
        bias.copy_(torch.from_numpy(logits))
    return True


def without_start(logits: NDArray[np.float32], start: Floats, batch: Batch) -> NDArray[np.float32]:
    """The predictions of the first batch as they would be if only the rows before each one were known.

    Args:
        logits: float32 [B, L], predicted from `start`.
        start: float64 [L], see `first_logits`.
        batch: Whose labels are counted row by row.

    Returns:
        float32 [B, L].
    """
    weights, positives = _sums(batch)
    return (logits - start + _logits(weights[:-1], positives[:-1])).astype(np.float32)


def _sums(batch: Batch) -> tuple[Floats, Floats]:
    """Weights and weighted labels [B + 1, L] of the rows before each row, and of all; missing labels do not count."""
    labels = batch.labels.numpy().astype(np.float64)
    weights = np.ones(len(labels)) if batch.weights is None else batch.weights.numpy().astype(np.float64)
    known = weights[:, None] * np.isfinite(labels)
    return _running_sums(known), _running_sums(known * np.clip(np.nan_to_num(labels), 0, 1))


def _running_sums(values: Floats) -> Floats:
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])


def _logits(weights: Floats, positives: Floats) -> Floats:
    return np.log(positives + 0.5) - np.log(weights - positives + 0.5)
