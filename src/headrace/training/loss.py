"""`log_loss`: weighted log loss of logits and its gradient in one pass."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from headrace.compiling import kernel

__all__ = ["log_loss"]

Array = npt.NDArray[Any]


@kernel()
def _log_loss(logits: Array, labels: Array, weights: Array, scale: float, grad: Array) -> float:
    num_rows, num_labels = logits.shape
    total = 0.0
    for b in range(num_rows):
        weight = np.float64(weights[b]) if len(weights) else 1.0
        for label in range(num_labels):
            x, y = np.float64(logits[b, label]), np.float64(labels[b, label])
            if y != y:  # NaN: the row does not have this label
                grad[b, label] = 0.0
                continue
            if y < 0.0 or y > 1.0:
                return np.nan
            shrunk = np.exp(-abs(x))  # in (0, 1]: neither end of the sigmoid overflows
            probability = (1.0 if x >= 0 else shrunk) / (1.0 + shrunk)
            total += weight * (max(x, 0.0) - x * y + np.log1p(shrunk))
            grad[b, label] = weight * (probability - y) * scale
    return float(total * scale)


def log_loss(
    logits_BL: Tensor, labels_BL: Tensor, weights_B: Tensor | None, *, num_rows: int | None = None
) -> tuple[float, Tensor]:
    """Mean over rows and labels of weight times log loss, and its gradient.

    Args:
        logits_BL: float32.
        labels_BL: float32, from 0 to 1; NaN where a row does not have the label, which counts as weight 0.
        weights_B: float32; None for ones. The mean divides by the number of rows, not by the sum of weights.
        num_rows: Rows of the whole batch if these B rows are a micro-batch; None for B. Losses and gradients of all
            micro-batches add up to those of the batch.

    Returns:
        The loss, and its gradient, float32 [B, L], the argument of `logits.backward`. The loss is NaN if there are no
        rows or a label is outside [0, 1].
    """
    if not logits_BL.is_cpu or logits_BL.dtype != torch.float32 or not len(logits_BL):
        leaf = logits_BL.detach().requires_grad_()
        known = (labels_BL == labels_BL).to(labels_BL.dtype)
        weights = known if weights_B is None else known * weights_B[:, None]
        weights = weights.masked_fill((labels_BL < 0.0) | (labels_BL > 1.0), torch.nan)
        loss = binary_cross_entropy_with_logits(leaf, labels_BL.nan_to_num(), weight=weights)
        (gradient,) = torch.autograd.grad(loss, leaf)
        share = 1.0 if num_rows is None else len(logits_BL) / num_rows
        return (loss.item(), gradient) if share == 1.0 else (share * loss.item(), share * gradient)
    grad = torch.empty(logits_BL.shape)
    scale = 1.0 / ((len(logits_BL) if num_rows is None else num_rows) * logits_BL.shape[1])
    no_weights = np.empty(0, np.float32)
    weights_array = no_weights if weights_B is None else weights_B.numpy()
    logits = logits_BL.detach().contiguous().numpy()
    value = _log_loss(logits, labels_BL.numpy(), weights_array, scale, grad.numpy())
    return value, grad
