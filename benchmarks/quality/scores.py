"""Scores of predictions that were made before their rows were trained on: of all rows, and by quarter of the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.training import BinaryMetrics

__all__ = ["label_rate_logits", "score", "to_logits"]

NUM_QUARTERS = 4


def score(logits: npt.NDArray[Any], labels: npt.NDArray[np.float32]) -> dict[str, list[float]]:
    """NE and AUC: of all rows, then of each quarter.

    Raises:
        ValueError: There are not as many predictions as rows, or some are NaN.
    """
    if len(logits) != len(labels) or np.isnan(logits).any():
        raise ValueError(f"{len(logits)} predictions, {np.isnan(logits).sum()} of them NaN, for {len(labels)} rows")
    whole, parts = BinaryMetrics(), []
    for rows in np.array_split(np.arange(len(labels)), NUM_QUARTERS):
        part = BinaryMetrics()
        part.update(logits[rows].astype(np.float32), labels[rows])
        whole.merge(part)
        parts.append(part)
    scores = [metrics.compute() for metrics in (whole, *parts)]
    return {"ne": [each.ne for each in scores], "auc": [each.auc for each in scores]}


def to_logits(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Log-odds, finite for 0 and 1 too."""
    inside = np.clip(probabilities.astype(np.float64), 1e-7, 1 - 1e-7)
    return np.log(inside) - np.log1p(-inside)


def label_rate_logits(labels: npt.NDArray[np.float32]) -> npt.NDArray[np.float64]:
    """The label rate of the rows before each row, with half a positive and half a negative added."""
    positives = np.cumsum(labels, dtype=np.float64) - labels
    return np.log(positives + 0.5) - np.log(np.arange(len(labels)) - positives + 0.5)
