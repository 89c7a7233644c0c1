"""The output starts at the labels' rates and means, so that a model predicts them before it has learned anything.

If the last layer of a model is called `head`, its bias is set to log(r / (1 - r)) before the first step, where r is the
rate of each label in the first rows (Lin et al., "Focal Loss for Dense Object Detection", 2017, section 4.1). Otherwise
the first steps on a log with few positives teach every row and every layer that positives are rare. A label that is a
number starts at its mean, see `label_units`.

Metrics stay those of predictions made before training: what the start knows of the first batch is taken out of its
predictions again, see `without_start`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from headrace.logs import LabelColumn
from headrace.messages import shorten_list
from headrace.tensors import Batch
from headrace.training.label_units import known_labels, set_label_units

__all__ = ["LabelStart", "first_logits", "set_output_bias", "start_at_labels", "without_start"]

Floats = NDArray[np.float64]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, eq=False)
class LabelStart:
    """What a new model is set to predict.

    Attributes:
        outputs: float64 [L], log-odds of the rate, or mean, of each label in the first rows.
        units: float64 [L], unit of each label that is a number.
        is_regression: bool [L], whether a label is a number.
        is_set: bool [L], False for labels whose rate the model cannot be set to predict.
        num_rows: Number of the first rows.
        only_0_and_1: bool [L], whether a label has no other values in the first rows.
    """

    outputs: Floats
    units: Floats
    is_regression: Bools
    is_set: Bools
    num_rows: int
    only_0_and_1: Bools

    def messages(self, names: Sequence[str]) -> list[str]:
        """Lines about the start, given the names of the labels."""
        lines, where = [], f"of the first {self.num_rows} rows"
        told = [
            f"{name} {1 / (1 + np.exp(-self.outputs[at])):.4g}"
            for at, name in enumerate(names)
            if self.is_set[at] and not self.is_regression[at]
        ]
        if told:
            lines.append(f"the model's output starts at the label rate {where}: {', '.join(told)}")
        told = [
            f"{name} {self.outputs[at]:.4g} (standard deviation {self.units[at]:.4g})"
            for at, name in enumerate(names)
            if self.is_regression[at]
        ]
        if told:
            lines.append(f"the model's output starts at the mean {where}: {', '.join(told)}")
        return lines

    def doubts(self, labels: Sequence[LabelColumn]) -> list[str]:
        """A line if labels that nobody called numbers are trained as such, but look like clicks."""
        found = [
            label.name
            for at, label in enumerate(labels)
            if label.kind is None and self.is_regression[at] and self.only_0_and_1[at]
        ]
        line = (
            f"trained as numbers, but only 0 and 1 in the first {self.num_rows} rows: {shorten_list(found)}; "
            "for a probability, give the label kind: binary in the schema"
        )
        return [line] if found else []

    def removed_from(self, outputs: NDArray[np.float32], batch: Batch) -> NDArray[np.float32]:
        """The predictions [B, L] of the first batch as if only the rows before each one were known.

        NaN for a number before which no row has the label: nothing is known of it, and it is not scored.
        """
        rates = without_start(outputs, np.where(self.is_regression, 0.0, self.outputs), batch)
        weights, sums = _sums(batch, clip=False)
        with np.errstate(invalid="ignore", divide="ignore"):
            means = outputs - self.outputs + sums[:-1] / weights[:-1]
        return np.where(self.is_regression, means, np.where(self.is_set, rates, outputs)).astype(np.float32)


def start_at_labels(model: nn.Module, batch: Batch, is_regression: Sequence[bool]) -> LabelStart | None:
    """Have a new model predict the rates and means of the labels in a batch; None if it cannot be set to any."""
    numbers = np.array(is_regression, dtype=np.bool_)
    logits = first_logits(batch)
    means, units = set_label_units(model, batch) if numbers.any() else (logits, np.ones(len(logits)))
    has_head = set_output_bias(model, np.where(numbers, 0.0, logits))
    if not has_head and not numbers.any():
        return None
    labels = batch.labels.numpy()
    simple = ((labels == 0) | (labels == 1) | np.isnan(labels)).all(axis=0)
    return LabelStart(np.where(numbers, means, logits), units, numbers, numbers | has_head, len(batch), simple)


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


def _sums(batch: Batch, *, clip: bool = True) -> tuple[Floats, Floats]:
    """Weights and weighted labels [B + 1, L] of the rows before each row, and of all; missing labels do not count.

    Args:
        batch: The rows.
        clip: Whether labels are clipped to 0 and 1.
    """
    labels, weights = known_labels(batch)
    return _running_sums(weights), _running_sums(weights * (np.clip(labels, 0, 1) if clip else labels))


def _running_sums(values: Floats) -> Floats:
    return np.concatenate([np.zeros((1, values.shape[1])), np.cumsum(values, axis=0)])


def _logits(weights: Floats, positives: Floats) -> Floats:
    return np.log(positives + 0.5) - np.log(weights - positives + 0.5)
