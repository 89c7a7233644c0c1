"""Predictions from the outputs of a model: probabilities of binary labels, values of numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

__all__ = ["predicted"]


def predicted(outputs: NDArray[np.float32], is_regression: Sequence[bool]) -> list[NDArray[np.float32]]:
    """Probabilities of binary labels, and values of numbers, float32 [B] each."""
    values = outputs.astype(np.float64)
    columns = [
        column if number else 1.0 / (1.0 + np.exp(-column))
        for column, number in zip(values.T, is_regression, strict=True)
    ]
    return [column.astype(np.float32) for column in columns]
