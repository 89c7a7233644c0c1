"""`LabelLoss`: the loss of a job's labels; log loss or squared error of each, and their gradient, in one pass."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.compiling import kernel

__all__ = ["LabelLoss"]

Array = npt.NDArray[Any]


@dataclass(frozen=True, eq=False)
class LabelLoss:
    """Mean over rows and labels of weight times loss, and its gradient.

    The loss is the log loss of a logit, or the square of an error in a label's unit, such as its standard deviation;
    so labels in seconds and in hours are trained alike.

    Attributes:
        weights: float64 [L], weight of each label; None for ones.
        units: float32 [L], unit of each label's squared error; 0 for a label with log loss. None if all have log loss.
    """

    weights: Tensor | None = None
    units: Tensor | None = None

    def __call__(
        self, outputs_BL: Tensor, labels_BL: Tensor, weights_B: Tensor | None, *, num_rows: int | None = None
    ) -> tuple[float, Tensor]:
        """Compute the loss of a batch.

        Args:
            outputs_BL: float32, logits and predicted values.
            labels_BL: float32, from 0 to 1 for a label with log loss; NaN where a row does not have the label, which
                counts as weight 0.
            weights_B: float32; None for ones. The mean divides by the number of rows, not by the sum of weights.
            num_rows: Rows of the whole batch if these B rows are a micro-batch; None for B. Losses and gradients of all
                micro-batches add up to those of the batch.

        Returns:
            The loss, and its gradient, float32 [B, L], the argument of `outputs.backward`. The loss is NaN if there are
            no rows or a label is outside [0, 1].
        """
        num_labels = outputs_BL.shape[1]
        weights_L = torch.ones(num_labels, dtype=torch.float64) if self.weights is None else self.weights
        units_L = torch.zeros(num_labels, dtype=torch.float64) if self.units is None else self.units
        if not outputs_BL.is_cpu or outputs_BL.dtype != torch.float32 or not len(outputs_BL):
            return _by_torch(outputs_BL, labels_BL, weights_B, num_rows, weights_L, units_L)
        grad = torch.empty(outputs_BL.shape)
        scale = 1.0 / ((len(outputs_BL) if num_rows is None else num_rows) * num_labels)
        value = _label_loss(
            outputs_BL.detach().contiguous().numpy(),
            labels_BL.numpy(),
            np.empty(0, np.float32) if weights_B is None else weights_B.numpy(),
            weights_L.double().cpu().numpy(),
            units_L.double().cpu().numpy(),
            scale,
            grad.numpy(),
        )
        return value, grad

    def impossible(self, labels_BL: Tensor) -> Tensor:
        """The values of labels for which there is no loss: those with log loss that are not from 0 to 1."""
        outside = (labels_BL < 0) | (labels_BL > 1)
        if self.units is not None:
            outside &= self.units.to(labels_BL.device) == 0
        return labels_BL[outside]


@kernel()
def _label_loss(
    outputs: Array, labels: Array, weights: Array, label_weights: Array, units: Array, scale: float, grad: Array
) -> float:
    num_rows, num_labels = outputs.shape
    total = 0.0
    for b in range(num_rows):
        row_weight = np.float64(weights[b]) if len(weights) else 1.0
        for label in range(num_labels):
            x, y = np.float64(outputs[b, label]), np.float64(labels[b, label])
            weight, unit = row_weight * label_weights[label], units[label]
            if y != y:  # NaN: the row does not have this label
                grad[b, label] = 0.0
                continue
            if unit > 0.0:
                error = (x - y) / unit
                total += weight * (error * error)
                grad[b, label] = weight * (2.0 * error / unit) * scale
                continue
            if y < 0.0 or y > 1.0:
                return np.nan
            shrunk = np.exp(-abs(x))  # in (0, 1]: neither end of the sigmoid overflows
            probability = (1.0 if x >= 0 else shrunk) / (1.0 + shrunk)
            total += weight * (max(x, 0.0) - x * y + np.log1p(shrunk))
            grad[b, label] = weight * (probability - y) * scale
    return float(total * scale)


def _by_torch(
    outputs_BL: Tensor,
    labels_BL: Tensor,
    weights_B: Tensor | None,
    num_rows: int | None,
    label_weights_L: Tensor,
    units_L: Tensor,
) -> tuple[float, Tensor]:
    """The same on a device, in other dtypes, and for no rows."""
    leaf = outputs_BL.detach().requires_grad_()
    weights_L, units = (values.to(leaf.device, leaf.dtype) for values in (label_weights_L, units_L))
    known = (labels_BL == labels_BL).to(labels_BL.dtype)
    weights = known * weights_L if weights_B is None else known * weights_B[:, None] * weights_L
    labels, squared = labels_BL.nan_to_num(), units > 0
    impossible = ~squared & ((labels < 0.0) | (labels > 1.0))
    losses = binary_cross_entropy_with_logits(leaf, labels, weight=weights, reduction="none")
    if bool(squared.any()):
        errors = (leaf - labels) / torch.where(squared, units, torch.ones_like(units))
        losses = torch.where(squared, weights * errors * errors, losses)
    loss = losses.masked_fill(impossible, torch.nan).mean()
    (gradient,) = torch.autograd.grad(loss, leaf)
    share = 1.0 if num_rows is None else len(outputs_BL) / num_rows
    return (loss.item(), gradient) if share == 1.0 else (share * loss.item(), share * gradient)
