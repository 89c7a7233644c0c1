"""Online logistic regression with hashed features and Adagrad, row by row.

Every id, list id (weighted by 1 / sqrt(length)) and bucket of a number (a quarter of asinh wide; null is a bucket) is a
feature, hashed to 2^22 weights. The rate of each weight is `rate / (1 + sqrt(sum of its squared gradients))`, as in
McMahan et al., "Ad Click Prediction: a View from the Trenches", 2013, without regularization.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from headrace.compiling import kernel
from quality.columns import Columns

__all__ = ["DEFAULT_RATE", "RATES", "predict_then_learn"]

RATES = (0.01, 0.03, 0.1, 0.3)
DEFAULT_RATE = 0.1
HASH_BITS = 22


def predict_then_learn(columns: Columns, rate: float) -> npt.NDArray[np.float64]:
    """Log-odds [N], each before its row was learned."""
    offsets, places, values = _hashed(columns)
    weights, squares = np.zeros(1 << HASH_BITS), np.zeros(1 << HASH_BITS)
    logits = np.empty(len(columns.labels))
    _learn(offsets, places, values, columns.labels, rate, weights, squares, logits)
    return logits


def _hashed(columns: Columns) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Offsets [N + 1] of each row's features, their places among the weights, and their values."""
    every_row = np.arange(len(columns.labels))
    rows: list[npt.NDArray[Any]] = [every_row]
    keys: list[npt.NDArray[Any]] = [np.zeros(len(every_row), np.int64)]  # the intercept
    values: list[npt.NDArray[Any]] = [np.ones(len(every_row))]

    def add(of_rows: npt.NDArray[Any], codes: npt.NDArray[Any], weights: npt.NDArray[Any]) -> None:
        keys.append(codes.astype(np.int64) + (len(keys) << 40))
        rows.append(of_rows)
        values.append(weights)

    for codes in columns.ids.values():
        add(every_row, codes, np.ones(len(every_row)))
    for numbers in columns.dense.values():
        null = np.isnan(numbers)
        add(every_row, np.where(null, 1 << 20, np.round(4 * np.arcsinh(np.where(null, 0, numbers)))), values[0])
    for lists in columns.lists.values():
        add(lists.rows, lists.values, 1 / np.sqrt(lists.lengths[lists.rows]))
    row_of = np.concatenate(rows)
    order = np.argsort(row_of, kind="stable")
    mixed = np.concatenate(keys)[order].astype(np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    places = (mixed >> np.uint64(64 - HASH_BITS)).astype(np.int64)
    offsets = np.concatenate([[0], np.cumsum(np.bincount(row_of, minlength=len(every_row)))])
    return offsets.astype(np.int64), places, np.concatenate(values)[order]


@kernel()
def _learn(
    offsets: npt.NDArray[np.int64],
    places: npt.NDArray[np.int64],
    values: npt.NDArray[np.float64],
    labels: npt.NDArray[np.float32],
    rate: float,
    weights: npt.NDArray[np.float64],
    squares: npt.NDArray[np.float64],
    logits: npt.NDArray[np.float64],
) -> None:
    for row in range(len(labels)):
        total = 0.0
        for at in range(offsets[row], offsets[row + 1]):
            total += weights[places[at]] * values[at]
        logits[row] = total
        error = 1.0 / (1.0 + np.exp(-total)) - labels[row]
        for at in range(offsets[row], offsets[row + 1]):
            gradient = error * values[at]
            squares[places[at]] += gradient * gradient
            weights[places[at]] -= rate * gradient / (1.0 + np.sqrt(squares[places[at]]))
